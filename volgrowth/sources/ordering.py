"""Any number of tuples is sorted in bounded memory: runs go sorted to a temporary file, and are merged when read."""

import heapq
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

RUN = 100_000
"""Tuples sorted in memory: some 20 MB of names."""
BLOCKS = 400
"""Blocks that a run is cut into: a merge holds one block of each run, so 400 runs take as much memory as one."""

T = TypeVar("T", bound=tuple[Any, ...])


class Sorted(Generic[T]):
    """A collection of tuples, which gives them in order each time it is iterated.

    Args:
        run: how many tuples are held in memory, about; few in tests.
    """

    def __init__(self, run: int = RUN) -> None:
        self._run = run
        self._count = 0
        self._waiting: list[T] = []
        self._file: Any = None
        self._runs: list[tuple[int, int]] = []

    @classmethod
    def of(cls, items: Iterable[T], run: int = RUN) -> Self:
        """Return the tuples of `items` in order."""
        made = cls(run)
        for item in items:
            made.add(item)
        return made

    def add(self, item: T) -> None:
        """Add one tuple."""
        self._waiting.append(item)
        self._count += 1
        if len(self._waiting) >= self._run:
            self._spill()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        self._waiting.sort()
        return heapq.merge(*map(self._read, self._runs), self._waiting)

    def _spill(self) -> None:
        self._waiting.sort()
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="volgrowth-")  # noqa: SIM115 - it lives as long as this object
        begin, size = self._file.seek(0, 2), max(1, self._run // BLOCKS)
        for start in range(0, len(self._waiting), size):
            pickle.dump(self._waiting[start : start + size], self._file)
        self._runs.append((begin, self._file.tell()))
        self._waiting = []

    def _read(self, place: tuple[int, int]) -> Iterator[T]:
        at, end = place
        while at < end:
            self._file.seek(at)  # others read in between
            block = pickle.load(self._file)
            at = self._file.tell()
            yield from block
