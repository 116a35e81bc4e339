"""One driver session on an output folder: its lock, its run record and its workers."""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.output.lock import Lock
from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.output.runs import Run
from volgrowth.config import AuditConfig
from volgrowth.storage.store import Store


class Session:
    """One driver's time on an output folder, with its settings, manifest, lock and run record; a context manager.

    Attributes:
        config: the settings; the batch size in them may be set when it has been found.
        run: the record of this run, saved when the session ends.
        resources: context managers that are closed when the session ends, such as a local Ray.
    """

    def __init__(self, config: AuditConfig, manifest: Manifest, store: Store, lock: Lock):
        self.config, self.manifest, self.store, self.lock = config, manifest, store, lock
        self.run, self.resources = Run(store, config.log_json), ExitStack()

    def __enter__(self) -> Self:
        self.resources.enter_context(self.run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resources.__exit__(kind, error, trace)

    def pulse(self, progress: AuditProgress, workers: int) -> None:
        """Show the progress, save the run record now and then, and stop if another driver has taken over.

        The engines call this several times a second.
        """
        progress.workers = workers
        progress.show()
        self.run.pulse()
        self.lock.check()
