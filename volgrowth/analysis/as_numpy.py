"""Columns of Arrow tables as NumPy arrays."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def as_mask(column: pa.ChunkedArray) -> np.ndarray:
    """Return a boolean column as a mask, (rows,) bool; null becomes False."""
    return pc.fill_null(column, False).to_numpy().astype(bool)


def as_floats(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of numbers as float64, (rows,); null becomes NaN. Not for hashes, which float64 would round."""
    return column.cast(pa.float64()).to_numpy()
