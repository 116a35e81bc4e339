"""One driver at work on an OUT: its lock, the record of its run, and the workers that do its tasks.

Where the workers are is the engine's affair: Ray actors on a cluster (`audit.driver`), or one worker in this process
(`audit.local`). Both take tasks from the same ledger, run the same methods and leave the same bytes.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from volgrowth.audit.engine.ledger import Ledger, Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.output.lock import Lock
from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.output.runs import Run
from volgrowth.config import AuditConfig
from volgrowth.storage.store import Store


@dataclass
class Shift:
    """A driver's time on an OUT. `resources` are ended with it."""

    config: AuditConfig
    manifest: Manifest
    run: Run
    lock: Lock
    resources: ExitStack = field(default_factory=ExitStack)

    def work(self, worker: type, tasks: Iterable[Task], count: int, progress: AuditProgress) -> None:
        """Have every task done by workers `worker(config, manifest, device)`; at most `count` of them are of use.

        Raises:
            EngineError: the engine or its workers cannot start, or a task failed for good; what was published stays.
            VolgrowthError: what a worker's loaders, readers or writers raised.
        """
        if count == 0:
            return
        crew: Any
        if self.config.engine == "local":
            from volgrowth.audit.engine.local import LocalCrew

            crew = LocalCrew(self, worker, progress)
        else:
            from volgrowth.audit.engine.driver import RayCrew, ray_running

            self.resources.enter_context(ray_running(self.config.ray_address))
            crew = RayCrew(self, worker, count, progress)
        began = time.monotonic()
        try:
            with progress:
                crew.work(Ledger(tasks))
        finally:
            self.run.working_seconds += time.monotonic() - began

    def pulse(self, progress: AuditProgress, workers: int) -> None:
        """Called often: shows progress, keeps the record, and stops when another driver has taken over."""
        progress.workers = workers
        progress.show()
        self.run.pulse()
        self.lock.check()


@contextmanager
def shift(config: AuditConfig, manifest: Manifest, store: Store, lock: Lock) -> Iterator[Shift]:
    """Work on OUT, whose lock is held."""
    with Run(store, config.log_json) as run, ExitStack() as resources:
        yield Shift(config, manifest, run, lock, resources)
