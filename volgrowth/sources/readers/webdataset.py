"""Tar files as webdataset writes them, as rows: headers when opened, and from the nearest `STRIDE`th sample when read.

A sample is what consecutive members share as their key: the name up to the first dot after the last slash. What
follows the dot is the member's extension. A sample's image is the member whose extension is `image_column` or,
without one, the member with the extension of an image; of several the one with the fewest dots, and of these the first
by alphabet (`jpg` before `seg.png` and `png`). Its condition is the content of the member whose extension is
`condition_column`; a sample without one, or with a link there, has none. Whatever else a sample holds is left aside.

The end of a tar is a block of zeros. A file without it was cut off or never closed, and is refused when opened.
"""

import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase

from volgrowth.errors import DataError
from volgrowth.sources.base import FilesSource, Request, Row, content_id
from volgrowth.sources.conditions import FLAGS, OPTIONS, condition_extension, condition_of
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.pixels.decoding import EXTENSIONS
from volgrowth.sources.readers.splits import files_of_split
from volgrowth.storage.places import Found, Place, printable, read_ahead

STRIDE = 64
"""Samples from one offset in the listing to the next. Stored listings are read by it: it never changes."""
BLOCK_BYTES = 4 << 20
"""Bytes fetched from a store at a time: for members smaller than this, reading on is faster than another request."""
_SCANS = 4
"""Local files that are scanned at a time."""
_SHOWN = 20
"""Extensions named in an error, at most."""
_KEY = "__key__"
"""The id column that stands for a sample's key."""
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_BROKEN = (tarfile.TarError, ValueError, OverflowError)
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


