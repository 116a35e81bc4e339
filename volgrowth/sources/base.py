"""A data set as rows with frozen identities.

A `Source` fixes an order of rows once: (file, row in file) becomes one global int64. Its fingerprint covers
file names, sizes and row counts, so that a resumed audit can tell whether it still looks at the same rows.
Opening a source reads listings and footers only; images are read by whoever calls `read`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from volgrowth.config import MAX_BYTES
from volgrowth.records import Status
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.opened import LeftAside, Opened
from volgrowth.storage.places import Found, Place, printable


@dataclass(frozen=True)
class Request:
    """The data set that the user asked for.

    Attributes:
        data: a path, a URL, a pattern or an id of the Hugging Face hub.
        split: name of the split, if it has several.
        image_column: the column, or in a webdataset the extension, that holds the images.
        id_column: the column that names the rows.
        condition_column: the column, or the extension, that holds classes or captions.
        max_bytes: the most bytes of an encoded image; a larger one is not read.
        configuration: name of the configuration of a data set of the hub, if it has several.
        kind: the kind of files that are the data set, where several lie together: parquet, webdataset, folder or arrow.
    """

    data: str
    split: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    condition_column: str | None = None
    max_bytes: int = MAX_BYTES
    configuration: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of a data set, as stored.

    Attributes:
        row: its number in the frozen order, from 0.
        image_id: the value of the id column, else the hash of `data`.
        source: the file and the row in it, for people.
        data: the encoded image; None if there is none, with the reason in `error`.
        condition: the class or the caption; None if the row has none, or no column was asked for.
        status: the status of a row without data.
    """

    row: int
    image_id: str
    source: str
    data: bytes | None
    error: str | None = None
    condition: str | int | None = None
    status: Status = Status.UNDECODABLE


class Source(ABC):
    """Rows in a frozen order. A subclass sets `kind`, `unit` and `listing`, and writes `_read` and `columns_by_role`.

    Attributes:
        kind: parquet, webdataset, folder, arrow or hub.
        unit: one of its files in words, such as "parquet file".
        listing: the files, in their frozen order.
        left_aside: what lies there and does not become rows; readers add to it by `leave_aside`.
        condition_names: names of the classes that integer conditions stand for, where the data set tells them.
    """

    kind: str
    unit: str
    listing: Listing
    left_aside: tuple[LeftAside, ...] = ()
    condition_names: tuple[str, ...] | None = None

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
        """The sha256 over kind, file names, sizes and row counts, in the frozen order."""
        return self.listing.fingerprint

    @property
    def columns_by_role(self) -> dict[str, str]:
        """The columns that are read, by role: "image", "id" or "condition"; in a webdataset extensions with dots."""
        return {}

    @property
    def opened(self) -> Opened:
        """What was opened and left aside, for people. It is complete where the data set was listed just now."""
        return Opened(self.unit, self.num_files, self.num_rows, self.columns_by_role, self.left_aside)

    def leave_aside(self, kind: str, count: int, why: str, example: str = "") -> None:
        """Note what lies there and does not become rows; nothing is noted for a count of 0.

        Args:
            kind: what it is, in the singular, such as "tar file".
            count: how many.
            why: the reason, and what would take it in if anything does.
            example: the name of one.
        """
        if count:
            self.left_aside = (*self.left_aside, LeftAside(kind, count, why, printable(example)))

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Yield exactly the rows start..stop-1, in order, one `Row` each, whatever is wrong with them.

        Raises:
            ValueError: `start` and `stop` are not a range of this source; raised at once.
            DataError: a file is not what it was when the data set was listed, or its store cannot be read.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise ValueError(
                f"rows {start}..{stop} asked of a source of {self.num_rows}: need 0 <= start <= stop <= rows"
            )
        return self._read(start, stop)

    @abstractmethod
    def _read(self, start: int, stop: int) -> Iterator[Row]: ...


class FilesSource(Source):
    """Rows of the files in a folder or a store. A subclass writes `_scanned`, which finds the rows of files.

    Args:
        place: the folder that names of files start from.
        request: the split and the columns that the user asked for.
        files: the files of this kind in `place`, sorted; iterated more than once, and not at all if there is a listing.
        listing: the listing of this data set when it was opened before.
    """

    def __init__(
        self, place: Place, request: Request, files: Iterable[Found] = (), listing: Listing | None = None
    ) -> None:
        self.place, self.request = place, request
        self.listing = listing or Listing.build(self.kind, self._scanned(files))

    @abstractmethod
    def _scanned(self, files: Iterable[Found]) -> Iterable[SourceFile]:
        """Yield the files that belong to the data set, in order, with their rows."""


class Encoded(NamedTuple):
    """An encoded image, or None with the reason why there is none and the status that its row gets."""

    data: bytes | None
    error: str | None = None
    status: Status = Status.UNDECODABLE


def too_large(size: int, max_bytes: int) -> Encoded:
    """Return what is known of an image of `size` encoded bytes, which is more than `max_bytes`: it is not read."""
    return Encoded(None, f"{size} encoded bytes, more than the limit of {max_bytes} (max_bytes)", Status.TOO_LARGE)


def bytes_hash(data: bytes) -> int:
    """Return the first 64 bits of the sha256 of an image's encoded bytes: those that `content_id` begins with."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def content_id(data: bytes) -> str:
    """Return the identity of an image in a data set without an id column: the hash of its encoded bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
