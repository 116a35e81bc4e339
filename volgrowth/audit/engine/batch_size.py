"""The batch size of an audit: the one of the settings, or the one that a worker finds best."""

from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.scoring.pilot import PilotWorker

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
    """Put a batch size into the session's settings if they leave it open: the one that an earlier session found.

    The last digits of scores depend on the batch size, so it is chosen once for an audit and kept in its output.
    """
    if session.config.batch_size is None:
        if not session.store.exists(BATCH_FILE):
            session.store.write_json(BATCH_FILE, {"batch_size": choose_batch(session)})
        session.config = session.config.model_copy(update=session.store.read_json(BATCH_FILE))
