"""From p-values to flags with a promised false-discovery rate.

Tests are pictures (`analysis.distinct`): an image with its copies and near duplicates is one discovery, not many.
Benjamini-Hochberg keeps the expected share of false flags below the rate for p-values that are independent or, as
conformal ones against a common calibration set, positively dependent (Bates et al., arXiv 2104.08279).
Benjamini-Yekutieli keeps it whatever the dependence, at the price of a factor 1 + 1/2 + ... + 1/tests.

Without held-out images there is only an empirical null, and its promise is an assumption: that at most a share
1 - `TAIL[1]` of the images are memorized, and that the excess e of all others falls off at least exponentially beyond
its upper quartile. With the quantiles q_a, q_b of the distinct images' excess at a, b = `TAIL`, which memorized images
hardly move,

    p = (1 - a) exp(-(e - q_a) / beta),      beta = (q_b - q_a) / log((1 - a) / (1 - b))
"""

from dataclasses import dataclass
from math import ceil, log
from typing import Literal

import numpy as np

FDR = 0.1
TAIL = (0.75, 0.95)


def q_values(p_value: np.ndarray, test: np.ndarray, method: Literal["bh", "by"] = "bh") -> np.ndarray:
    """Adjust p-values over tests.

    Args:
        p_value: (n,).
        test: id of each row's test, such as its picture, (n,); all rows of a test have its p-value.
        method: `bh`, Benjamini-Hochberg, or `by`, Benjamini-Yekutieli.

    Returns:
        q-values, (n,).
    """
    if not len(p_value):
        return np.empty(0)
    from scipy.stats import false_discovery_control  # half a second to import, and only an analysis needs it

    _, first, inverse = np.unique(test, return_index=True, return_inverse=True)
    return false_discovery_control(p_value[first], method=method)[inverse]


@dataclass(frozen=True)
class AssumedTail:
    """The exponential tail that is assumed without held-out images.

    Attributes:
        start: the excess up to which p-values are 1: the upper quartile.
        scale: excess over which p-values fall by a factor e; None where the excess does not vary enough.
    """

    start: float
    scale: float | None

    @classmethod
    def of(cls, excess: np.ndarray) -> "AssumedTail":
        """Return the tail of the excess of distinct images, (n,)."""
        low, high = np.quantile(excess, TAIL)
        scale = (high - low) / log((1 - TAIL[0]) / (1 - TAIL[1]))
        return cls(low, scale if scale > 0 else None)

    def p_values(self, excess: np.ndarray) -> np.ndarray:
        """Return the p-values of images with this excess, (n,)."""
        if self.scale is None:
            return np.ones(len(excess))
        beyond = np.maximum(excess - self.start, 0) / self.scale
        return np.where(excess <= self.start, 1.0, (1 - TAIL[0]) * np.exp(-beyond))


def fewest_flags(tests: int, p_value: float, fdr: float = FDR) -> int:
    """Return how many of `tests` images must have a p-value as small as this before any of them is flagged.

    k flags need p <= fdr k / tests. With m held-out images and no tail p is at least 1 / (1 + m).
    """
    return max(1, ceil(tests * p_value / fdr * (1 - 1e-12)))


def rows_needed(tests: int, flags: int, fdr: float = FDR) -> int:
    """Return how many held-out images it takes to flag `flags` of `tests` images that exceed all of them.

    So many are enough whatever the tail; where one can be fitted, fewer may be.
    """
    return max(0, ceil(tests / (fdr * max(flags, 1))) - 1)
