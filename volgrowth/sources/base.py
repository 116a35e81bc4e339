"""A data set as rows with frozen identities.

A `Source` fixes an order of rows once: (file, row in file) becomes one global int64. Its fingerprint covers
file names, sizes and row counts, so that a resumed audit can tell whether it still looks at the same rows.
Opening a source reads listings and footers only; images are read by whoever calls `read`.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFile:
    """One file of a data set: its name relative to the data set, its size in bytes, the rows it holds."""

    name: str
    size: int
    rows: int


@dataclass(frozen=True)
class Row:
    """One row as stored. `data` is the encoded image, or None with the reason in `error`."""

    row: int
    image_id: str
    source: str
    data: bytes | None
    error: str | None = None


class Source(ABC):
    """Rows in a frozen order. Subclasses fill `files` and write `read`."""

    kind: str
    files: tuple[SourceFile, ...]

    @property
    def num_rows(self) -> int:
        """Rows over all files."""
        return sum(file.rows for file in self.files)

    @property
    def fingerprint(self) -> str:
        """sha256 over kind, file names, sizes and row counts, in the frozen order."""
        listing = [self.kind, *([f.name, f.size, f.rows] for f in self.files)]
        return "sha256:" + hashlib.sha256(json.dumps(listing).encode()).hexdigest()

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Yield exactly the rows start..stop-1, in order, one `Row` each, whatever is wrong with them."""


def content_id(data: bytes) -> str:
    """The identity of an image in a data set without an id column."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
