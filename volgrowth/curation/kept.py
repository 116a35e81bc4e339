"""Rows that stay, with their weights, and the files they go to: shared by the writers of all kinds of data sets."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volgrowth.errors import DataError
from volgrowth.sources.base import FilesSource
from volgrowth.sources.listing import SourceFile

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


def kept_entries(source: FilesSource, kept: Kept) -> Iterator[tuple[SourceFile, int]]:
    """Yield the files of a data set of which a row stays, each with the number of its first row."""
    for file, first in source.listing.entries(0, source.num_rows):
        if kept.mask[first : first + file.rows].any():
            yield file, first


def kept_file(folder: Path, name: str) -> Path:
    """Return the path in a folder to write a file of the data set to, after making the folder that it is in.

    Raises:
        DataError: the file's name leads out of the data set's folder.
    """
    check_inside(name)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    return folder / name


def check_inside(name: str) -> None:
    """Raise a DataError if the name of a file leads out of the data set's folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"file {name} of the data set lies outside of its folder: audit it by a pattern without ..")


def refuse_weights(where: str) -> None:
    """Raise a DataError: the data at `where` has weights already."""
    raise DataError(f"{where} has {WEIGHT} already: rename it, and audit again, or make a list without downweight")
