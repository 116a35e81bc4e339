"""The batch size of an audit: the one of the settings, or the one that a worker finds best."""

from contextlib import suppress

import pyarrow.compute as pc

from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks, uses_gpus
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.fragments import published
from volgrowth.audit.output.mending import SHAPES, kept_json
from volgrowth.audit.scoring.pilot import PilotWorker
from volgrowth.errors import DamagedError
from volgrowth.storage.store import Store

BATCH_FILE = "batch-size.json"


def choose_batch(session: Session) -> int:
    """Return the batch size that a worker finds best on the first rows."""
    found: list[int] = []

    def done(batch: int) -> tuple[()]:
        found.append(batch)
        return ()

    task = Task("the choice of a batch size", "choose_batch", (session.manifest.shards[0],), done)
    run_tasks(session, PilotWorker, [task], 1, AuditProgress(1, 1, quiet=True))
    return found[0]


def settle_batch(session: Session) -> None:
    """Put the batch size into the session's settings that an earlier session found, or search for one.

    It is searched for if the settings ask for that, and beside a GPU also if they do not give one. The last digits of
    scores depend on the batch size, so it is chosen once for an audit and kept in its output: resumed on another kind
    of device, the audit goes on with it.
    """
    asked, given = session.config.batch_size, "batch_size" in session.config.model_fields_set
    kept = kept_batch(session.store)
    if kept is None and (asked is None or (not given and uses_gpus(session))):
        kept = _batch_of_fragments(session) or choose_batch(session)
        session.store.write_json(BATCH_FILE, {"batch_size": kept})
    if kept is not None:
        session.config = session.config.model_copy(update={"batch_size": kept})


def kept_batch(store: Store) -> int | None:
    """Return the batch size that was found for an audit; None if none was, or its file is damaged."""
    kept = kept_json(store, BATCH_FILE, SHAPES[BATCH_FILE], "it is taken from the scores, or searched for again")
    return kept["batch_size"] if kept and kept["batch_size"] > 0 else None


def _batch_of_fragments(session: Session) -> int | None:
    """Return the largest batch size that rows of a published fragment were scored with, None without a fragment."""
    for name in published(session.store, session.manifest):
        with suppress(DamagedError):  # its rows are scored again later
            batch = pc.max(session.store.read_table(name)["batch"]).as_py()
            if batch:
                return batch
    return None
