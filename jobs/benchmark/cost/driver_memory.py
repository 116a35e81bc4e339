"""The driver's memory over very many shards that cost nothing: what grows in it grows with the shards alone."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from jobs.benchmark.cost.engine_load import SHARD_ROWS, memory_slope
from jobs.benchmark.processes import in_repository, resident_mib
from jobs.experiments import Outcome
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.engine.shard_tasks import ShardTasks
from volgrowth.audit.output.lock import driving
from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.output.runs import Tally
from volgrowth.audit.workers.loading import DataWorker
from volgrowth.config import AuditConfig
from volgrowth.storage.store import Store

# shards from one sample of the memory to the next
SAMPLE_SHARDS = 250


class IdleWorker(DataWorker):
    """A worker that does nothing, and says that it scored a shard."""

    def prepare(self) -> None:
        """Load nothing."""

    def score(self, *arguments: Any) -> Tally:
        """Return the counts of a shard."""
        return Tally(images=SHARD_ROWS, evaluations=SHARD_ROWS, seconds=0.1, smallest_batch=256)


def measure_driver(folder: Path, shards: int) -> Outcome:
    """Hand out so many shards to one idle worker on Ray, in this process: its memory as they are done."""
    os.environ["PYTHONPATH"] = in_repository()["PYTHONPATH"]  # of the worker
    samples: list[tuple[int, float]] = []
    output = str(folder / "driver-audit")
    config = AuditConfig.build(model="none", data="none", output=output, workers=1, gpus_per_worker=0.0)
    store = Store(output)
    with driving(store) as lock, Session(config, cast(Manifest, None), store, lock) as session:
        progress = AuditProgress(rows=shards * SHARD_ROWS, shards=shards)

        def report(shard: Shard, tally: Tally) -> list[Any]:
            session.run.add(tally)
            progress.advance(tally.images, tally.failed)
            if progress.done_shards % SAMPLE_SHARDS == 0:
                samples.append((progress.done_rows, resident_mib(os.getpid())))
            return []

        def tasks() -> Iterator[Any]:
            for number in range(shards):
                start = number * SHARD_ROWS
                yield ShardTasks(Shard(SCORES_FOLDER, number, start, start + SHARD_ROWS), report).task()

        run_tasks(session, IdleWorker, tasks(), shards, progress)
    done, memory = np.array(samples, float).T
    steady = done > done[-1] / 10
    slope, error = memory_slope(done[steady], memory[steady])
    row = {
        "shards": shards,
        "rows": shards * SHARD_ROWS,
        "driver, MiB": f"{memory[steady][0]:,.0f} to {memory[steady][-1]:,.0f}",
        "at most, MiB": memory.max(),
        "grows, MiB a million rows": None if slope is None else f"{slope:+.2f} ± {error:.2f}",
    }
    return Outcome([], {"table": [row]}, {"shard size": SHARD_ROWS})
