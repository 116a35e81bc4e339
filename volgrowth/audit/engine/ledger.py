"""The ledger: the tasks that are still to be done, and the rules for those that fail. It knows neither Ray nor images.

A task that is lost together with its worker goes back without blame, unless that happens to it again and again. A task
that fails is tried again; after the last attempt it is divided, if it can be, and its parts are tried, down to the
smallest. A task may therefore run more than once, and must leave the same behind each time.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from volgrowth.errors import EngineError, VolgrowthError
from volgrowth.records import Failure

ATTEMPTS = 3
# lost workers after which their task is blamed
LOSSES = 10
# smallest parts that fail for good in a row, with no task done in between, after which the run ends
HOPELESS = 5


@dataclass(frozen=True)
class Task:
    """A call of a worker's method.

    Attributes:
        name: unique; used in errors.
        method: the name of the worker's method.
        arguments: its arguments.
        done: called with the answer; returns follow-up tasks.
        divide: called with the failure of the last attempt; returns the tasks that replace this one. None if a
            failure says nothing about the input rows.
        attempts: how often the task is tried.
        part: True for the smallest part that a division leads to: a failure is a result about its row.
        rows: how much work it is, compared with other tasks of its kind.
        alike: the kind: tasks of one kind take about as long for a row; by default those of one method.
    """

    name: str
    method: str
    arguments: tuple[Any, ...]
    done: Callable[[Any], Iterable["Task"]]
    divide: Callable[[Failure], Iterable["Task"]] | None = None
    attempts: int = ATTEMPTS
    part: bool = False
    rows: int = 1
    alike: str = ""


class Ledger:
    """Hands out tasks, those that came back first. It takes in `tasks` a few at a time, never all at once.

    Each worker gets runs of tasks that follow one another: shards that lie in one file, or in one part of it that is
    read from its beginning, are then read by few workers. What one has in reserve at the end the others take over.
    """

    def __init__(self, tasks: Iterable[Task]):
        self._coming, self._back = iter(tasks), deque[Task]()
        self._runs: dict[Hashable, deque[Task]] = {}
        self._failures: dict[str, int] = {}
        self._losses: dict[str, int] = {}
        self._hopeless = 0

    def __bool__(self) -> bool:
        """Say whether there is a task to take."""
        if not self._back and not self._runs and (task := next(self._coming, None)):
            self._back.append(task)
        return bool(self._back or self._runs)

    def take(self, worker: Hashable = None, at_once: int = 1) -> Task | None:
        """Return a task, or None when all are taken.

        Args:
            worker: who takes it.
            at_once: tasks that are put into reserve for that worker if it has none left.
        """
        if self._back:
            return self._back.popleft()
        run = self._runs.pop(worker, None) or deque(islice(self._coming, at_once)) or self._half_of_longest()
        task = run.popleft() if run else None
        if run:
            self._runs[worker] = run
        return task

    def _half_of_longest(self) -> deque[Task]:
        """Take the later half of the longest reserve of a worker, which may be gone."""
        owner = max(self._runs, key=lambda each: len(self._runs[each]), default=None)
        longest = self._runs.pop(owner, deque())
        tasks = list(longest)
        kept, taken = tasks[: len(tasks) // 2], tasks[len(tasks) // 2 :]
        if kept:
            self._runs[owner] = deque(kept)
        return deque(taken)

    def attempt(self, task: Task) -> int:
        """Return the number of the next attempt at a task, from 1."""
        return self._failures.get(task.name, 0) + 1

    def give_back(self, tasks: Iterable[Task]) -> None:
        """Take back tasks that were not tried, in their order."""
        self._back.extendleft(reversed(list(tasks)))

    def done(self, task: Task, answer: Any) -> None:
        """Note that a task was answered, and take in the tasks that follow."""
        self._hopeless = 0
        self._failures.pop(task.name, None)
        self._losses.pop(task.name, None)
        self.give_back(task.done(answer))

    def lost(self, task: Task, reason: str) -> bool:
        """Note that a task's worker was taken away, and return True if the task is blamed for it."""
        self._losses[task.name] = self._losses.get(task.name, 0) + 1
        if self._losses[task.name] % LOSSES == 0:
            self.failed(task, Failure(f"{LOSSES} workers were lost over it, the last one by {reason}"))
            return True
        self.give_back([task])
        return False

    def refused(self, task: Task, error: VolgrowthError) -> None:
        """Note that data or output could not be read or written, and try the task again.

        Raises:
            VolgrowthError: `error` itself, at the last attempt.
        """
        if self.attempt(task) >= ATTEMPTS:
            raise error
        self._count(task)

    def failed(self, task: Task, failure: Failure) -> None:
        """Note that a task failed: try it again, or divide it after its last attempt.

        Raises:
            EngineError: it cannot be divided, or all parts fail.
        """
        if self.attempt(task) < task.attempts:
            return self._count(task)
        self._failures.pop(task.name, None)
        self._hopeless += task.part
        if task.divide is None or self._hopeless >= HOPELESS:
            many = f"{HOPELESS} rows failed, with none scored between them"
            what = many if task.divide else f"{task.name} failed {task.attempts} times"
            raise EngineError(
                f"{what} ({failure.reason}): what is published stays; mend the cause and run the same command again"
            )
        return self.give_back(task.divide(failure))

    def _count(self, task: Task) -> None:
        self._failures[task.name] = self.attempt(task)
        self.give_back([task])
