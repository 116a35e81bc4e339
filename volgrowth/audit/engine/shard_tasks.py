"""Scoring a shard as tasks: the whole shard first, and if that fails again and again, its halves, down to the row.

The scores of the halves are forgotten: they only show which rows end their process, or never end. Then the whole shard
is scored, with these rows recorded as `crashed` or `timed_out`. A shard that is bisected costs about three times its
own scoring, and each attempt that never ends the time after which its worker is ended.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.output.manifest import Shard
from volgrowth.audit.output.runs import Tally
from volgrowth.errors import EngineError
from volgrowth.records import Failure

Report = Callable[[Shard, Tally], list[Task]]
"""Called after each shard is published; returns follow-up tasks."""


@dataclass
class ShardTasks:
    """The tasks that score one shard.

    Attributes:
        shard: the rows, and the fragment that will hold their scores.
        report: called after the shard is published.
        rows: score only these rows, of a shard that is published; None for all.
        failures: rows that are known to end their process or never to end, and which of it.
    """

    shard: Shard
    report: Report
    rows: Sequence[int] | None = None
    failures: dict[int, Failure] = field(default_factory=dict)
    _open: int = 0
    _found: int = 0

    def task(self) -> Task:
        """Return the task that scores and publishes the shard."""
        shard = self.shard
        name = f"rows {shard.start} to {shard.stop - 1} of {shard.folder}"
        arguments = shard, self.rows, dict(self.failures)
        done, size = lambda tally: self.report(shard, tally), len(self._asked())
        return Task(name, "score", arguments, done, self._bisect, rows=size)

    def _asked(self) -> Sequence[int]:
        return range(self.shard.start, self.shard.stop) if self.rows is None else self.rows

    def _bisect(self, failure: Failure) -> list[Task]:
        left = [row for row in self._asked() if row not in self.failures]
        self._found = len(self.failures)
        return self._halves(left, failure)

    def _halves(self, rows: Sequence[int], failure: Failure) -> list[Task]:
        """Return tasks for both halves of some rows, or record the failure of a single row."""
        if len(rows) == 1:
            self.failures[rows[0]] = failure
            return self._ended(failure.reason)
        middle = len(rows) // 2
        self._open += 2
        return [self._probe(rows[:middle]), self._probe(rows[middle:])]

    def _probe(self, rows: Sequence[int]) -> Task:
        single = len(rows) == 1

        def done(_: Tally) -> list[Task]:
            self._open -= 1
            return self._ended("no row of them does")

        def divide(failure: Failure) -> list[Task]:
            self._open -= 1
            return self._halves(rows, failure)

        name = f"row {rows[0]}" if single else f"rows {rows[0]} to {rows[-1]}"
        name = f"{name} of {self.shard.folder} by themselves"
        attempts = {} if single else {"attempts": 1}
        return Task(
            name, "probe", (self.shard, rows), done, divide, part=single, rows=len(rows), alike="score", **attempts
        )

    def _ended(self, reason: str) -> list[Task]:
        """Return the task for the whole shard again, once every part has been tried."""
        if self._open:
            return []
        if len(self.failures) == self._found:
            raise EngineError(
                f"{self.task().name} fail together and not apart ({reason}): audit into a new output with a smaller "
                f"batch_size, or raise hang_minutes if they only take long"
            )
        return [self.task()]
