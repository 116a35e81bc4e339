"""The Ray engine: it hands the ledger's tasks to actors on a cluster whose nodes come and go.

A worker is PENDING until its `prepare` has returned, READY while it takes tasks (two in flight, so that it never
waits for the driver; beside a GPU it works on both, one of them at the device), LEAVING when its node is about to be
taken away, and LOST when its process or node is gone. Lost workers are replaced, and more are started when nodes join:
the cluster's autoscaler sees the actors that wait for resources. A task is not blamed for a node that was taken away;
if a process ends in any other way, the oldest task that it was working on is. So is a task that is not answered for far
longer than usual: its worker is ended like one that hangs.
"""

import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

from volgrowth.audit.engine.actor import Actor, Home
from volgrowth.audit.engine.device_faults import MOST_FAULTS, DeviceFailedError, DeviceFaults, device_failed
from volgrowth.audit.engine.ledger import ATTEMPTS, Ledger, Task
from volgrowth.audit.engine.pace import Pace
from volgrowth.audit.engine.progress import AuditProgress, spell_minutes
from volgrowth.audit.engine.session import Session
from volgrowth.errors import EngineError, VolgrowthError, kind_and_line
from volgrowth.models.user_code import noted_line
from volgrowth.records import Failure, Status

IN_FLIGHT = 2
# most tasks in a row that are put into reserve for a worker
RUN = 16
POLL_SECONDS = 0.5
LOOK_SECONDS = 3.0
# while this process is stopped, or its machine asleep, tasks do not grow older than by this
PAUSE_SECONDS = 5.0


class State(Enum):
    """The state of a worker."""

    PENDING = "pending"
    READY = "ready"
    LEAVING = "leaving"
    LOST = "lost"


@dataclass
class HiredActor:
    """A hired actor and its unanswered calls, oldest first. The call of `prepare` has no task.

    Attributes:
        begun: when its oldest call could begin, by the clock of the crew.
        answered: whether it has done a task.
        watch: the unanswered question how many rows it has measured in its tasks, and the last answer.
    """

    actor: Any
    state: State = State.PENDING
    home: Home | None = None
    hired: float = field(default_factory=time.monotonic)
    calls: dict[ray.ObjectRef, Task | None] = field(default_factory=dict)
    begun: float = 0.0
    answered: bool = False
    watch: ray.ObjectRef | None = None
    measured: int = 0

    @property
    def tasks(self) -> list[Task]:
        """The tasks that it has not answered."""
        return [task for task in self.calls.values() if task]