class WebDatasetSource(FilesSource):
    """The samples of tar files, in the order of the files' names.

    The split is one that the files' names tell. In the request `image_column` and `condition_column` are extensions,
    and `id_column` may be `__key__`. The arguments are those of `FilesSource`.

    Raises:
        DataError: a file is no whole tar, no sample has an image, none has a condition, a condition cannot have such
            an extension, or `choose_split` refuses.
    """

    kind = "webdataset"
    unit = "tar file"

    def __init__(
        self, place: Place, request: Request, files: Iterable[Found] = (), listing: Listing | None = None
    ) -> None:
        self.extension = request.image_column and request.image_column.lower().lstrip(".")
        if request.id_column not in (None, _KEY):
            raise DataError(
                f"{request.data} is a webdataset, and id_column was {request.id_column!r}: expected {_KEY}, a sample's "
                "key, or none, for the hash of its image (--id-column)"
            )
        self.keyed = request.id_column == _KEY
        wanted = request.condition_column
        self.condition = None if wanted is None else condition_extension(wanted, request.data, self.extension)
        super().__init__(place, request, files, listing)

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        for file, first in self.listing.entries(start, stop):
            yield from self._read_file(file, first, max(start - first, 0), min(stop - first, file.rows))

    @property
    def columns_by_role(self) -> dict[str, str]:
        named = {"image": self.extension, "condition": self.condition}
        extensions = {role: f".{extension}" for role, extension in named.items() if extension}
        return extensions | ({"id": _KEY} if self.keyed else {})

    @contextmanager
    def open_file(self, file: Found | SourceFile) -> Iterator[tarfile.TarFile]:
        """Give a tar of the data set, opened to read its headers.

        Raises:
            DataError: the tar has changed, is packed, or is found to be damaged in the block.
        """
        url = self.place.url(file.name)
        with self.place.open(file.name, file.size, BLOCK_BYTES) as stream:
            head = stream.read(8)
            stream.seek(0)
            for magic, packed in _PACKED.items():
                if head.startswith(magic):
                    refuse_packed(url, packed)
            try:
                yield _tar(stream)
            except _BROKEN as error:
                raise DataError(
                    f"{url} cannot be read as tar ({error}): it was cut off or damaged; copy or write it again"
                ) from None

    def _read_file(self, file: SourceFile, first: int, start: int, stop: int) -> Iterator[Row]:
        index = start // STRIDE * STRIDE
        name = printable(file.name)
        with self.place.open(file.name, file.size, BLOCK_BYTES) as stream:

            def take(sample: TarSample, member: tarfile.TarInfo, found: str) -> None:
                if sample.index + index < start:
                    return
                data, error = _content(tar, member)
                if found != self.condition:
                    sample.data, sample.error = data, error
                elif data is not None:
                    sample.condition = condition_of(data, found)

            try:
                stream.seek(file.offsets[index // STRIDE])
                tar = _tar(stream)
                for sample in tar_samples(tar, self.extension, self.condition, take):
                    row = index + sample.index
                    if row >= start:
                        yield self._row(sample, first + row, name)
                    if row + 1 == stop:
                        return
            except _BROKEN as error:
                self.place.changed(file.name, f"something else ({error})", "whole samples")
        self.place.changed(file.name, f"less than {stop} samples", f"{file.rows}")

    def _row(self, sample: "TarSample", row: int, file: str) -> Row:
        key, error = printable(sample.key), sample.error
        if sample.image is None:
            error = f"the sample holds no image: {', '.join(list(sample.extensions)[:_SHOWN])}"
        image_id = key if self.keyed else content_id(sample.data or b"")
        return Row(row, image_id, f"{file}#{key}", sample.data, error, sample.condition)

    def _scanned(self, files: Iterable[Found]) -> Iterator[SourceFile]:
        held, seen = Counter[str](), set[str]()
        chosen = files_of_split(files, self.request.split, self.request.data)
        for file, counted, extensions in read_ahead(self._scan, chosen, max(self.place.threads, _SCANS)):
            held += counted
            if len(seen) < _SHOWN:
                seen |= extensions
            yield file
        image = f".{self.extension}" if self.extension else "the extension of an image"
        asked = [("images", image, "image_column (--image-column)")]
        if self.condition:
            asked.append(("conditions", f".{self.condition}", f"{OPTIONS} ({FLAGS})"))
        for what, wanted, option in asked:
            if not held[what]:
                raise DataError(
                    f"{self.request.data} holds no {what}: no member of its tar files has {wanted}; they have "
                    f"{', '.join(sorted(seen)[:_SHOWN]) or 'none'}. Name another as {option}"
                )

    def _scan(self, file: Found) -> tuple[SourceFile, Counter[str], set[str]]:
        """Return a file's rows and offsets, how many have an image and how many a condition, and some extensions."""
        offsets, rows, held, extensions = list[int](), 0, Counter[str](), set[str]()
        with self.open_file(file) as tar:
            for sample in tar_samples(tar, self.extension):
                if sample.index % STRIDE == 0:
                    offsets.append(sample.offset)
                    extensions.update(sample.extensions)
                rows += 1
                held["images"] += sample.image is not None
                held["conditions"] += self.condition in sample.extensions
            _check_end(tar, self.place.url(file.name))
        return SourceFile(file.name, file.size, rows, tuple(offsets), file.tag), held, extensions


@dataclass
class TarSample:
    """Consecutive members of one key.

    Attributes:
        index: number of the sample, from 0 where reading began.
        key: the name that its members share.
        offset: byte at which its first header begins.
        extensions: those of its members, in order.
        image: the extension of its image, if it has one.
        data: the image, once it was read; None with the reason in `error`.
        condition: the class or caption, once it was read.
    """

    index: int
    key: str
    offset: int
    extensions: dict[str, None] = field(default_factory=dict)
    image: str | None = None
    data: bytes | None = None
    error: str | None = None
    condition: str | int | None = None


Take = Callable[[TarSample, tarfile.TarInfo, str], None]
"""Called with a sample, a member that is wanted of it, and the member's extension."""


def tar_samples(
    tar: tarfile.TarFile, extension: str | None, condition: str | None = None, take: Take | None = None
) -> Iterator[TarSample]:
    """Yield the samples of a tar.

    Args:
        tar: read from where it stands.
        extension: the extension of images; None for that of any image.
        condition: the extension of conditions, if they are wanted.
        take: called with each member that is the best image so far or the condition, which it may read.
    """
    sample: TarSample | None = None
    count = 0
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else it keeps every header
        match = _NAME.fullmatch(member.name)
        if match is None or member.isdir() or _META.match(member.name):
            continue
        key, found = match[1], match[2].lower()
        if sample is None or key != sample.key or found in sample.extensions:
            if sample is not None:
                yield sample
            sample = TarSample(count, key, member.offset)
            count += 1
        sample.extensions[found] = None
        best = _is_image(found, extension) and (sample.image is None or _rank(found) < _rank(sample.image))
        if best:
            sample.image = found
        if take and (best or found == condition):
            take(sample, member, found)
    if sample is not None:
        yield sample


def refuse_packed(url: str, packed: str = "compression") -> None:
    """Raise a DataError: a compressed tar cannot be read from its middle."""
    raise DataError(
        f"{url} is packed with {packed}, so that its samples cannot be sought: unpack it to a plain .tar first "
        "(images hardly shrink)"
    )


def _check_end(tar: tarfile.TarFile, url: str) -> None:
    """Raise a DataError unless the block of zeros follows that ends a tar."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if not block:
        raise DataError(
            f"{url} has no end mark: it was cut off, or never closed; copy or write it again or, if it is whole, "
            "append the mark (truncate -s +1024)"
        )
    if block != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{url} is damaged at byte {tar.offset}: no header of a tar is there; copy or write it again")


def _is_image(found: str, extension: str | None) -> bool:
    return found == extension if extension else os.path.splitext(f"x.{found}")[1] in EXTENSIONS


def _rank(extension: str) -> tuple[int, str]:
    return extension.count("."), extension


def _tar(stream: BufferedIOBase) -> tarfile.TarFile:
    return tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[bytes | None, str | None]:
    if not member.isreg():
        return None, "the image is a link in the tar, which is not followed"
    file = tar.extractfile(member)
    data = file.read() if file else b""
    return data, None if data else "the image is empty"
