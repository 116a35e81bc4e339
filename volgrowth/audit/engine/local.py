"""The engine without Ray: one worker in this process, for notebooks and debuggers.

It leaves the same bytes as Ray's workers. What ends the process ends the audit, which can be resumed; a row that raises
an error is found by bisection, as on a cluster.
"""

import time

import torch

from volgrowth.audit.engine.ledger import Ledger, Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.session import Session
from volgrowth.errors import EngineError, VolgrowthError, kind_and_line
from volgrowth.models.user_code import at_line


class LocalCrew:
    """One worker in this process."""

    def __init__(self, session: Session, worker: type, progress: AuditProgress):
        self.session, self.progress = session, progress
        self.worker = worker(session.config, session.manifest, _device(session.config.gpus_per_worker))

    def work(self, ledger: Ledger) -> None:
        """Do every task of the ledger."""
        run, began, threads = self.session.run, time.monotonic(), torch.get_num_threads()
        try:
            self.worker.prepare()
            run.workers = max(run.workers, 1)
            run.devices.add(self.worker.device)
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
            answer = getattr(self.worker, task.method)(*task.arguments)
        except VolgrowthError as error:
            ledger.refused(task, error)
        except Exception as error:  # networks raise errors of every kind
            ledger.failed(task, kind_and_line(error) + at_line(error))
        else:
            ledger.done(task, answer)
            return
        self.session.run.retries += 1


def _device(share: float | None) -> str:
    if share and not torch.cuda.is_available():
        raise EngineError(f"the worker was to have {share:g} GPUs and there is none here: leave gpus_per_worker out")
    return "cuda" if share != 0 and torch.cuda.is_available() else "cpu"
