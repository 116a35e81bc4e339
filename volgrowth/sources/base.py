"""A data set as rows with frozen identities.

A `Source` fixes an order of rows once: (file, row in file) becomes one global int64. Its fingerprint covers
file names, sizes and row counts, so that a resumed audit can tell whether it still looks at the same rows.
Opening a source reads listings and footers only; images are read by whoever calls `read`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from volgrowth.sources.listing import Listing, SourceFile


@dataclass(frozen=True)
class Request:
    """What the user asked for: a path, URL or id, and the options that say what in it is meant."""

    data: str
    split: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    condition_column: str | None = None


@dataclass(frozen=True)
class Row:
    """One row as stored. `data` is the encoded image, or None with the reason in `error`.

    `condition` is the class or the caption, None where the row has none or no column was asked for.
    """

    row: int
    image_id: str
    source: str
    data: bytes | None
    error: str | None = None
    condition: str | int | None = None


class Source(ABC):
    """Rows in a frozen order. Subclasses set `kind` and `listing` and write `read`."""

    kind: str
    listing: Listing
    condition_names: tuple[str, ...] | None = None
    """Names of the classes that integer conditions stand for, where the data set tells them."""

    @property
    def num_rows(self) -> int:
        """Rows over all files."""
        return self.listing.num_rows

    @property
    def num_files(self) -> int:
        """Files in the listing."""
        return self.listing.num_files

    @property
    def fingerprint(self) -> str:
        """sha256 over kind, file names, sizes and row counts, in the frozen order."""
        return self.listing.fingerprint

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Yield exactly the rows start..stop-1, in order, one `Row` each, whatever is wrong with them.

        Raises:
            ValueError: `start` and `stop` are not a range of this source.
            DataError: a file is not what it was when the data set was listed, or its store cannot be read.
        """


class FilesSource(Source):
    """Rows in files of many. Subclasses write `_read_file`."""

    def read(self, start: int, stop: int) -> Iterator[Row]:
        check_range(start, stop, self.num_rows)
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        for file, first in self.listing.entries(start, stop):
            yield from self._read_file(file, first, max(start - first, 0), min(stop - first, file.rows))

    @abstractmethod
    def _read_file(self, file: SourceFile, first: int, start: int, stop: int) -> Iterator[Row]:
        """Rows start..stop-1 of a file, whose first is row `first` of the data set; what is wrong is in `error`."""


def content_id(data: bytes) -> str:
    """The identity of an image in a data set without an id column."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_range(start: int, stop: int, num_rows: int) -> None:
    """Raise ValueError unless 0 <= start <= stop <= num_rows."""
    if not 0 <= start <= stop <= num_rows:
        raise ValueError(f"rows {start}..{stop} asked of a source of {num_rows}: need 0 <= start <= stop <= rows")
