"""Scoring a shard as tasks: the whole shard first, and if that fails again and again, its halves, down to the row.

The scores of the halves are forgotten: they only show which rows end their process. Then the whole shard is scored,
with these rows recorded as `crashed`. A shard that is bisected costs about three times its own scoring.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.output.manifest import Shard
from volgrowth.audit.output.runs import Tally
from volgrowth.errors import EngineError

Report = Callable[[Shard, Tally], list[Task]]
"""Called after each shard is published; returns follow-up tasks."""


@dataclass
class ShardTasks:
    """The tasks that score one shard.

    Attributes:
        shard: the rows, and the fragment that will hold their scores.
        report: called after the shard is published.
        rows: score only these rows, of a shard that is published; None for all.
        crashed: rows that are known to end their process, with the reason.
    """

    shard: Shard
    report: Report
    rows: Sequence[int] | None = None
    crashed: dict[int, str] = field(default_factory=dict)
    _open: int = 0
    _found: int = 0

    def task(self) -> Task:
        """Return the task that scores and publishes the shard."""
        shard = self.shard
        name = f"rows {shard.start} to {shard.stop - 1} of {shard.folder}"
        return Task(
            name, "score", (shard, self.rows, dict(self.crashed)), lambda tally: self.report(shard, tally), self._bisect
        )

    def _bisect(self, reason: str) -> list[Task]:
        rows = range(self.shard.start, self.shard.stop) if self.rows is None else self.rows
        left = [row for row in rows if row not in self.crashed]
        self._found = len(self.crashed)
        return self._halves(left, reason)

    def _halves(self, rows: Sequence[int], reason: str) -> list[Task]:
        """Return tasks for both halves of some rows, or record a single row as crashed."""
        if len(rows) == 1:
            self.crashed[rows[0]] = reason
            return self._ended(reason)
        middle = len(rows) // 2
        self._open += 2
        return [self._probe(rows[:middle]), self._probe(rows[middle:])]

    def _probe(self, rows: Sequence[int]) -> Task:
        single = len(rows) == 1

        def done(_: Tally) -> list[Task]:
            self._open -= 1
            return self._ended("no row of them does")

        def divide(reason: str) -> list[Task]:
            self._open -= 1
            return self._halves(rows, reason)

        name = f"row {rows[0]}" if single else f"rows {rows[0]} to {rows[-1]}"
        name = f"{name} of {self.shard.folder} by themselves"
        attempts = {} if single else {"attempts": 1}
        return Task(name, "probe", (self.shard, rows), done, divide, part=single, **attempts)

    def _ended(self, reason: str) -> list[Task]:
        """Return the task for the whole shard again, once every part has been tried."""
        if self._open:
            return []
        if len(self.crashed) == self._found:
            raise EngineError(
                f"{self.task().name} fail together and not apart ({reason}): audit into a new output with a smaller "
                f"batch_size"
            )
        return [self.task()]
