"""The leader algorithm for vectors in order: each joins the nearest leader before it, or else becomes one.

It compares by products of matrices, some vectors at a time, so that a cosine is exact but for the rounding of float32.
"""

from dataclasses import dataclass, field

import numpy as np

BATCH = 512
"""Vectors that are compared with leaders, and with each other, at once."""
COLUMNS = 1 << 13
"""Leaders that are compared with at once."""
ROUNDING = 1e-6
"""How much a cosine may be too small because of the rounding of float32, so that equal vectors are alike."""

Array = np.ndarray


@dataclass
class Leaders:
    """The leaders so far.

    Attributes:
        similarity: the cosine from which on two vectors are alike.
        count: of the leaders.
        names: of the leaders, (room,) int64.
        vectors: of the leaders, (room, d) float32.
    """

    similarity: float
    count: int = 0
    names: Array = field(default_factory=lambda: np.empty(0, np.int64))
    vectors: Array = field(default_factory=lambda: np.empty((0, 0), np.float32))

    def leading(self, vectors: Array) -> Array:
        """Return the leaders among vectors in order, (k, d)."""
        for start in range(0, len(vectors), BATCH):
            some = vectors[start : start + BATCH]
            self.take(np.arange(start, start + len(some)), some, np.ones(len(some), bool))
        return self.vectors[: self.count]

    def take(self, names: Array, vectors: Array, free: Array) -> tuple[Array, Array]:
        """Compare the next vectors with all leaders before them, and add those that become leaders.

        Args:
            names: (m,).
            vectors: (m, d).
            free: which may become leaders, (m,).

        Returns:
            The cosine of each with the nearest leader before it, (m,), and the leader's name, (m,): -1 if none is near
            enough.
        """
        least = self.similarity - ROUNDING
        cosine, leader = np.full(len(names), -np.inf, np.float32), np.full(len(names), -1)
        for start in range(0, self.count, COLUMNS):
            end = min(start + COLUMNS, self.count)
            _nearer(vectors @ self.vectors[start:end].T, self.names[start:end], cosine, leader)
        may = np.flatnonzero(free & (cosine < least))
        scores = vectors @ vectors[may].T
        scores[may >= np.arange(len(names))[:, None]] = -np.inf
        leads = _leads(scores[may] >= least)
        if leads.any():
            new = may[leads]
            _nearer(scores[:, leads], names[new], cosine, leader)
            self._add(names[new], vectors[new])
        leader[cosine < least] = -1
        return cosine, leader

    def _add(self, names: Array, vectors: Array) -> None:
        needed = self.count + len(names)
        if needed > len(self.names):
            room = max(2 * len(self.names), needed, BATCH)
            self.names = np.concatenate([self.names[: self.count], np.empty(room - self.count, np.int64)])
            more = np.empty((room - self.count, vectors.shape[1]), np.float32)
            self.vectors = np.concatenate([self.vectors[: self.count], more]) if self.count else more
        self.names[self.count : needed], self.vectors[self.count : needed] = names, vectors
        self.count = needed


def _nearer(scores: Array, names: Array, cosine: Array, leader: Array) -> None:
    """Change the nearest leader of each vector where one of these is nearer, by their cosines, (m, k)."""
    place = scores.argmax(axis=1)
    found = scores[np.arange(len(scores)), place]
    better = found > cosine
    cosine[better], leader[better] = found[better], names[place[better]]


def _leads(alike: Array) -> Array:
    """Return which vectors lead, (m,), when each is alike to these before it, (m, m)."""
    leads = np.ones(len(alike), bool)
    for one in np.flatnonzero(alike.any(axis=1)):
        leads[one] = not (alike[one] & leads).any()
    return leads
