"""Complexity of images, as regressors that predict the growth that an image shows anyway.

Plain images look memorized: few directions around a flat image are plausible, so volume grows there in every model. On
the sets of the benchmark these columns explain 66% to 88% of the variance of the growth by traces
(docs/detection.md).
"""

from typing import Any

import numpy as np
import pyarrow as pa

from volgrowth.analysis.as_numpy import as_floats

REGRESSORS = ("log_png_bytes", "variance", "log_variance", "total_variation", "mean", "edge_density")

MEASURED = ("png_bytes", "variance", "total_variation", "mean", "edge_density")
"""Columns of scores that the regressors are made of."""

# variance below which images are equally flat: that of half a grey level
FLAT = (0.5 / 127.5) ** 2


def regressors(scores: pa.Table) -> np.ndarray:
    """Return the regressors of each row, (rows, len(REGRESSORS)) float64; NaN for a row without an image.

    Args:
        scores: a table with png_bytes, variance, total_variation, mean and edge_density, as in `records.SCORES`.
    """
    variance = as_floats(scores["variance"])
    log_bytes, log_variance = np.log(as_floats(scores["png_bytes"])), np.log(variance + FLAT)
    others = [as_floats(scores[name]) for name in ("total_variation", "mean", "edge_density")]
    return np.stack([log_bytes, variance, log_variance, *others], axis=1)


class TableRegressors:
    """The regressors of the rows of a table, computed of the rows that are asked for: most of them at no time at once.

    Args:
        scores: as `regressors` takes it.
        further: one more regressor of each row, (rows,).
    """

    def __init__(self, scores: pa.Table, further: np.ndarray | None = None):
        self.scores, self.further = scores.select(list(MEASURED)).combine_chunks(), further

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return the regressors of a slice of the rows, or of the rows at some positions."""
        some = self.scores[rows] if isinstance(rows, slice) else self.scores.take(pa.array(rows))
        found = regressors(some)
        return found if self.further is None else np.column_stack([found, self.further[rows]])
