"""The list of a data set's files in their frozen order, in bounded memory.

A listing is made of chunks, Arrow tables of at most `CHUNK_FILES` files each. One that is built keeps its first chunk
in memory and the others in a temporary folder; one that is stored gets its chunks from a function, such as one
that reads them where an audit has put them. Either way only a few chunks are held at a time.
"""

import hashlib
import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from volgrowth.errors import DataError
from volgrowth.sources.ordering import Sorted

CHUNK_FILES = 65_536
SCHEMA = pa.schema(
    [
        ("name", pa.binary()),  # as the file system has it: names need not be valid UTF-8
        ("size", pa.int64()),
        ("rows", pa.int64()),
        ("offsets", pa.list_(pa.int64())),
        ("tag", pa.string()),
    ]
)
_WHOLE = ("arrow", "hub")
"""Kinds whose rows have an order of their own, which is not that of their files."""
_KEPT = 4
"""Chunks that are kept after they were loaded."""
_SLICE = 1024
"""Files that become Python objects at a time."""


class SourceFile(NamedTuple):
    """One file of a data set.

    Attributes:
        name: relative to the data set.
        size: in bytes.
        rows: rows that the file holds.
        offsets: bytes at which a reader may begin, if the kind of data set has such.
        tag: what changes when the file is written again, as in `volgrowth.storage.places.Found`; "" if nothing tells.
            It is no part of the fingerprint: a copy of the data set has other times and the same rows.
    """

    name: str
    size: int
    rows: int
    offsets: tuple[int, ...] = ()
    tag: str = ""


class Listing:
    """The files of a data set; iterating it gives every file, those without rows as well.

    Made by `build`, `stored` or `extended`.

    Attributes:
        kind: the kind of data set.
        starts: number of the first row of each chunk.
        num_files: files over all chunks.
        num_rows: rows over all files.
        fingerprint: sha256 over kind, names, sizes and row counts, in order.
    """

    def __init__(
        self, kind: str, starts: list[int], num_files: int, num_rows: int, fingerprint: str, load: Callable
    ) -> None:
        self.kind, self.starts = kind, starts
        self.num_files, self.num_rows, self.fingerprint = num_files, num_rows, fingerprint
        self._load = load
        self._loaded = lru_cache(_KEPT)(load)

    @classmethod
    def build(cls, kind: str, files: Iterable[SourceFile], chunk_files: int = CHUNK_FILES) -> Self:
        """Return the listing of files that come in their frozen order.

        Args:
            kind: the kind of data set.
            files: iterated once.
            chunk_files: files of a chunk, at most; few in tests.
        """
        chunks, starts, num_files, num_rows = _Built(), [], 0, 0
        digest = hashlib.sha256(f"[{json.dumps(kind)}".encode())
        files = iter(files)
        while some := list(islice(files, chunk_files)):
            digest.update("".join(f", {json.dumps(file[:3])}" for file in some).encode())
            chunks.add(_table(some))
            starts.append(num_rows)
            num_files += len(some)
            num_rows += sum(file.rows for file in some)
        digest.update(b"]")
        return cls(kind, starts, num_files, num_rows, f"sha256:{digest.hexdigest()}", chunks)

    @classmethod
    def stored(cls, described: dict[str, Any], load: Callable[[int], pa.Table]) -> Self:
        """Return the listing that `describe` described, with its chunks from `load(index)`."""
        return cls(**described, load=load)

    @classmethod
    def extended(cls, old: Self, new: Self) -> Self:
        """Return the files of `old` in their order, then those that only `new` has: rows of `old` keep their numbers.

        Raises:
            DataError: a file of `old` is missing or another in `new`, or the kind has no files to add.
        """
        if old.kind in _WHOLE or old.kind != new.kind:
            what = f"was {old.kind} and is {new.kind}" if old.kind != new.kind else f"is of the kind {old.kind}"
            raise DataError(
                f"the data set {what}, and only parquet, folder and webdataset can gain files and keep the numbers of "
                "their rows: audit it into a new output"
            )
        return cls.build(old.kind, chain(old, _gained(old, new)))

    def describe(self) -> dict[str, Any]:
        """Return all but the chunks as JSON values, which `stored` takes."""
        names = ("kind", "starts", "num_files", "num_rows", "fingerprint")
        return {name: getattr(self, name) for name in names}

    def chunks(self) -> Iterator[pa.Table]:
        """Yield the chunks in order, each a table of `SCHEMA`."""
        return (self._load(index) for index in range(len(self.starts)))

    def entries(self, start: int, stop: int) -> Iterator[tuple[SourceFile, int]]:
        """Yield the files that hold some of the rows start..stop-1, each with the number of its first row."""
        if start >= stop:
            return
        for index in range(bisect_right(self.starts, start) - 1, bisect_right(self.starts, stop - 1)):
            table = self._loaded(index)
            ends = self.starts[index] + np.cumsum(table["rows"].to_numpy())
            low, high = np.searchsorted(ends, [start, stop - 1], side="right")
            for file, end in zip(_files(table.slice(low, high + 1 - low)), ends[low : high + 1], strict=True):
                if file.rows:
                    yield file, int(end) - file.rows

    def __iter__(self) -> Iterator[SourceFile]:
        for table in self.chunks():
            yield from _files(table)

    def __reduce__(self) -> Any:
        described = self.describe()
        return Listing, (*described.values(), self._load)


