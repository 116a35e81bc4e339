"""p-values of changes, from those that count as no change: of held-out images, or the mirror image of all changes.

The formulas stand in `changes`. Changes come sorted, each distinct one with the number of images that have it, so that
none of these functions holds all of them.
"""

from collections.abc import Iterable, Iterator

import numpy as np

Counted = Iterable[tuple[np.ndarray, np.ndarray]]
"""Distinct changes in order, some at a time, and the number of images with each."""


def conformal_p_values(change: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return p-values of a rise and of a fall, (2, n), of changes (n,) against those of m unchanged images, (m,)."""
    return np.stack([_share_beyond(change, null), _share_beyond(-change, -null)])


def _share_beyond(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return the share of the null that is at least as large as each value, the value itself counted in, (n,)."""
    beyond = len(null) - np.searchsorted(np.sort(null), value, side="left")
    return (1 + beyond) / (1 + len(null))


def mirrored_p_values(
    rising: Counted, falling: Counted, median: float, images: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield changes, in rising order, and their p-values of a rise and of a fall, each against the mirror image of all.

    Args:
        rising: all changes, the smallest first.
        falling: the same, the largest first.
        median: of all changes.
        images: number of the images.

    Returns:
        Changes, (n,), and their p-values, (2, n).
    """
    others = _Falling(falling, median)
    for change, _ in rising:
        larger, as_large = others.count(-(change - median))
        yield change, (1 + np.stack([images - larger, as_large])) / (1 + images)


def median_change(rising: Counted, images: int) -> float:
    """Return the median of the changes of all images, of which there must be one; arguments as above."""
    middle, before, found = {(images - 1) // 2, images // 2}, 0, list[float]()
    for change, count in rising:
        ends = before + np.cumsum(count)
        found += [
            float(change[np.searchsorted(ends, place, "right")]) for place in middle if before <= place < ends[-1]
        ]
        before = int(ends[-1])
    return float(np.mean(found))


class _Falling:
    """Counts changes, less their median, above bounds that only fall: those above the last bound are forgotten."""

    def __init__(self, falling: Counted, median: float):
        self._falling, self._median, self._before = iter(falling), median, 0
        self._mirrored, self._count = np.empty(0), np.empty(0, np.int64)

    def count(self, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how many changes are above each of some falling bounds, and how many not below it, (n,) each."""
        while not len(self._mirrored) or self._mirrored[-1] <= -bounds[-1]:
            some = next(self._falling, None)
            if some is None:
                break
            self._mirrored = np.concatenate([self._mirrored, -(some[0] - self._median)])
            self._count = np.concatenate([self._count, some[1]])
        total = self._before + np.concatenate([[0], np.cumsum(self._count)])
        above, least = (np.searchsorted(self._mirrored, -bounds, side) for side in ("left", "right"))
        forgotten = above[-1]
        found = total[above], total[least]
        self._before = int(total[forgotten])
        self._mirrored, self._count = self._mirrored[forgotten:], self._count[forgotten:]
        return found
