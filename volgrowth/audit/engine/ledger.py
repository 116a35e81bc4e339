"""The ledger: what is still to be done, and what became of what failed. It knows neither Ray nor images.

A task that is lost together with its worker goes back and blames nobody, unless that happens to it again and again. A
task that fails is tried again; after the last attempt it is divided, if it can be, and its parts are tried, down to
what cannot be divided. A task may therefore run more than once, and must leave the same behind each time.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from volgrowth.errors import EngineError, VolgrowthError

ATTEMPTS = 3
# losses without blame after which a task is taken for their cause
LOSSES = 10
# parts in a row that failed for good, with nothing done in between, after which all would
HOPELESS = 5


@dataclass(frozen=True)
class Task:
    """A call of a worker's method.

    Attributes:
        name: unique, for errors.
        done: is given the answer; returns the tasks that follow from it.
        divide: is given the reason when the last attempt failed; returns the tasks that replace this one. None where
            a failure is no fault of what the task is about.
        part: whether it is the smallest that a division leads to: its failure is an answer about it.
    """

    name: str
    method: str
    arguments: tuple[Any, ...]
    done: Callable[[Any], Iterable["Task"]]
    divide: Callable[[str], Iterable["Task"]] | None = None
    attempts: int = ATTEMPTS
    part: bool = False


class Ledger:
    """Tasks in order, those that came back first. Tasks are taken from `tasks` one by one, never all at once."""

    def __init__(self, tasks: Iterable[Task]):
        self._coming, self._back = iter(tasks), deque[Task]()
        self._failures: dict[str, int] = {}
        self._losses: dict[str, int] = {}
        self._hopeless = 0

    def __bool__(self) -> bool:
        """Whether there is a task to take."""
        if not self._back and (task := next(self._coming, None)):
            self._back.append(task)
        return bool(self._back)

    def take(self) -> Task | None:
        """The next task, None when all are taken."""
        return self._back.popleft() if self._back else next(self._coming, None)

    def attempt(self, task: Task) -> int:
        """Number of the attempt that comes, from 1."""
        return self._failures.get(task.name, 0) + 1

    def give_back(self, tasks: Iterable[Task]) -> None:
        """Tasks that were not tried, in their order."""
        self._back.extendleft(reversed(list(tasks)))

    def done(self, task: Task, answer: Any) -> None:
        """A task was answered."""
        self._hopeless = 0
        self._failures.pop(task.name, None)
        self._losses.pop(task.name, None)
        self.give_back(task.done(answer))

    def lost(self, task: Task, reason: str) -> bool:
        """Its worker was taken away while it was at the task. Whether the task is blamed."""
        self._losses[task.name] = self._losses.get(task.name, 0) + 1
        if self._losses[task.name] % LOSSES == 0:
            self.failed(task, f"{LOSSES} workers were lost over it, the last one by {reason}")
            return True
        self.give_back([task])
        return False

    def refused(self, task: Task, error: VolgrowthError) -> None:
        """Data or output could not be read or written: the task is tried again, then the error is raised.

        Raises:
            VolgrowthError: `error`, at the last attempt.
        """
        if self.attempt(task) >= ATTEMPTS:
            raise error
        self._count(task)

    def failed(self, task: Task, reason: str) -> None:
        """The task is to blame.

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
                f"{what} ({reason}): what is published stays; mend the cause and run the same command again"
            )
        return self.give_back(task.divide(reason))

    def _count(self, task: Task) -> None:
        self._failures[task.name] = self.attempt(task)
        self.give_back([task])
