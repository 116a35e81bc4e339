"""Near duplicates by an embedding that the user gives: images whose embeddings have a cosine of at least a threshold.

It works on the groups of `duplicates`, those of copies and of perceptual hashes, by the same leader algorithm: groups
come in order, those of most rows first, and each joins the leader that is nearest to it if that is near enough, or else
becomes one. A group is compared by the image that leads it.

The nearest leader is found by a graph of neighbours (HNSW, Malkov and Yashunin, arXiv 1603.09320) from the library
usearch, whose answer is checked by the exact cosine: it may miss a neighbour, and finds none that is not there. The
graph is built on one thread, so that equal embeddings make equal groups. Vectors lie on the disk; in the memory are the
vectors of a batch and a graph of at most `SHARD` leaders, since full ones are read from the disk as well.
"""

import importlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from volgrowth.errors import OutputError, UsageError
from volgrowth.sources.base import Source
from volgrowth.sources.embeddings import read_embeddings

BATCH = 1024
"""Groups that are compared with leaders, and with each other, at once."""
SHARD = 1 << 17
"""Leaders of one graph: of 512 numbers each about 160 MiB."""

Array = np.ndarray


def require_usearch() -> None:
    """Raise a UsageError if the library that compares embeddings is not installed."""
    _usearch()


def _usearch() -> Any:
    try:
        return importlib.import_module("usearch.index")
    except ImportError as error:
        raise UsageError(
            f"embedding_column needs the package usearch, which is not installed here ({error}): "
            "pip install 'volgrowth[embeddings]', or leave embedding_column out"
        ) from None


@dataclass
class Embeddings:
    """The embeddings of a data set's rows, in files of a temporary folder.

    Attributes:
        column: where they are from.
        similarity: the cosine from which on two images are near duplicates.
        folder: the temporary folder.
        place: of each row, the number of its vector, (rows,) int64; -1 for a row without one.
        vectors: of length 1, (vectors, d) float32.
        joined: groups that joined another one.
    """

    column: str
    similarity: float
    folder: Path
    place: Array
    vectors: Array
    joined: int = 0

    @property
    def numbers(self) -> dict[str, Any]:
        """What the summary says of them."""
        return {
            "column": self.column,
            "similarity": self.similarity,
            "dimension": self.vectors.shape[1],
            "rows": len(self.vectors),
            "rows_without": len(self.place) - len(self.vectors),
            "joined_groups": self.joined,
        }

    def of(self, rows: Array) -> Array:
        """Return the vectors of rows that have one, (k, d)."""
        return self.vectors[self.place[rows]]

    def join(self, batches: Iterable[Array]) -> Iterator[tuple[Array, Array]]:
        """Yield rows whose groups join another one, (k,), and the rows that lead those, (k,).

        Args:
            batches: a row of each group, in the order in which groups may lead.
        """
        leaders = _Leaders(self)
        for rows in batches:
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                some = some[self.place[some] >= 0]
                if len(some):
                    late, leader = leaders.take(some)
                    self.joined += len(late)
                    yield late, leader


@dataclass
class _Leaders:
    """The leaders so far, in graphs that know them by their rows."""

    embeddings: Embeddings
    full: list[Any] = field(default_factory=list)
    open: Any = None

    def take(self, rows: Array) -> tuple[Array, Array]:
        """Return which of some rows, (m,), join a leader, and which; the others become leaders."""
        vectors = self.embeddings.of(rows)
        leader = self._nearest(vectors)
        left = np.flatnonzero(leader < 0)
        alike = vectors[left] @ vectors[left].T >= self.embeddings.similarity
        leads = np.zeros(len(left), bool)
        for one in range(len(left)):
            before = np.flatnonzero(alike[one, :one] & leads[:one])
            if len(before):
                leader[left[one]] = rows[left[before[0]]]
            leads[one] = not len(before)
        self._add(rows[left[leads]], vectors[left[leads]])
        late = leader >= 0
        return rows[late], leader[late]

    def _nearest(self, vectors: Array) -> Array:
        """Return the row of the nearest leader of each vector, (m,); -1 where none is near enough."""
        best, leader = np.full(len(vectors), self.embeddings.similarity, np.float32), np.full(len(vectors), -1)
        for graph in [*self.full, *([self.open] if self.open is not None else [])]:
            found = np.asarray(graph.search(vectors, 1).keys).reshape(len(vectors), -1)[:, 0].astype(np.int64)
            cosine = np.einsum("ij,ij->i", vectors, self.embeddings.of(found))
            better = (cosine > best) | ((cosine == best) & (leader < 0))
            best[better], leader[better] = cosine[better], found[better]
        return leader

    def _add(self, rows: Array, vectors: Array) -> None:
        if not len(rows):
            return
        if self.open is None:
            self.open = _usearch().Index(ndim=vectors.shape[1], metric="ip", dtype="f16")
        self.open.add(rows.astype(np.uint64), vectors, threads=1)
        if len(self.open) >= SHARD:
            path = str(self.embeddings.folder / f"leaders-{len(self.full)}")
            self.open.save(path)
            self.full.append(_usearch().Index.restore(path, view=True))
            self.open = None


@contextmanager
def open_embeddings(source: Source, column: str, similarity: float) -> Iterator[Embeddings]:
    """Copy the embeddings of a data set to a temporary folder, which goes at the end.

    Raises:
        DataError: the column is not there, or holds something else.
        OutputError: the disk has no room.
        UsageError: the library is not installed.
    """
    require_usearch()
    with tempfile.TemporaryDirectory(prefix="volgrowth-") as name:
        folder, rows = Path(name), source.num_rows
        _check_room(folder, rows * 8, rows)
        place = np.memmap(folder / "place", np.int64, "w+", shape=(rows,))
        place[:] = -1
        count, width = 0, 0
        with (folder / "vectors").open("wb") as file:
            for found in read_embeddings(source, column):
                if not count:
                    width = found.vectors.shape[1]
                    _check_room(folder, rows * width * 4, rows)
                place[found.rows] = np.arange(count, count + len(found.rows))
                file.write(np.ascontiguousarray(found.vectors).tobytes())
                count += len(found.rows)
        vectors = np.empty((0, 0), np.float32)
        if count:
            vectors = np.memmap(folder / "vectors", np.float32, "r", shape=(count, width))
        yield Embeddings(column, similarity, folder, place, vectors)


def _check_room(folder: Path, needed: int, rows: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the embeddings of {rows:,} rows take {needed:,} bytes of temporary files, and {folder.parent} has room "
            f"for {free:,}: make room there, or set TMPDIR to a folder with more; what is scored stays"
        )
