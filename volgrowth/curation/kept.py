"""What the writers of all kinds share: which rows stay, with which weight, and where their files go."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volgrowth.errors import DataError

WEIGHT = "volgrowth_weight"
"""The column, or the extension in a tar, of weights; written where the list has weights other than one."""


@dataclass(frozen=True)
class Kept:
    """The rows that stay.

    Attributes:
        mask: (n,) of all rows of the data set.
        weight: (n,) or None, where all that stay weigh one.
    """

    mask: np.ndarray
    weight: np.ndarray | None

    @property
    def rows(self) -> int:
        """How many stay."""
        return int(self.mask.sum())

    def weights(self, start: int, stop: int) -> np.ndarray | None:
        """Of those of the rows start..stop-1 that stay."""
        return None if self.weight is None else self.weight[start:stop][self.mask[start:stop]]


def kept_file(stage: Path, name: str) -> Path:
    """Where a file of the data set is written; its folder is made.

    Raises:
        DataError: its name leads out of the data set's folder.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"file {name} of the data set lies outside of its folder: audit it by a pattern without ..")
    (stage / path).parent.mkdir(parents=True, exist_ok=True)
    return stage / path


def refuse_weights(where: str) -> None:
    """Raise that there are weights already."""
    raise DataError(f"{where} has {WEIGHT} already: rename it, and audit again, or make a list without downweight")
