"""The check of the model before an audit: one worker measures once whether the model is wired rightly."""

from contextlib import suppress
from typing import Any

import numpy as np

from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.manifest import SCORES_FOLDER, Shard
from volgrowth.audit.output.mending import SHAPES, kept_json
from volgrowth.audit.scoring.understanding import ModelCheck
from volgrowth.errors import ModelError, OutputError
from volgrowth.records import Failure
from volgrowth.storage.store import Store

MODEL_CHECK_FILE = "model-check.json"
# rows that are tried, spread over the first shard
ROWS = 64


def kept_check(store: Store) -> dict[str, Any] | None:
    """Return the result of the check in an output; None if it was not done, or its file is damaged."""
    instead = "the model is checked again if rows are scored, and the check left out otherwise"
    return kept_json(store, MODEL_CHECK_FILE, SHAPES[MODEL_CHECK_FILE], instead)


def check_model_tasks(session: Session) -> list[Task]:
    """Return the task that checks the model, or no task if the output has its result already.

    A result that says that the model is wrong counts only if the settings trust the model: the same command may be
    given again after something was mended. A check that could not be done is recorded with its reason.
    """
    store, rows = session.store, session.manifest.data.rows
    if not rows:
        return []
    if kept := kept_check(store):
        known = ModelCheck.from_json(kept)
        if known.verdict != "wrong" or session.config.trust_model:
            return []

    def keep(found: ModelCheck) -> tuple[()]:
        session.run.event("model_check", **found.to_json())
        with suppress(OutputError):  # a store that is away for a moment: scoring says so if it stays away
            store.write_json(MODEL_CHECK_FILE, found.to_json())
        if found.verdict == "wrong" and not session.config.trust_model:
            raise ModelError(
                f"model {session.config.model} is not understood: {found.cause}. Over {found.images} images "
                f"{found.seen}. {found.fix[0].upper()}{found.fix[1:]}, and audit into a new output; or go on with "
                f"--trust-model"
            )
        return ()

    def failed(failure: Failure) -> tuple[()]:
        return keep(ModelCheck("untested", 0, (), failure.reason))

    stretch = Shard(SCORES_FOLDER, 0, 0, min(rows, max(session.config.shard_size, ROWS)))
    spread = np.unique(np.linspace(0, stretch.stop - 1, ROWS).round().astype(int)).tolist()
    return [Task("the check of the model", "check_model", (stretch, spread), keep, failed, attempts=1)]
