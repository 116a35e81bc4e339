"""Rates of false discoveries from counts: how many pictures have each p-value decides all q-values.

With m pictures, of which r(p) have a p-value of at most p, the q-value of Benjamini and Hochberg at p is the smallest
of p' m / r(p') over all p-values p' >= p that occur. So the pictures need not be there at once, nor their p-values:
those that occur are counted and sorted by the database, and read once from the largest to the smallest. What is kept is
each p-value at which the q-value changes; the result is that of `error_rates.q_values` to the bit.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

LEAF = 2**20
"""Terms of the harmonic sum that are added up in one go."""


class Rates:
    """q-values by p-values.

    Args:
        counts: tables with the columns p and n: how many of the pictures have each p-value, the largest first.
        tests: number of the pictures.
    """

    def __init__(self, counts: Iterator[pa.Table], tests: int):
        smallest, larger = np.inf, 0
        p_values, q_values = [np.empty(0)], [np.empty(0)]
        for some in counts:
            p_value, count = some["p"].to_numpy(), some["n"].to_numpy()
            rank = tests - larger - (np.cumsum(count) - count)
            larger += int(count.sum())
            q_value = np.minimum.accumulate(np.concatenate([[smallest], p_value * (tests / rank)]))
            changes = np.diff(q_value) != 0
            smallest = q_value[-1]
            p_values.append(p_value[changes])
            q_values.append(q_value[1:][changes])
        self._p_value, self._q_value = (np.concatenate(some)[::-1].copy() for some in (p_values, q_values))
        self._harmonic = _harmonic(tests)

    def q_values(self, p_value: np.ndarray) -> np.ndarray:
        """Return the q-values by Benjamini and Hochberg of some of the counted p-values, (n,); NaN stays NaN."""
        return np.clip(self._found(p_value), 0, 1)

    def any_dependence(self, p_value: np.ndarray) -> np.ndarray:
        """Return the q-values by Benjamini and Yekutieli, likewise."""
        return np.clip(self._found(p_value) * self._harmonic, 0, 1)

    def _found(self, p_value: np.ndarray) -> np.ndarray:
        found = np.full(len(p_value), np.nan)
        known = np.flatnonzero(~np.isnan(p_value))
        found[known] = self._q_value[np.searchsorted(self._p_value, p_value[known])]
        return found


def _harmonic(count: int, start: int = 1) -> float:
    """Return 1 / start + ... over `count` terms, added up as NumPy adds them, and never held at once."""
    if count <= LEAF:
        return float(np.sum(1 / np.arange(start, start + count, dtype=float)))
    half = count // 2 // 8 * 8  # NumPy halves sums like this, so that few roundings add up
    return _harmonic(half, start) + _harmonic(count - half, start + half)