@dataclass
class _Built:
    """The chunks of a listing that was built: the first in memory, the others in files that go with this object."""

    first: pa.Table | None = None
    folder: tempfile.TemporaryDirectory | None = None
    count: int = 0

    def add(self, table: pa.Table) -> None:
        if not self.count:
            self.first = table
        else:
            self.folder = self.folder or tempfile.TemporaryDirectory(prefix="volgrowth-")
            pq.write_table(table, self._path(self.count))
        self.count += 1

    def __call__(self, index: int) -> pa.Table:
        return pq.read_table(self._path(index)) if index else self.first

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        return Path(self.folder.name) / f"{index}.parquet"

    def __getstate__(self) -> dict[str, Any]:
        if self.folder:
            raise TypeError("a listing in a temporary folder is not sent: store its chunks and send what describes it")
        return self.__dict__


def _table(files: list[SourceFile]) -> pa.Table:
    names, *others = zip(*files, strict=True)
    return pa.table([[os.fsencode(name) for name in names], *others], schema=SCHEMA)


def _files(table: pa.Table) -> Iterator[SourceFile]:
    for start in range(0, table.num_rows, _SLICE):
        columns = table.slice(start, _SLICE).to_pydict()
        # listings of older versions have no tags
        columns.setdefault("tag", [""] * len(columns["name"]))
        for name, size, rows, offsets, tag in zip(*(columns[name] for name in SCHEMA.names), strict=True):
            yield SourceFile(os.fsdecode(name), size, rows, tuple(offsets), tag)


def _gained(old: Listing, new: Listing) -> Iterator[SourceFile]:
    """Yield the files of `new` whose names `old` does not have, in order."""
    before = iter(Sorted.of(old))
    expected = next(before, None)
    for file in Sorted.of(new):
        if expected is None or file.name < expected.name:
            yield file
            continue
        if file[:3] != expected[:3]:
            _refuse(expected, file if file.name == expected.name else None)
        expected = next(before, None)
    if expected is not None:
        _refuse(expected, None)


def _refuse(before: SourceFile, now: SourceFile | None) -> None:
    held = f"held {before.rows} rows in {before.size} bytes"
    change = f"holds {now.rows} rows in {now.size} bytes now" if now else "is not there any more"
    raise DataError(
        f"{before.name} {held} when the data set was audited, and {change}: a data set may gain files and lose none; "
        "restore it, or audit into a new output"
    )
