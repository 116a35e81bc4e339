"""How long tasks take, and from what age on a task counts as hung."""

from collections import defaultdict, deque
from statistics import median

from volgrowth.audit.engine.ledger import Task

FACTOR = 10.0
"""How many times as old as usual a task is before it counts as hung."""
KEPT = 100


class Pace:
    """The seconds that a row takes in tasks of each kind, and those of the first task of each worker.

    Args:
        minutes: the least age at which a task counts as hung.
    """

    def __init__(self, minutes: float):
        self.least = 60 * minutes
        self._rows: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._firsts = deque[float](maxlen=KEPT)

    def note(self, task: Task, seconds: float, first: bool) -> None:
        """Note that a task was answered after so many seconds; `first` if it was the first one of its worker."""
        self._rows[task.alike or task.method].append(seconds / max(task.rows, 1))
        if first:
            self._firsts.append(seconds)

    def limit(self, task: Task, attempt: int, first: bool) -> float:
        """Return the age in seconds at which a task counts as hung.

        A worker's first task may compile the network, so it is compared with the first tasks of other workers too.
        Where no such task was answered yet, nothing says how long it takes: it is given ten times the least age, and
        more at each attempt.
        """
        rows = self._rows.get(task.alike or task.method)
        if not rows or (first and not self._firsts):
            return FACTOR * self.least * attempt
        usual = max(median(rows) * task.rows, median(self._firsts) if first else 0.0)
        return max(self.least, FACTOR * usual)
