"""The driver: owns the ledger of shards and hands them to actors that have answered.

A worker is PENDING until its `prepare` has returned, READY while it takes shards (two in flight, so that it never
waits for the driver), and LOST when its process or node is gone; it is then replaced. A shard is done once
its fragment is published. What fails goes back to the ledger and to another worker, three times at most; a node that
was taken away is nobody's failure.
"""

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from volgrowth.audit.actor import ScoringActor, ShardReport
from volgrowth.audit.manifest import Manifest, Shard
from volgrowth.audit.progress import AuditProgress
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


@dataclass
class Worker:
    """An actor and the calls it has not answered, oldest first."""

    actor: Any
    state: State = State.PENDING
    calls: dict[ray.ObjectRef, Shard | None] = field(default_factory=dict)


def score_shards(config: AuditConfig, manifest: Manifest, todo: list[Shard], progress: AuditProgress) -> None:
    """Score and publish every shard of `todo`.

    Raises:
        EngineError: Ray or its workers cannot start, or a shard failed three times; what was published stays.
        VolgrowthError: what a worker's loaders or writers raised.
    """
    with _ray(config.ray_address):
        workers, gpus = _resources(config, len(todo))
        crew = Crew(config, manifest, gpus, todo, progress)
        try:
            crew.run(workers)
        finally:
            crew.dismiss()


class Crew:
    """The workers of one run, and the ledger."""

    def __init__(
        self, config: AuditConfig, manifest: Manifest, gpus: float, todo: list[Shard], progress: AuditProgress
    ):
        self.remote: Any = cast(Any, ScoringActor).options(num_cpus=1, num_gpus=gpus)
        self.arguments = ray.put(config), ray.put(manifest)
        self.todo, self.progress = deque(todo), progress
        self.failures: dict[str, int] = {}
        self.workers: list[Worker] = []
        self.losses = 0

    def run(self, count: int) -> None:
        """Until every shard is published."""
        for _ in range(count):
            self._hire()
        while self.todo or any(shard for worker in self.workers for shard in worker.calls.values()):
            self._dispatch()
            owners = {call: worker for worker in self.workers for call in worker.calls}
            ready, _ = ray.wait(list(owners), num_returns=1, timeout=POLL_SECONDS)
            for call in ready:
                self._collect(owners[call], call)
            self.progress.workers = sum(worker.state is State.READY for worker in self.workers)
            self.progress.show()

    def dismiss(self) -> None:
        """End the workers; fragments are atomic, so this may happen at any moment."""
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
                    shard = self.todo.popleft()
                    attempt = self.failures.get(shard.name, 0) + 1
                    worker.calls[worker.actor.score.remote(shard, attempt)] = shard

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
            worker.calls.pop(call)
            worker.state, self.losses = State.READY, 0
            if isinstance(answer, ShardReport):
                self.progress.advance(answer.shard.rows, answer.failed)

    def _failed(self, worker: Worker, shard: Shard | None, cause: BaseException) -> None:
        """A call raised. What would fail everywhere ends the audit; else another worker tries the shard."""
        if isinstance(cause, VolgrowthError) and (shard is None or not isinstance(cause, OutputError)):
            raise cause from None
        if shard is None:
            raise EngineError(f"a worker could not start ({_first_line(cause)})") from cause
        self._replace(worker)
        self._blame(shard, _first_line(cause))

    def _lost(self, worker: Worker, error: RayError) -> None:
        """A worker is gone: the shard it was at may be why, unless its node was taken away or out of reach."""
        running = next((shard for shard in worker.calls.values() if shard), None)
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
        """End a worker, give its shards back to the ledger, and hire another."""
        worker.state = State.LOST
        self.workers.remove(worker)
        self.todo.extendleft(reversed([shard for shard in worker.calls.values() if shard]))
        ray.kill(worker.actor)
        self._hire()

    def _blame(self, shard: Shard, reason: str) -> None:
        self.failures[shard.name] = self.failures.get(shard.name, 0) + 1
        if self.failures[shard.name] >= ATTEMPTS:
            raise EngineError(
                f"rows {shard.start} to {shard.stop - 1} of {shard.folder} failed {ATTEMPTS} times ({reason}): "
                f"what is published stays; mend the cause and run the same command again"
            )
        self.todo.appendleft(shard)


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """A Ray to run on: the caller's, the cluster at `address` or RAY_ADDRESS, or one started here for this audit."""
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


def _resources(config: AuditConfig, shards: int) -> tuple[int, float]:
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
    return max(1, min(config.workers or room, shards)), share


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
