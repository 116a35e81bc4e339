"""Cells of vectors, so that alike vectors are looked for inside of cells and not among all.

A cell has a pivot, which is one of the vectors, and a vector is in the cells of the pivots that are nearest to it,
`probes` of them: two vectors are compared if they share a cell. Pivots are a random sample, of which those are left out
that are near to another one, so that copies do not crowd them; what all vectors have in common, the mean of the sample,
is subtracted. How many probes are needed depends on the vectors and on how alike they must be, and is measured: sampled
vectors are moved, each as far as near duplicates may be apart and in the direction of a difference of two others, and
the smallest of `PROBES` is taken at which `ENOUGH` of them share a cell with what they were. The number of pivots makes
the two costs equal, to find the cells of the vectors and to compare what is in a cell; both grow as n^1.5.

Members of cells lie on the disk, in stretches: those of some vectors are sorted by cell in the memory and written, and
then those of the next ones. A cell is divided again if it has more leaders than `FEW`, as its sample tells. Vectors
that are alike to few leaders are cheap to compare, however many they are, and are not divided.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from volgrowth.analysis.leaders import Leaders

FEW = 1 << 15
"""Leaders that are compared with each other without cells."""
PROBES = (6, 8, 12, 16, 24, 32)
"""Cells of a vector, as many as are needed."""
ENOUGH, TRIED = 0.99, 1024
"""Share of vectors, and most of them, that must share a cell with what is as far away as a near duplicate may be."""
DEEPEST = 2
"""Times that vectors are divided."""
SHRUNK = 8
"""Times that a cell must become smaller, on average, when it is divided: each vector is in `probes` of the new ones."""
MEMBERS = 1 << 22
"""Members of cells that are sorted in the memory at once."""
NUMBERS = 1 << 25
"""Numbers of the vectors of a sample: 128 MiB."""
SCORES = 1 << 23
"""Cosines of vectors and pivots at once: 32 MiB."""

Array = np.ndarray


@dataclass(frozen=True)
class Cell:
    """Positions of some vectors, rising, in stretches of a file.

    Attributes:
        path: of the file, int64; None if the cell has all vectors.
        starts: of the stretches, (stretches,).
        ends: of the stretches, (stretches,).
    """

    path: Path | None
    starts: Array
    ends: Array

    @classmethod
    def whole(cls, count: int) -> "Cell":
        """Return the cell of this many vectors, all there are."""
        return cls(None, np.array([0]), np.array([count]))

    def __len__(self) -> int:
        return int((self.ends - self.starts).sum())

    def blocks(self, size: int) -> Iterator[Array]:
        """Yield the positions in order, (size,) each but the last."""
        held = np.empty(0, np.int64)
        for first, end in zip(self.starts, self.ends, strict=True):
            for start in range(first, end, MEMBERS):
                count = min(MEMBERS, end - start)
                if self.path is None:
                    some = np.arange(start, start + count)
                else:
                    some = np.fromfile(self.path, np.int64, count, offset=8 * start)
                held = np.concatenate([held, some])
                whole = len(held) // size * size
                yield from held[:whole].reshape(-1, size)
                held = held[whole:]
        if len(held):
            yield held


@dataclass
class Division:
    """Divides vectors into cells.

    Attributes:
        read: returns the vectors at some positions, (k, d), all of length 1.
        similarity: the cosine from which on two are alike.
        folder: for files.
        check_room: raises an error if the disk has no room for so many bytes.
        files: made so far.
        shared: share of sampled vectors that share a cell with what is as far away as a near duplicate may be, the
            smallest of all divisions; 1 if nothing was divided.
    """

    read: Callable[[Array], Array]
    similarity: float
    folder: Path
    check_room: Callable[[int], None]
    files: int = 0
    shared: float = 1.0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def divide(self, cell: Cell, times: int = DEEPEST) -> Iterator[Cell]:
        """Yield the cells of what is in one cell: itself if it has few leaders."""
        if not times or len(cell) <= FEW:
            yield cell
            return
        sample = self._sample(cell)
        distinct = Leaders(self.similarity).leading(sample)
        leaders = len(cell) * len(distinct) // len(sample)
        if leaders <= FEW:
            yield cell
            return
        del sample
        pivots, probes, shared = _pivots(distinct, leaders, self.similarity, self.random)
        del distinct
        if len(pivots.vectors) < SHRUNK * probes:
            yield cell
            return
        self.shared = min(self.shared, shared)
        for part in self._parts(cell, pivots, probes):
            if len(part) > 1:
                yield from self.divide(part, times - 1)

    def _sample(self, cell: Cell) -> Array:
        """Return random vectors of a cell, in a random order."""
        width = self.read(next(cell.blocks(1))).shape[1]
        count = min(len(cell), PROBES[-1] * math.isqrt(len(cell)) // 2, max(NUMBERS // width, 1))
        chosen = np.sort(self.random.choice(len(cell), count, replace=False))
        positions, before = list[Array](), 0
        for block in cell.blocks(MEMBERS):
            first, end = np.searchsorted(chosen, [before, before + len(block)])
            positions.append(block[chosen[first:end] - before])
            before += len(block)
        return self.read(self.random.permutation(np.concatenate(positions)))

    def _parts(self, cell: Cell, pivots: "Pivots", probes: int) -> Iterator[Cell]:
        """Write the members of the cells of pivots, and yield these cells."""
        self.check_room(8 * probes * len(cell))
        path = self.folder / f"cells-{self.files}"
        self.files += 1
        bounds, written = list[Array](), 0
        with path.open("wb") as file:
            for positions in cell.blocks(max(MEMBERS // probes, 1)):
                size = max(SCORES // len(pivots.vectors), 64)
                blocks = [positions[start : start + size] for start in range(0, len(positions), size)]
                cells = np.concatenate([pivots.nearest(self.read(block), probes) for block in blocks]).ravel()
                order = np.argsort(cells, kind="stable")
                file.write(np.ascontiguousarray(positions[order // probes]).tobytes())
                counts = np.bincount(cells, minlength=len(pivots.vectors))
                bounds.append(written + np.concatenate([[0], np.cumsum(counts)]))
                written += len(cells)
        edges = np.array(bounds)
        for one in range(len(pivots.vectors)):
            yield Cell(path, edges[:, one], edges[:, one + 1])


@dataclass(frozen=True)
class Pivots:
    """Directions from the mean of vectors, (k, d), each of length 1, and the mean's share of a product with each."""

    vectors: Array
    offset: Array

    def nearest(self, vectors: Array, count: int) -> Array:
        """Return which pivots are nearest to each vector, (n, count) int32, the nearest first."""
        scores = vectors @ self.vectors.T
        scores -= self.offset
        found, each = np.empty((len(vectors), count), np.int32), np.arange(len(vectors))
        for one in range(count):
            found[:, one] = scores.argmax(axis=1)
            scores[each, found[:, one]] = -np.inf
        return found


