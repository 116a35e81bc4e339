"""What an audit finds out once about the device it runs on: the size of micro-batches, the layout of weights in memory,
and from both, beside a GPU, how many rows make a shard.

The last digits of scores depend on size and layout, so they are kept in the output: resumed on another kind of device,
the audit goes on with them, and says so.
"""

from contextlib import suppress
from dataclasses import asdict, fields, replace
from typing import Any

import pyarrow.compute as pc

from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks, uses_gpus, workers_here
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.fragments import published
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, MANIFEST, SCORES_FOLDER
from volgrowth.audit.output.mending import SHAPES, kept_json, tell_user
from volgrowth.audit.scoring.pilot import PilotWorker, Tuned
from volgrowth.errors import DamagedError
from volgrowth.storage.store import Store

BATCH_FILE = "batch-size.json"
# beside a GPU a shard has so many micro-batches, as long as every worker gets so many shards
MICRO_BATCHES, SHARDS_A_WORKER = 32, 8


def tune(session: Session, batch_size: int | None, lay_out: bool) -> Tuned:
    """Have a worker find what is fastest on the first rows.

    Args:
        session: the driver session.
        batch_size: images in a micro-batch; None to search.
        lay_out: whether to choose the layout of the weights.
    """
    found: list[Tuned] = []

    def done(tuned: Tuned) -> tuple[()]:
        found.append(tuned)
        session.run.event("tuned", **asdict(tuned))
        return ()

    task = Task("the choice of a batch size", "tune", (session.manifest.shards[0], batch_size, lay_out), done)
    run_tasks(session, PilotWorker, [task], 1, AuditProgress(1, 1, quiet=True))
    return found[0]


def settle_batch(session: Session) -> None:
    """Put batch size and layout into the session's settings as an earlier session found them, or find them.

    A batch size is searched for if the settings ask for that, and beside a GPU also if they do not give one. A layout
    is chosen before the first row is scored, beside a GPU if the settings do not give one, or where they ask for it.
    """
    begun = any(session.store.names(folder) for folder in (SCORES_FOLDER, HOLDOUT_FOLDER))
    kept = kept_tuning(session.store)
    if kept is None:
        kept = _found(session, begun)
        if kept is not None:
            session.store.write_json(
                BATCH_FILE, {name: value for name, value in asdict(kept).items() if value is not None}
            )
    if kept is not None:
        session.take_over(kept.batch_size, kept.channels_last, kept.device)
    if not begun:
        _settle_shards(session)


def lays_out(session: Session) -> bool:
    """Say whether the layout of weights is to be chosen for a new audit."""
    asked = session.config.channels_last
    return asked == "auto" or (asked is None and uses_gpus(session))


def kept_tuning(store: Store) -> Tuned | None:
    """Return what was found for an audit; None if nothing was, or its file is damaged."""
    kept: Any = kept_json(store, BATCH_FILE, SHAPES[BATCH_FILE], "it is taken from the scores, or searched for again")
    if not kept or kept["batch_size"] <= 0:
        return None
    return Tuned(**{each.name: kept[each.name] for each in fields(Tuned) if each.name in kept})


def rows_a_shard(batch_size: int, rows: int, workers: int, usual: int) -> int:
    """Return how many rows a shard has beside a GPU: many micro-batches, and no fewer than usual.

    Args:
        batch_size: images in a micro-batch.
        rows: rows of the data set.
        workers: workers that share them.
        usual: rows of a shard by the settings.
    """
    most = rows // (SHARDS_A_WORKER * workers) // batch_size * batch_size
    return max(usual, min(MICRO_BATCHES * batch_size, most))


def _found(session: Session, begun: bool) -> Tuned | None:
    """Find batch size and layout, as far as the settings leave them open; None if they are given."""
    config = session.config
    search = config.batch_size is None or ("batch_size" not in config.model_fields_set and uses_gpus(session))
    lay_out = not begun and lays_out(session)
    if begun and config.channels_last == "auto":
        tell_user(
            f"{session.store.path(BATCH_FILE)} is lost, which says how the weights lay in memory: the network goes on "
            f"as it is loaded, and the last digits of scores may differ from those that are there"
        )
    if search and begun and (batch := _batch_of_fragments(session)):
        return Tuned(batch)
    return tune(session, None if search else config.batch_size, lay_out) if search or lay_out else None


def _batch_of_fragments(session: Session) -> int | None:
    """Return the largest batch size that rows of a published fragment were scored with, None without a fragment."""
    for name in published(session.store, session.manifest):
        with suppress(DamagedError):  # its rows are scored again later
            batch = pc.max(session.store.read_table(name)["batch"]).as_py()
            if batch:
                return batch
    return None


def _settle_shards(session: Session) -> None:
    """Make the shards of a new audit larger beside a GPU, so that it is not at the end of one all the time."""
    config, manifest = session.config, session.manifest
    if "shard_size" in config.model_fields_set or manifest.shard_rows is not None or not uses_gpus(session):
        return
    rows = rows_a_shard(config.images_at_once, manifest.data.rows, workers_here(session), config.shard_size)
    if rows > config.shard_size:
        session.manifest = replace(manifest, shard_rows=rows)
        session.store.write_json(MANIFEST, session.manifest.to_json())
