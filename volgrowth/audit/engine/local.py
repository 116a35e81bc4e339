"""The engine without Ray: one worker in this process, for notebooks and debuggers.

It leaves the same bytes as Ray's workers. What ends the process ends the audit, which can be resumed; a row that raises
an error is found by bisection, as on a cluster. A task that hangs cannot be ended from within: it is warned of.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from volgrowth.audit.engine.device_faults import device_failed
from volgrowth.audit.engine.ledger import Ledger, Task
from volgrowth.audit.engine.pace import Pace
from volgrowth.audit.engine.progress import AuditProgress, spell_minutes
from volgrowth.audit.engine.session import Session
from volgrowth.errors import EngineError, VolgrowthError, kind_and_line
from volgrowth.models.user_code import at_line
from volgrowth.records import Failure


class LocalCrew:
    """One worker in this process."""

    def __init__(self, session: Session, worker: Callable[..., Any], progress: AuditProgress):
        self.session, self.progress = session, progress
        self.worker = worker(
            session.config, session.manifest, device_here(session.config.gpus_per_worker, session.config.dtype)
        )
        self.worker.earlier = session.replica
        self.worker.moved = self._moved
        self.pace, self._answered = Pace(session.config.hang_minutes), False

    def work(self, ledger: Ledger) -> None:
        """Do every task of the ledger."""
        run, began, threads = self.session.run, time.monotonic(), torch.get_num_threads()
        try:
            self.worker.prepare()
            self.session.replica = getattr(self.worker, "denoiser", self.session.replica)
            run.workers = max(run.workers, 1)
            self.session.welcome(self.worker.device, self.worker.device_name, self.progress)
            run.startup_seconds = max(run.startup_seconds, time.monotonic() - began)
            while task := ledger.take():
                self._do(ledger, task)
                self.session.pulse(self.progress, 1)
        finally:
            torch.set_num_threads(threads)
            run.worker_seconds += time.monotonic() - began

    def _do(self, ledger: Ledger, task: Task) -> None:
        self.worker.attempt = ledger.attempt(task)
        try:
            with self._timed(task), self.worker.counting():
                answer = getattr(self.worker, task.method)(*task.arguments)
        except Exception as error:  # networks raise errors of every kind
            if device_failed(error):
                raise EngineError(
                    f"the GPU failed ({kind_and_line(error)}), and a worker in this process cannot be replaced: what "
                    f"is published stays; look at it with nvidia-smi, and the same command resumes"
                ) from error
            if isinstance(error, VolgrowthError):
                ledger.refused(task, error)
            else:
                ledger.failed(task, Failure(kind_and_line(error) + at_line(error)))
        else:
            ledger.done(task, answer)
            return
        self.session.run.retries += 1

    def _moved(self) -> None:
        """Show the rows that the worker has measured within its task."""
        self.progress.move(self.worker.measured)
        self.progress.show()

    @contextmanager
    def _timed(self, task: Task) -> Iterator[None]:
        """Note how long a task takes, and warn of it if that is far longer than usual."""
        limit = self.pace.limit(task, self.worker.attempt, not self._answered)

        def warn() -> None:
            self.progress.say(
                f"{task.name}: no answer for {spell_minutes(limit)}. A worker in this process cannot be ended: if it "
                f"hangs, end this command and give it again with --engine ray, which finds the row"
            )

        began, timer = time.monotonic(), threading.Timer(limit, warn)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        self.pace.note(task, time.monotonic() - began, not self._answered)
        self._answered = True


def device_here(share: float | None, dtype: str = "float32") -> str:
    """Return the kind of device that a worker in this process uses, by the settings `gpus_per_worker` and `dtype`.

    Apple's GPU (MPS) is used where it is asked for: no audit has run on one yet, so that the CPU is the default there.
    """
    if share and not torch.cuda.is_available():
        if torch.backends.mps.is_available() and dtype != "float64":
            return "mps"
        if torch.backends.mps.is_available():
            raise EngineError(
                "dtype is float64, which Apple's GPU does not have: leave gpus_per_worker out, or take float32"
            )
        raise EngineError(f"the worker was to have {share:g} GPUs and there is none here: leave gpus_per_worker out")
    return "cuda" if share != 0 and torch.cuda.is_available() else "cpu"
