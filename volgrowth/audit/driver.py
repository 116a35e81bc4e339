"""The driver: owns the ledger of tasks and hands them to actors that have answered.

A worker is PENDING until its `prepare` has returned, READY while it takes tasks (two in flight, so that it never
waits for the driver), and LOST when its process or node is gone; it is then replaced. What fails goes back to the
ledger and to another worker, three times at most; a node that was taken away is nobody's failure. A task may therefore
run more than once, and must leave the same behind each time: a scored shard is a published fragment.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from volgrowth.audit.actor import ScoringActor
from volgrowth.audit.manifest import Manifest, Shard
from volgrowth.audit.progress import AuditProgress
from volgrowth.audit.refine import Refinement
from volgrowth.config import AuditConfig
from volgrowth.errors import EngineError, OutputError, VolgrowthError

IN_FLIGHT = 2
ATTEMPTS = 3
POLL_SECONDS = 0.5


class State(Enum):
    """Of a worker."""

    PENDING = "pending"
    READY = "ready"
    LOST = "lost"


@dataclass(frozen=True)
class Task:
    """Work for one worker: `start(actor, attempt)` makes the call, `done` is given its answer; `name` is for errors."""

    name: str
    start: Callable[[Any, int], ray.ObjectRef]
    done: Callable[[Any], None]


@dataclass
class Worker:
    """An actor and the calls it has not answered, oldest first; the first of all is `prepare`."""

    actor: Any
    state: State = State.PENDING
    calls: dict[ray.ObjectRef, Task | None] = field(default_factory=dict)


def score_shards(
    config: AuditConfig,
    manifest: Manifest,
    todo: Sequence[Shard],
    progress: AuditProgress,
    refine: Refinement | None = None,
) -> None:
    """Score and publish every shard of `todo`, or measure again what `refine` says of them.

    Raises:
        EngineError: Ray or its workers cannot start, or a shard failed three times; what was published stays.
        VolgrowthError: what a worker's loaders or writers raised.
    """

    def task(shard: Shard) -> Task:
        def start(actor: Any, attempt: int) -> ray.ObjectRef:
            if refine is None:
                return actor.score.remote(shard, attempt)
            return actor.refine.remote(shard, refine.rows(shard), refine.num_probes, attempt)

        def done(failed: int) -> None:
            progress.advance(shard.rows, failed)

        return Task(f"rows {shard.start} to {shard.stop - 1} of {shard.folder}", start, done)

    run_tasks(ScoringActor, config, manifest, [task(shard) for shard in todo], progress)


def run_tasks(
    actor: Any, config: AuditConfig, manifest: Manifest, tasks: Sequence[Task], progress: AuditProgress
) -> None:
    """Have every task done by actors `actor(config, manifest)`. Raises as `score_shards`."""
    with ray_running(config.ray_address):
        workers, gpus = _resources(config, len(tasks))
        crew = Crew(cast(Any, actor).options(num_cpus=1, num_gpus=gpus), (config, manifest), tasks, progress)
        try:
            crew.run(workers)
        finally:
            crew.dismiss()


class Crew:
    """The workers of one run, and the ledger."""

    def __init__(self, remote: Any, arguments: Sequence[Any], tasks: Sequence[Task], progress: AuditProgress):
        self.remote, self.arguments = remote, [ray.put(argument) for argument in arguments]
        self.todo, self.progress = deque(tasks), progress
        self.failures: dict[str, int] = {}
        self.workers: list[Worker] = []
        self.losses = 0

    def run(self, count: int) -> None:
        """Until every task is done."""
        for _ in range(count):
            self._hire()
        while self.todo or any(task for worker in self.workers for task in worker.calls.values()):
            self._dispatch()
            owners = {call: worker for worker in self.workers for call in worker.calls}
            ready, _ = ray.wait(list(owners), num_returns=1, timeout=POLL_SECONDS)
            for call in ready:
                self._collect(owners[call], call)
            self.progress.workers = sum(worker.state is State.READY for worker in self.workers)
            self.progress.show()

    def dismiss(self) -> None:
        """End the workers; what they publish is published whole, so this may happen at any moment."""
        for worker in self.workers:
            ray.kill(worker.actor)

    def _hire(self) -> None:
        worker = Worker(self.remote.remote(*self.arguments))
        worker.calls[worker.actor.prepare.remote()] = None
        self.workers.append(worker)

    def _dispatch(self) -> None:
        for depth in range(1, IN_FLIGHT + 1):
            for worker in self.workers:
                if self.todo and worker.state is State.READY and len(worker.calls) < depth:
                    task = self.todo.popleft()
                    worker.calls[task.start(worker.actor, self.failures.get(task.name, 0) + 1)] = task

    def _collect(self, worker: Worker, call: ray.ObjectRef) -> None:
        if call not in worker.calls:  # lost together with a worker that was handled a moment ago
            return
        try:
            answer = ray.get(call)
        except RayTaskError as error:
            self._failed(worker, worker.calls.pop(call), error.cause)
        except RayError as error:  # the actor, its node, or an object on it
            self._lost(worker, error)
        else:
            task = worker.calls.pop(call)
            worker.state, self.losses = State.READY, 0
            if task:
                task.done(answer)

    def _failed(self, worker: Worker, task: Task | None, cause: BaseException) -> None:
        """A call raised. What would fail everywhere ends the run; else another worker tries the task."""
        if isinstance(cause, VolgrowthError) and (task is None or not isinstance(cause, OutputError)):
            raise cause from None
        if task is None:
            raise EngineError(f"a worker could not start ({_first_line(cause)})") from cause
        self._replace(worker)
        self._blame(task, _first_line(cause))

    def _lost(self, worker: Worker, error: RayError) -> None:
        """A worker is gone: the task it was at may be why, unless its node was taken away or out of reach."""
        running = next((task for task in worker.calls.values() if task), None)
        starting = worker.state is State.PENDING
        self._replace(worker)
        if isinstance(error, ActorUnavailableError) or getattr(error, "preempted", False):
            return
        if running:
            self.todo.remove(running)
            self._blame(running, _first_line(error))
        elif starting:
            self.losses += 1
            if self.losses >= ATTEMPTS:
                raise EngineError(
                    f"workers die while they start ({_first_line(error)}): check memory, and the model with "
                    f"`volgrowth.load_model`"
                )

    def _replace(self, worker: Worker) -> None:
        """End a worker, give its tasks back to the ledger, and hire another."""
        worker.state = State.LOST
        self.workers.remove(worker)
        self.todo.extendleft(reversed([task for task in worker.calls.values() if task]))
        ray.kill(worker.actor)
        self._hire()

    def _blame(self, task: Task, reason: str) -> None:
        self.failures[task.name] = self.failures.get(task.name, 0) + 1
        if self.failures[task.name] >= ATTEMPTS:
            raise EngineError(
                f"{task.name} failed {ATTEMPTS} times ({reason}): what is published stays; mend the cause and run the "
                f"same command again"
            )
        self.todo.appendleft(task)


@contextmanager
def ray_running(address: str | None) -> Iterator[None]:
    """A Ray to run on: the caller's, the cluster at `address` or RAY_ADDRESS, or one started here meanwhile."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local = {"include_dashboard": False} if address == "local" else {}
    if address != "local":
        _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # ray raises whatever its transports raise
        raise EngineError(
            f"Ray cannot be reached at {address} ({_first_line(error)}): expected the address of a running "
            f"cluster with this version of Ray, {ray.__version__}, or none to start one here"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes. Only HOST:PORT is checked; "auto" and ray:// find their own way."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise EngineError(
            f"Ray cannot be reached at {address} ({_first_line(error)}): expected the address of a running cluster, or "
            f"none to start one here"
        ) from None


def _resources(config: AuditConfig, tasks: int) -> tuple[int, float]:
    """How many workers to start, and the share of a GPU for each: one worker a GPU, or one a core without any."""
    total = ray.cluster_resources()
    gpus, cores = total.get("GPU", 0.0), total.get("CPU", 0.0)
    share = config.gpus_per_worker
    if share is None:
        share = 1.0 if gpus else 0.0
    if share > gpus:
        raise EngineError(
            f"each worker was to have {share:g} GPUs and Ray sees {gpus:g}: lower gpus_per_worker, 0 runs on "
            f"CPUs, or give it a cluster with GPUs"
        )
    room = int(gpus / share) if share else int(cores)
    return max(1, min(config.workers or room, tasks)), share


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
