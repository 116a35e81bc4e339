"""The noise floor of an audit: one worker measures once how far scores move with the arithmetic alone."""

from contextlib import suppress
from typing import Any

from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.manifest import Shard
from volgrowth.audit.output.mending import SHAPES, kept_json
from volgrowth.audit.output.runs import Tally
from volgrowth.errors import OutputError
from volgrowth.records import Failure
from volgrowth.storage.store import Store

NOISE_FILE = "noise-floor.json"


def noise_floor(store: Store) -> dict[str, Any] | None:
    """Return the noise floor in an output; None if it was not measured, or its file is damaged."""
    return kept_json(
        store, NOISE_FILE, SHAPES[NOISE_FILE], "it is measured again if rows are scored, and left out otherwise"
    )


class NoiseFloor:
    """The one measurement of the noise floor in a session, which is left out if the output has it already.

    A measurement that fails is recorded with its reason and not repeated: scores do not depend on it.
    """

    def __init__(self, session: Session):
        self.session = session
        self.asked = noise_floor(session.store) is not None

    def tasks(self, shard: Shard, tally: Tally) -> list[Task]:
        """Return the task that measures the noise floor on a published shard, or no task if there was one before."""
        if self.asked or tally.images == tally.failed:
            return []
        self.asked = True
        return [Task("the noise floor", "noise_floor", (shard,), self._keep, self._failed, attempts=1)]

    def _keep(self, floor: dict[str, Any]) -> tuple[()]:
        self.session.run.event("self_check", **floor)
        with suppress(OutputError):  # nothing else depends on this file
            self.session.store.write_json(NOISE_FILE, floor)
        return ()

    def _failed(self, failure: Failure) -> tuple[()]:
        return self._keep({"rows": 0, "batch": None, "dtype": None, "derivative": None, "problem": failure.reason})
