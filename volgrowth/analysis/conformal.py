"""From p-values to flags with a promised false-discovery rate.

Tests are distinct images: copies of one image are one discovery, not many. Benjamini-Hochberg keeps the expected share
of false flags below the rate for p-values that are independent or, as conformal ones against a common calibration set,
positively dependent (Bates et al., arXiv 2104.08279).
"""

from math import ceil

import numpy as np
from scipy.stats import false_discovery_control

FDR = 0.1


def q_values(p_value: np.ndarray, content: np.ndarray) -> np.ndarray:
    """(n,) Benjamini-Hochberg adjusted p-values over distinct images; copies share that of their first row."""
    if not len(p_value):
        return np.empty(0)
    _, first, inverse = np.unique(content, return_index=True, return_inverse=True)
    return false_discovery_control(p_value[first], method="bh")[inverse]


def fewest_flags(tests: int, calibration_rows: int, fdr: float = FDR) -> int:
    """How many of `tests` images must have the smallest possible p-value before that is enough for a flag.

    It is 1 / (1 + calibration_rows), and k flags need p <= fdr k / tests.
    """
    return max(1, ceil(tests / (fdr * (1 + calibration_rows))))


def rows_needed(tests: int, flags: int, fdr: float = FDR) -> int:
    """Held-out images with which `flags` images more extreme than all of them can be flagged."""
    return max(0, ceil(tests / (fdr * max(flags, 1))) - 1)
