"""Rows that stay, with their weights, and the files they go to: shared by the writers of all kinds of data sets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volgrowth.errors import DataError

WEIGHT = "volgrowth_weight"
"""Column of weights, or their extension in a tar; written only if the list has weights other than one."""


@dataclass(frozen=True)
class Kept:
    """The rows of a data set that stay.

    Attributes:
        mask: of the rows that stay, (n,) for all n rows.
        weight: of every row, (n,); None if all rows that stay weigh one.
    """

    mask: np.ndarray
    weight: np.ndarray | None

    @property
    def rows(self) -> int:
        """Number of rows that stay."""
        return int(self.mask.sum())

    def weights(self, start: int, stop: int) -> np.ndarray | None:
        """Return the weights of the rows from start to stop - 1 that stay; None if all weigh one."""
        return None if self.weight is None else self.weight[start:stop][self.mask[start:stop]]


def kept_file(stage: Path, name: str) -> Path:
    """Return the path in `stage` to write a file of the data set to, after making its folder.

    Raises:
        DataError: the file's name leads out of the data set's folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"file {name} of the data set lies outside of its folder: audit it by a pattern without ..")
    (stage / path).parent.mkdir(parents=True, exist_ok=True)
    return stage / path


def refuse_weights(where: str) -> None:
    """Raise a DataError: the data at `where` has weights already."""
    raise DataError(f"{where} has {WEIGHT} already: rename it, and audit again, or make a list without downweight")
