"""The batch size of an audit: the one of the settings, or the one that a worker finds best."""

from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.session import Shift
from volgrowth.audit.scoring.pilot import PilotWorker
from volgrowth.storage.store import Store

BATCH_FILE = "batch-size.json"


def choose_batch(work: Shift) -> int:
    """Return the batch size of the settings, or else the one that a worker finds best on the first rows."""
    if work.config.batch_size is not None:
        return work.config.batch_size
    found: list[int] = []

    def done(batch: int) -> tuple[()]:
        found.append(batch)
        return ()

    task = Task("the choice of a batch size", "choose_batch", (work.manifest.shards[0],), done)
    work.work(PilotWorker, [task], 1, AuditProgress(1, 1, quiet=True))
    return found[0]


def settle_batch(work: Shift, store: Store) -> None:
    """Take the batch size that the first driver found, or find it: the last digits of scores depend on it."""
    if work.config.batch_size is None:
        if not store.exists(BATCH_FILE):
            store.write_json(BATCH_FILE, {"batch_size": choose_batch(work)})
        work.config = work.config.model_copy(update=store.read_json(BATCH_FILE))
