"""Near duplicates by an embedding that the user gives: images whose embeddings have a cosine of at least a threshold.

It works on the groups of `duplicates`, those of copies and of perceptual hashes, by the same leader algorithm: groups
come in order, those of most rows first, and each joins the leader that is nearest to it if that is near enough, or else
becomes one. A group is compared by the image that leads it.

Groups are compared inside of `cells`, cell by cell. A group may join a leader in one cell that then joins another one
itself, in a cell that comes later: groups without a leader are searched for again, in their cells, until there are
none. What comes out is what the leader algorithm would find if only groups that share a cell could be alike, whatever
the order of the cells. Vectors, members of cells and decisions lie on the disk; their files are open only while they
are read, so that they are no part of the memory of the process.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volgrowth.analysis.cells import PROBES, Cell, Division
from volgrowth.analysis.leaders import BATCH, Leaders
from volgrowth.errors import OutputError
from volgrowth.sources.base import Source
from volgrowth.sources.embeddings import read_embeddings

ROUNDS = 32
"""Times that groups whose leader joined another one are searched for again; those left after that lead themselves."""
ROW_BYTES = 8 * 4 + 4 + 1 + 8 * PROBES[-1]
"""Bytes of temporary files for each row beside its vector, in as many cells as there may be."""
PIECE = 128
"""Places of a file that are read from one mapping: each may bring some pages of the file into the memory."""
CHUNK = 1 << 17
"""Groups that are read in order at once."""

Array = np.ndarray


@dataclass(frozen=True)
class Stored:
    """An array on the disk: opened anew whenever it is read, so that what was read does not stay in the memory."""

    path: Path
    kind: type
    width: int = 0

    def fill(self, count: int, value: float) -> None:
        """Write this value so many times."""
        with self.path.open("wb") as file:
            for start in range(0, count, CHUNK):
                file.write(np.full(min(CHUNK, count - start), value, self.kind).tobytes())

    def mapped(self) -> Array:
        """Return the array, to be read and changed."""
        mapped = np.memmap(self.path, self.kind, "r+")
        return mapped.reshape(-1, self.width) if self.width else mapped

    def at(self, places: Array) -> Array:
        """Return what is in some places, copied into the memory."""
        if not self.width:
            found = [np.asarray(self.mapped()[places[start : start + PIECE]]) for start in range(0, len(places), PIECE)]
            return np.concatenate(found) if found else np.empty(0, self.kind)
        rows: Array = np.empty((len(places), self.width), self.kind)
        with self.path.open("rb", buffering=0) as file:  # a mapping would bring in many pages around each row
            for row, place in zip(rows, places.tolist(), strict=True):
                file.seek(place * row.nbytes)
                file.readinto(row.data)
        return rows


@dataclass
class Embeddings:
    """The embeddings of a data set's rows, in files of a temporary folder.

    Attributes:
        column: where they are from.
        similarity: the cosine from which on two images are near duplicates.
        folder: the temporary folder.
        rows: of the data set.
        count: rows that have an embedding.
        width: numbers of an embedding.
        joined: groups that joined another one.
        shared: as in `Division`.
        undecided: groups that lead themselves since `ROUNDS` did not decide which group they join.
    """

    column: str
    similarity: float
    folder: Path
    rows: int
    count: int = 0
    width: int = 0
    joined: int = 0
    shared: float = 1.0
    undecided: int = 0

    @property
    def numbers(self) -> dict[str, Any]:
        """What the summary says of them."""
        return {
            "column": self.column,
            "similarity": self.similarity,
            "dimension": self.width,
            "rows": self.count,
            "rows_without": self.rows - self.count,
            "joined_groups": self.joined,
            "shared_cells": self.shared,
            "undecided_groups": self.undecided,
        }

    @property
    def place(self) -> Stored:
        """Of each row, the number of its vector, (rows,); -1 for a row without one."""
        return Stored(self.folder / "place", np.int64)

    @property
    def vectors(self) -> Stored:
        """The vectors, of length 1, (count, width)."""
        return Stored(self.folder / "vectors", np.float32, self.width)

    def check_room(self, needed: int) -> None:
        """Raise an OutputError if the disk has no room for so many bytes of temporary files."""
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OutputError(
                f"the embeddings of {self.rows:,} rows take up to {needed:,} bytes of temporary files, and "
                f"{self.folder.parent} has room for {free:,}: make room there, or set TMPDIR to a folder with more; "
                "what is scored stays"
            )

    def join(self, batches: Iterable[Array]) -> Iterator[tuple[Array, Array]]:
        """Yield rows whose groups join another one, (k,), and the rows that lead those, (k,).

        Args:
            batches: a row of each group, in the order in which groups may lead; all are read before one joins another.
        """
        rows, places = Stored(self.folder / "rows", np.int64), Stored(self.folder / "places", np.int64)
        groups = 0
        with rows.path.open("wb") as named, places.path.open("wb") as placed:
            for some in batches:
                place = self.place.at(some)
                named.write(some[place >= 0].astype(np.int64).tobytes())
                placed.write(place[place >= 0].tobytes())
                groups += int((place >= 0).sum())
        if groups:
            decided = _Decided(self, places, groups)
            self.shared, self.undecided = decided.decide()
            for late, leader in decided.joined():
                self.joined += len(late)
                yield rows.at(late), rows.at(leader)


class _Decided:
    """Which group joins which, by their positions in the order.

    Args:
        embeddings: of the rows.
        places: the number of each group's vector, (groups,).
        groups: how many there are.
    """

    def __init__(self, embeddings: Embeddings, places: Stored, groups: int):
        self.similarity, self.folder, self.groups = embeddings.similarity, embeddings.folder, groups
        self.vectors, self.places, self.check_room = embeddings.vectors, places, embeddings.check_room
        self.leader = Stored(self.folder / "leader", np.int64)
        self.cosine = Stored(self.folder / "cosine", np.float32)
        self.open = Stored(self.folder / "open", np.bool_)

    def decide(self) -> tuple[float, int]:
        """Find the leader of each group: -1 if it leads itself. Returns `Embeddings.shared` and `undecided`."""
        for stored, value in ((self.leader, -1), (self.cosine, -1), (self.open, True)):
            stored.fill(self.groups, value)
        division = Division(self._read, self.similarity, self.folder, self.check_room)
        cells = list(division.divide(Cell.whole(self.groups)))
        for _ in range(ROUNDS):
            for cell in cells:
                if any(self.open.at(block).any() for block in cell.blocks(CHUNK)):
                    self._compare(cell)
            lost = self._reopen()
            if not lost:
                break
        return division.shared, lost

    def joined(self) -> Iterator[tuple[Array, Array]]:
        """Yield the groups that joined another one, (k,), and their leaders, (k,)."""
        for some in Cell.whole(self.groups).blocks(CHUNK):
            leader = self.leader.at(some)
            if (late := leader >= 0).any():
                yield some[late], leader[late]

    def _read(self, groups: Array) -> Array:
        return self.vectors.at(self.places.at(groups))

    def _compare(self, cell: Cell) -> None:
        """Compare the groups of a cell; those that joined one do not lead, and join a nearer one if there is one."""
        leaders = Leaders(self.similarity)
        for groups in cell.blocks(BATCH):
            before, least = self.leader.at(groups), self.cosine.at(groups)
            cosine, leader = leaders.take(groups, self._read(groups), before < 0)
            nearer = (leader >= 0) & ((cosine > least) | ((cosine == least) & (leader < before)))
            self.leader.mapped()[groups[nearer]] = leader[nearer]
            self.cosine.mapped()[groups[nearer]] = cosine[nearer]

    def _reopen(self) -> int:
        """Return how many groups joined one that joined another one; they are open again, and no others."""
        lost = 0
        for some in Cell.whole(self.groups).blocks(CHUNK):
            leader = self.leader.at(some)
            late = leader >= 0
            late[late] = self.leader.at(leader[late]) >= 0
            self.open.mapped()[some] = late
            lost += int(late.sum())
        for some in Cell.whole(self.groups).blocks(CHUNK):
            late = some[self.open.at(some)]
            self.leader.mapped()[late] = self.cosine.mapped()[late] = -1
        return lost


@contextmanager
def open_embeddings(source: Source, column: str, similarity: float) -> Iterator[Embeddings]:
    """Copy the embeddings of a data set to a temporary folder, which goes at the end.

    Raises:
        DataError: the column is not there, or holds something else.
        OutputError: the disk has no room.
    """
    with tempfile.TemporaryDirectory(prefix="volgrowth-") as name:
        embeddings = Embeddings(column, similarity, Path(name), source.num_rows)
        embeddings.check_room(embeddings.rows * ROW_BYTES)
        embeddings.place.fill(embeddings.rows, -1)
        with embeddings.vectors.path.open("wb") as file:
            for found in read_embeddings(source, column):
                if not embeddings.count:
                    embeddings.width = found.vectors.shape[1]
                    embeddings.check_room(embeddings.rows * (4 * embeddings.width + ROW_BYTES))
                embeddings.place.mapped()[found.rows] = embeddings.count + np.arange(len(found.rows))
                file.write(np.ascontiguousarray(found.vectors).tobytes())
                embeddings.count += len(found.rows)
        yield embeddings
