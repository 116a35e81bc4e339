"""The progress display of an audit: a bar on a terminal, or a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from volgrowth.plain import plain, print_plain

PLAIN_EVERY = 5.0
Told = Callable[[int, int], object]
"""A function that is told of progress, by the rows that are done and all rows."""
_told: ContextVar[Told | None] = ContextVar("told", default=None)
# how long no shard may be finished before the display says so
STALL_SECONDS = 60.0


@contextmanager
def told_of_progress(function: Told | None) -> Iterator[None]:
    """Have a function be told of the progress of everything that the block does; nobody for None."""
    token = _told.set(function)
    try:
        yield
    finally:
        _told.reset(token)


@dataclass
class AuditProgress:
    """Counts and shows shards, rows and failures.

    Args:
        rows: rows in total.
        shards: shards in total.
        done_rows: rows that earlier runs finished.
        done_shards: shards that earlier runs finished.
        oldest: the task that has waited longest for its answer, and its age in seconds.
        quiet: show nothing.
        doing: a word for the work, such as "auditing".
        unit: a word for the rows, such as "images".
    """

    rows: int
    shards: int
    done_rows: int = 0
    done_shards: int = 0
    failed: int = 0
    workers: int = 0
    oldest: tuple[str, float] | None = None
    quiet: bool = False
    doing: str = "auditing"
    unit: str = "images"
    _began: float = field(default_factory=time.monotonic)
    _printed: float = field(default_factory=time.monotonic)
    _advanced: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._resumed_rows = self.done_rows
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal and not self.quiet:
            columns = (
                TextColumn(self.doing),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(self._line(), total=self.rows, completed=self.done_rows)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif not self.quiet and kind is None:
            print(self._line(), file=sys.stderr, flush=True)

    def advance(self, rows: int, failed: int) -> None:
        """Count a finished shard of `rows` rows, `failed` of them without a score."""
        self._advanced = time.monotonic()
        self.done_rows += rows
        self.done_shards += 1
        self.failed += failed
        if told := _told.get():
            told(self.done_rows, self.rows)

    def say(self, line: str) -> None:
        """Print a line of its own, also while the bar is shown."""
        if self._bar:
            self._bar.console.print(plain(line), markup=False, highlight=False)
        elif not self.quiet:
            print_plain(line, error=True)

    def show(self) -> None:
        """Bring the display up to date. It may be called often."""
        if self._bar:
            self._bar.update(self._task, completed=self.done_rows, description=self._line())
        elif not self.quiet and time.monotonic() - self._printed >= PLAIN_EVERY:
            self._printed = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        scored = self.done_rows - self._resumed_rows
        rate = scored / max(time.monotonic() - self._began, 1e-9)
        left = f"{_clock((self.rows - self.done_rows) / rate)} left" if scored else "starting"
        return (
            f"{self.done_shards}/{self.shards} shards, {rate:,.0f} {self.unit}/s, {left}, {self.failed} failed, "
            f"{self.workers} workers{self._stall()}"
        )

    def _stall(self) -> str:
        """Say for how long no shard was finished, and which task is the oldest, if that is long."""
        still = time.monotonic() - self._advanced
        if still < STALL_SECONDS or not self.oldest or self.done_shards >= self.shards:
            return ""
        task, age = self.oldest
        return f", no shard for {spell_minutes(still)}, oldest task {task} ({spell_minutes(age)})"


def spell_minutes(seconds: float) -> str:
    """Return a time in words: in seconds below two minutes, else in minutes."""
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