class RayCrew:
    """The workers that do the tasks of one ledger.

    Args:
        session: the driver session.
        worker: makes a worker, such as its class.
        count: the number of tasks, and the most workers that are of use.
        progress: the display.
        gpus: whether the workers use GPUs.
    """

    def __init__(
        self, session: Session, worker: Callable[..., Any], count: int, progress: AuditProgress, gpus: bool = True
    ):
        self.session, self.progress, self.count = session, progress, count
        self.share = gpu_share(session) if gpus else 0.0
        device = "cuda" if self.share else "cpu"
        self.arguments = [ray.put(argument) for argument in (worker, session.config, session.manifest)] + [device]
        session.run.room = room(self.share)
        self.needs = {"num_cpus": 1, "num_gpus": self.share, "max_concurrency": calls_at_once(self.share)}
        self.workers: list[HiredActor] = []
        self.faults = DeviceFaults()
        self.failed_starts = 0
        self.pace, self.node = Pace(session.config.hang_minutes), ray.get_runtime_context().get_node_id()
        self._look = self._enough = self._looked = time.monotonic()
        self._clock = 0.0

    def work(self, ledger: Ledger) -> None:
        """Have the workers do every task of the ledger."""
        self.ledger = ledger
        try:
            while self.ledger or any(worker.tasks for worker in self.workers):
                self._staff()
                self._dispatch()
                self._wait()
                self._tick()
                self._end_hung()
                self._watch()
                ready = sum(worker.state is State.READY for worker in self.workers)
                self.session.run.workers = max(self.session.run.workers, ready)
                self.session.pulse(self.progress, ready, self._oldest())
                self._check_patience(ready)
        finally:
            # workers publish whole files, so they may be ended at any moment
            for worker in list(self.workers):
                self._end(worker)

    def _tick(self) -> None:
        """Move the clock by which tasks grow old."""
        now = time.monotonic()
        self._clock += min(now - self._looked, PAUSE_SECONDS)
        self._looked = now

    def _watch(self) -> None:
        """Ask workers how many rows they have measured in their tasks, and show the sum; no answer is waited for."""
        for worker in self.workers:
            if worker.watch is not None and ray.wait([worker.watch], timeout=0)[0]:
                with suppress(RayError):  # a worker that is gone is met where its tasks are collected
                    worker.measured = ray.get(worker.watch)
                worker.watch = None
            if worker.watch is None and worker.tasks and worker.state is not State.PENDING:
                worker.watch = worker.actor.measured.remote()
        self.progress.move(sum(worker.measured for worker in self.workers if worker.tasks))

    def _oldest(self) -> tuple[str, float] | None:
        """Return the task that has waited longest for its answer, and how long."""
        begun = [(worker.begun, worker.tasks[0].name) for worker in self.workers if worker.tasks]
        return (min(begun)[1], self._clock - min(begun)[0]) if begun else None

    def _end_hung(self) -> None:
        """End workers that have not answered their task for far longer than usual, and blame the task."""
        for worker in list(self.workers):
            age = self._clock - worker.begun
            if worker.home is None or not worker.tasks or age <= self.pace.least:
                continue
            task, *behind = worker.tasks
            if age > self.pace.limit(task, self.ledger.attempt(task), not worker.answered):
                where = f"process {worker.home.pid} on {worker.home.host} ({worker.home.device})"
                self.progress.say(
                    f"{task.name}: no answer for {spell_minutes(age)} from the worker that is {where}: it is ended, "
                    f"and what it was doing is tried again"
                )
                self.session.run.event("worker_hung", task=task.name, seconds=age, node=worker.home.node, where=where)
                self.session.run.lost_workers += 1
                self.session.run.retries += 1
                self._replace(worker)
                self.ledger.give_back(behind)
                self.ledger.failed(task, Failure(f"it did not end in {spell_minutes(age)}", Status.TIMED_OUT))

    def _staff(self) -> None:
        """Start workers up to the room of the cluster, and end idle ones whose node is to be taken away."""
        if time.monotonic() < self._look:
            return
        self._look = time.monotonic() + LOOK_SECONDS
        _check_own_node(self.node)
        draining = _draining_nodes() | set(self.faults.avoided)
        for worker in list(self.workers):
            if worker.state is State.READY and worker.home and worker.home.node in draining:
                worker.state = State.LEAVING
                self.session.run.event("worker_leaving", node=worker.home.node)
            if worker.state is State.LEAVING and not worker.calls:
                self._end(worker)
        staying = sum(worker.state is not State.LEAVING for worker in self.workers)
        if self.failed_starts < ATTEMPTS or not self.workers:  # else go on with the workers that could start
            for _ in range(staying, min(self.count, self.session.config.workers or room(self.share, draining))):
                self._hire()

    def _hire(self) -> None:
        self.faults.check_others(ray.nodes())
        needs, avoided = dict[str, Any](self.needs), self.faults.avoided
        if avoided:
            needs["scheduling_strategy"] = NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*avoided)})
        worker = HiredActor(cast(Any, Actor).options(**needs).remote(*self.arguments))
        worker.calls[worker.actor.prepare.remote()] = None
        self.workers.append(worker)

    def _end(self, worker: HiredActor) -> None:
        worker.state = State.LOST
        self.workers.remove(worker)
        with suppress(RayError):  # a cluster that is gone has no actors
            ray.kill(worker.actor)
        self.session.run.worker_seconds += time.monotonic() - worker.hired if worker.home else 0.0

    def _dispatch(self) -> None:
        for depth in range(1, IN_FLIGHT + 1):
            for worker in self.workers:
                if worker.state is State.READY and len(worker.calls) < depth and (task := self._next_task(worker)):
                    call = worker.actor.call.remote(task.method, task.arguments, self.ledger.attempt(task))
                    worker.begun = worker.begun if worker.calls else self._clock
                    worker.calls[call] = task

    def _next_task(self, worker: HiredActor) -> Task | None:
        return self.ledger.take(id(worker), min(RUN, max(1, self.count // (RUN * len(self.workers)))))

    def _wait(self) -> None:
        """Collect the answers that have arrived, or wait a moment for one."""
        owners = {call: worker for worker in self.workers for call in worker.calls}
        if not owners:
            return time.sleep(POLL_SECONDS)
        ready, rest = ray.wait(list(owners), num_returns=1, timeout=POLL_SECONDS)
        if ready and rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for call in ready:
            worker = owners[call]
            if worker.state is not State.LOST:  # another of its calls may have said so a moment ago
                self._collect(worker, call)
        return None

    def _collect(self, worker: HiredActor, call: ray.ObjectRef) -> None:
        try:
            answer = ray.get(call)
        except RayTaskError as error:
            self._failed(worker, worker.calls.pop(call), error.cause)
        except RayError as error:  # the actor, its node, or an object on it
            self._lost(worker, error)
        else:
            task = worker.calls.pop(call)
            if task:
                self.pace.note(task, self._clock - worker.begun, not worker.answered)
                worker.begun, worker.answered, worker.measured = self._clock, True, 0
                self.ledger.done(task, answer)
            else:
                worker.state, worker.home, self.failed_starts = State.READY, answer, 0
                self.session.welcome(answer.device, answer.device_name, self.progress)
                self.session.run.startup_seconds = max(
                    self.session.run.startup_seconds, time.monotonic() - worker.hired
                )
                self.session.run.event("worker_ready", node=answer.node, device=answer.device)

    def _failed(self, worker: HiredActor, task: Task | None, cause: BaseException) -> None:
        """Give back or blame the task of a call that raised an error."""
        if task is None:
            return self._failed_to_start(worker, cause)
        worker.begun = self._clock
        self.session.run.retries += 1
        self.session.run.event("task_failed", task=task.name, reason=kind_and_line(cause))
        if worker.home and device_failed(cause):
            fault = DeviceFailedError(worker.home.node, worker.home.host, kind_and_line(cause))
            return self._device_failed(worker, fault, [task, *worker.tasks])
        if isinstance(cause, VolgrowthError):
            return self.ledger.refused(task, cause)
        if worker.home and worker.home.device != "cpu":
            # an error may have left the device's context unusable
            self.ledger.give_back(worker.tasks)
            self._replace(worker)
        return self.ledger.failed(task, Failure(kind_and_line(cause) + noted_line(cause)))

    def _device_failed(self, worker: HiredActor, fault: DeviceFailedError, tasks: list[Task]) -> None:
        """Give back the tasks of a worker whose GPU failed, and start one elsewhere if that happens again and again."""
        self.session.run.lost_workers += 1
        self.session.run.event("device_failed", node=fault.node, host=fault.host, reason=fault.reason)
        doing = f"{tasks[0].name}: " if tasks else ""
        self.progress.say(f"{doing}the device of {fault.host} failed ({fault.reason}): another worker takes its place")
        if self.faults.note(fault.node):
            self.progress.say(f"{fault.host} gets no workers any more: its devices failed {MOST_FAULTS} times")
        self.ledger.give_back(tasks)
        self._replace(worker)

    def _failed_to_start(self, worker: HiredActor, cause: BaseException) -> None:
        """End the run if no worker could start; while others are at work, the fault may be this node's alone."""
        if isinstance(cause, DeviceFailedError):
            return self._device_failed(worker, cause, [])
        self.session.run.event("worker_failed", reason=kind_and_line(cause))
        self._replace(worker)
        self.failed_starts += 1
        if any(other.state is State.READY for other in self.workers):
            return None
        if isinstance(cause, VolgrowthError):
            raise cause from None
        raise EngineError(f"a worker could not start ({kind_and_line(cause)})") from cause

    def _lost(self, worker: HiredActor, error: RayError) -> None:
        """Blame the task of a worker that is gone, unless its node was taken away or is out of reach."""
        _check_own_node(self.node)  # without it Ray ends all workers of this process
        tasks, starting, reason = worker.tasks, worker.state is State.PENDING, kind_and_line(error)
        blameless = _is_blameless(error, worker)
        self.session.run.lost_workers += 1
        self.session.run.event("worker_lost", node=worker.home and worker.home.node, reason=reason, blameless=blameless)
        self._replace(worker)
        self.ledger.give_back(tasks[1:])
        if tasks:
            self.session.run.retries += 1
            if blameless:
                self.ledger.lost(tasks[0], reason)
            else:
                self.ledger.failed(tasks[0], Failure("its process died: " + reason))
        elif starting and not blameless:
            self.failed_starts += 1
            if self.failed_starts >= ATTEMPTS and not any(other.state is State.READY for other in self.workers):
                raise EngineError(
                    f"workers die while they start ({reason}): check memory, and the model with `volgrowth.load_model`"
                )

    def _replace(self, worker: HiredActor) -> None:
        """End a worker, and start another one at once."""
        self._end(worker)
        self._look = time.monotonic()

    def _check_patience(self, ready: int) -> None:
        """Stop the run, to be resumed, if the cluster has given too few workers for too long."""
        config = self.session.config
        if ready >= min(config.min_workers, self.count):
            self._enough = time.monotonic()
        elif time.monotonic() - self._enough > 60 * config.wait_minutes:
            gpus = f" and {self.share:g} GPUs" if self.share else ""
            raise EngineError(
                f"in {config.wait_minutes:g} minutes {ready} workers were ready of the {config.min_workers} asked for, "
                f"each with a CPU{gpus}: give the cluster nodes, or lower min_workers; the same command resumes"
            )


def gpu_share(session: Session) -> float:
    """Return the share of a GPU for each worker: by default one GPU if the cluster has any."""
    gpus, share = ray.cluster_resources().get("GPU", 0.0), session.config.gpus_per_worker
    if share is None:
        return 1.0 if gpus else 0.0
    if share > gpus and not session.config.workers:
        raise EngineError(
            f"each worker was to have {share:g} GPUs and Ray sees {gpus:g}: lower gpus_per_worker, 0 runs on CPUs, or "
            f"give it a cluster with GPUs; where one adds nodes on demand, say how many workers to wait for"
        )
    return share


def calls_at_once(share: float) -> int:
    """Return how many calls an actor works on: beside a GPU both of those in flight, so that the GPU does not wait."""
    return IN_FLIGHT if share else 1


def room(share: float, draining: Set[str] = frozenset()) -> int:
    """Return how many workers the staying nodes have room for: by GPUs, or one per core if workers use none."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining]
    unit, each = ("GPU", share) if share else ("CPU", 1.0)
    return max(1, sum(int(resources.get(unit, 0.0) / each) for resources in nodes))


def _check_own_node(node: str) -> None:
    """Check that the node of Ray that this process is connected to is there: without it no worker can be reached."""
    nodes = {each["NodeID"]: each for each in ray.nodes()}
    if node in nodes and not nodes[node]["Alive"]:
        raise EngineError(
            f"the node of the Ray cluster that this command is connected to ({nodes[node]['NodeManagerAddress']}) is "
            f"gone: what is published stays, and the same command resumes on a cluster that answers"
        )


def _draining_nodes() -> set[str]:
    """Return the nodes that will be taken away soon. Ray has no public way to ask; its own Serve asks like this."""
    try:
        nodes = ray._private.worker.global_worker.gcs_client.get_draining_nodes(timeout=5)
    except Exception:  # the head is away for a moment
        return set()
    return {node if isinstance(node, str) else node.hex() for node in nodes}


def _is_blameless(error: RayError, worker: HiredActor) -> bool:
    """Say whether the worker was taken away: preempted, out of reach, or with its whole node."""
    if isinstance(error, ActorUnavailableError) or getattr(error, "preempted", False):
        return True
    if worker.home is None:
        return "node" in str(error) and "died" in str(error) and "its node" in str(error)
    return worker.home.node not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}
