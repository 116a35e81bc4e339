"""Tuples in order, however many: what does not fit is sorted in runs, in a temporary file, and merged when read."""

import heapq
import pickle
import struct
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

RUN = 100_000
"""Tuples sorted in memory: some 20 MB of names."""
BLOCKS = 400
"""Into how many a run is cut: a merge holds one block of each run, so 400 runs take what one takes."""

_LENGTH = struct.Struct("<Q")

T = TypeVar("T", bound=tuple[Any, ...])


class Sorted(Generic[T]):
    """The tuples that were added, in order each time it is iterated; memory is bounded by `run`."""

    def __init__(self, run: int = RUN) -> None:
        self._run = run
        self._count = 0
        self._waiting: list[T] = []
        self._file: Any = None
        self._runs: list[tuple[int, int]] = []

    @classmethod
    def of(cls, items: Iterable[T], run: int = RUN) -> Self:
        """With all of `items` added."""
        made = cls(run)
        for item in items:
            made.add(item)
        return made

    def add(self, item: T) -> None:
        """One more."""
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
            data = pickle.dumps(self._waiting[start : start + size])
            self._file.write(_LENGTH.pack(len(data)) + data)
        self._runs.append((begin, self._file.tell()))
        self._waiting = []

    def _read(self, place: tuple[int, int]) -> Iterator[T]:
        at, end = place
        while at < end:
            self._file.seek(at)  # others read in between
            (length,) = _LENGTH.unpack(self._file.read(_LENGTH.size))
            yield from pickle.loads(self._file.read(length))
            at += _LENGTH.size + length
