"""One driver session on an output folder: its lock, its run record and its workers."""

from contextlib import ExitStack
from types import TracebackType
from typing import Any, NoReturn, Self

from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.output.lock import Lock
from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.output.runs import Run
from volgrowth.config import AuditConfig
from volgrowth.errors import EngineError
from volgrowth.guard import STOPPED, close_in_time, leave_at_once
from volgrowth.plain import plain, print_plain
from volgrowth.signals import check_interrupted
from volgrowth.storage.store import Store


class Session:
    """One driver's time on an output folder, with its settings, manifest, lock and run record; a context manager.

    Attributes:
        config: the settings; the batch size in them may be set when it has been found.
        run: the record of this run, saved when the session ends.
        resources: context managers that are closed when the session ends, such as a local Ray.
        connected: whether Ray is among them.
        replica: the model, once a worker in this process has loaded it: later workers take it over.
        tuned_on: the device that batch size and layout were found on; None if that is not known.
    """

    def __init__(self, config: AuditConfig, manifest: Manifest, store: Store, lock: Lock):
        self.config, self.manifest, self.store, self.lock = config, manifest, store, lock
        self.run, self.resources = Run(store, config.log_json), ExitStack()
        self.connected = False
        self.replica: Any = None
        self.tuned_on: str | None = None

    def __enter__(self) -> Self:
        self.resources.enter_context(self.run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resources.__exit__(kind, error, trace)

    def abandon(self, reason: str) -> NoReturn:
        """End this process with exit code 2 and a sentence, from any thread, where the main one cannot be reached."""
        print_plain(f"\nvolgrowth: {plain(reason)}", error=True)

        def close() -> None:
            self.run.__exit__(EngineError, EngineError(reason), None)
            self.lock.release()

        close_in_time(close)
        leave_at_once(STOPPED)

    def take_over(self, batch_size: int, channels_last: bool | None, device: str | None) -> None:
        """Put into the settings what was found to be fastest, on some device."""
        update: dict[str, Any] = {"batch_size": batch_size}
        if channels_last is not None:
            update["channels_last"] = channels_last
        self.config, self.tuned_on = self.config.model_copy(update=update), device

    def welcome(self, device: str, device_name: str, progress: AuditProgress) -> None:
        """Note the device of a new worker, and say so if the batch size was found on another kind."""
        self.run.devices.add(device)
        if device_name not in self.run.device_names and self.tuned_on not in (None, device_name):
            progress.say(
                f"this audit goes on with micro-batches of {self.config.images_at_once} images, which were the fastest "
                f"on {self.tuned_on}, on {device_name}, where others may be faster; a new output would search again"
            )
            self.run.event("other_device", found_on=self.tuned_on, device=device_name)
        self.run.device_names.add(device_name)

    def pulse(self, progress: AuditProgress, workers: int, oldest: tuple[str, float] | None = None) -> None:
        """Show the progress, save the run record now and then, and stop if another driver has taken over.

        The engines call this several times a second, with the oldest task that is not answered and its age in seconds.
        """
        check_interrupted()
        progress.workers, progress.oldest = workers, oldest
        progress.show()
        self.run.pulse()
        self.lock.check()
