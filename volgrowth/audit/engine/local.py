"""The engine without Ray: one worker in this process, for notebooks and debuggers. It leaves the same bytes.

What ends the process ends the audit, which can be resumed; a row that raises is bisected down to as on a cluster.
"""

import time

import torch

from volgrowth.audit.engine.ledger import Ledger, Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.session import Shift
from volgrowth.errors import EngineError, VolgrowthError


class LocalCrew:
    """A crew of one."""

    def __init__(self, shift: Shift, worker: type, progress: AuditProgress):
        self.shift, self.progress = shift, progress
        self.worker = worker(shift.config, shift.manifest, _device(shift.config.gpus_per_worker))

    def work(self, ledger: Ledger) -> None:
        """Until every task is done."""
        run, began, threads = self.shift.run, time.monotonic(), torch.get_num_threads()
        try:
            self.worker.prepare()
            run.workers = max(run.workers, 1)
            run.devices.add(self.worker.device)
            run.startup_seconds = max(run.startup_seconds, time.monotonic() - began)
            while task := ledger.take():
                self._do(ledger, task)
                self.shift.pulse(self.progress, 1)
        finally:
            torch.set_num_threads(threads)
            run.worker_seconds += time.monotonic() - began

    def _do(self, ledger: Ledger, task: Task) -> None:
        self.worker.attempt = ledger.attempt(task)
        try:
            answer = getattr(self.worker, task.method)(*task.arguments)
        except VolgrowthError as error:
            ledger.refused(task, error)
        except Exception as error:  # whatever a network raises
            ledger.failed(task, first_line(error))
        else:
            ledger.done(task, answer)
            return
        self.shift.run.retries += 1


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _device(share: float | None) -> str:
    if share and not torch.cuda.is_available():
        raise EngineError(f"the worker was to have {share:g} GPUs and there is none here: leave gpus_per_worker out")
    return "cuda" if share != 0 and torch.cuda.is_available() else "cpu"
