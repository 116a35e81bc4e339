"""The progress display of an audit: a bar on a terminal, or a line with a time of day now and then elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from volgrowth.plain import plain, print_plain

Told = Callable[[int, int], object]
"""A function that is told of progress, by the rows that are done and all rows."""
_told: ContextVar[Told | None] = ContextVar("told", default=None)
# seconds between plain lines in the first minute, and after it
PLAIN_EVERY, PLAIN_LATER = 5.0, 30.0
# how long no shard may be finished before the display says so
STALL_SECONDS = 60.0
# seconds and steps of the latest progress from which the speed is taken
RECENT_SECONDS, RECENT_STEPS = 120.0, 1000


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
    """Counts and shows rows and failures.

    Args:
        rows: rows in total.
        shards: shards in total.
        done_rows: rows of finished shards, at first of those that earlier runs finished.
        done_shards: shards that earlier runs finished.
        within: rows that are measured in shards which are not finished, as far as workers have told.
        oldest: the task that has waited longest for its answer, and its age in seconds.
        quiet: show nothing.
        doing: a word for the work, such as "auditing".
        unit: a word for the rows, such as "images".
    """

    rows: int
    shards: int
    done_rows: int = 0
    done_shards: int = 0
    within: int = 0
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
        self._most, self._last_line = self.done_rows, ""
        self._steps = deque([(self._began, self.done_rows)], maxlen=RECENT_STEPS)
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
            self._print()

    def advance(self, rows: int, failed: int) -> None:
        """Count a finished shard of `rows` rows, `failed` of them without a score."""
        self._advanced = time.monotonic()
        self.done_rows += rows
        self.within = max(0, self.within - rows)
        self.done_shards += 1
        self.failed += failed
        self._step()
        if told := _told.get():
            told(self.done_rows, self.rows)

    def move(self, within: int) -> None:
        """Say how many rows are measured in shards that are not finished."""
        if within != self.within:
            self.within = within
            self._step()

    def say(self, line: str) -> None:
        """Print a line of its own, also while the bar is shown."""
        if self._bar:
            self._bar.console.print(plain(line), markup=False, highlight=False)
        elif not self.quiet:
            print_plain(line, error=True)

    def show(self) -> None:
        """Bring the display up to date. It may be called often."""
        if self._bar:
            self._bar.update(self._task, completed=self._most, description=self._line())
        elif not self.quiet:
            now = time.monotonic()
            if now - self._printed >= (PLAIN_EVERY if now - self._began < 60 else PLAIN_LATER):
                self._printed = now
                self._print()

    def _print(self) -> None:
        """Print the line after the time of day, unless it is the line that was printed last."""
        line = self._line()
        if line != self._last_line:
            self._last_line = line
            print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    def _step(self) -> None:
        """Take note of the rows that are measured; a shard that is tried again takes none of them back."""
        rows = min(self.rows, self.done_rows + self.within)
        if rows > self._most:
            self._most = rows
            self._steps.append((time.monotonic(), rows))

    def _line(self) -> str:
        return (
            f"{self._most:,} of {self.rows:,} {self.unit}, {self._pace()}, {self.failed:,} failed, "
            f"{self.workers} worker{'' if self.workers == 1 else 's'}{self._stall()}"
        )

    def _pace(self) -> str:
        """Return the speed at the latest progress, and the time left, which from there on only falls."""
        last, rows = self._steps[-1]
        since, before = next(step for step in self._steps if last - step[0] <= RECENT_SECONDS)
        if since == last:
            since, before = self._steps[0]
        if rows == before:
            return "starting" if self._most < self.rows else "done"
        rate = (rows - before) / max(last - since, 1e-9)
        if self._most >= self.rows:
            return f"{rate:,.0f} {self.unit}/s"
        left = (self.rows - rows) / rate - (time.monotonic() - last)
        return f"{rate:,.0f} {self.unit}/s, {_clock(left) if left > 0.5 else 'moments'} left"

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