def _pivots(distinct: Array, leaders: int, similarity: float, random: np.random.Generator) -> tuple[Pivots, int, float]:
    """Choose pivots, how many of them a vector needs, and the share of vectors for which these are enough.

    Args:
        distinct: vectors of which no two are alike, (k, d), in a random order.
        leaders: how many such vectors there are.
        similarity: the cosine from which on two are alike.
        random: for the directions in which vectors are moved.
    """
    tried = min(TRIED, len(distinct) // 4)
    some, rest = distinct[:tried], distinct[tried:]
    away = rest[random.integers(len(rest), size=tried)] - rest[random.integers(len(rest), size=tried)]
    away -= np.einsum("ij,ij->i", away, some)[:, None] * some
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    moved = similarity * some + math.sqrt(max(1 - similarity**2, 0)) * away
    mean = rest.mean(axis=0)
    directions = rest - mean
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
    for probes in PROBES:
        count = min(max(probes * math.isqrt(leaders) // 2, 2 * probes), len(rest))
        pivots = Pivots(directions[:count], directions[:count] @ mean)
        one, other = pivots.nearest(some, min(probes, count)), pivots.nearest(moved, min(probes, count))
        shared = float((one[:, :, None] == other[:, None]).any(axis=(1, 2)).mean())
        if shared >= ENOUGH:
            break
    return pivots, one.shape[1], shared
