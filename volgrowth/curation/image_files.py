"""Writers of webdataset tars and lists of image files without the samples that a curation list drops."""

import os
import tarfile
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO, NamedTuple

from volgrowth.curation.kept import WEIGHT, Kept, kept_file, refuse_weights
from volgrowth.errors import DataError
from volgrowth.sources.listing import SourceFile
from volgrowth.sources.readers.folder import FolderSource
from volgrowth.sources.readers.webdataset import BLOCK_BYTES, WebDatasetSource, tar_samples
from volgrowth.storage.places import printable, read_ahead

FILE_LIST = "files.txt"
WEIGHT_LIST = "weights.txt"
EXTENSION = f"{WEIGHT}.json"
"""Extension of the tar member that holds a sample's weight, a number that webdataset loaders decode."""


def write_kept_tars(source: WebDatasetSource, stage: Path, kept: Kept) -> None:
    """Write the tars of the data set with the samples that stay, byte for byte; a tar that keeps none is left out."""
    for file, first in source.listing.entries(0, source.num_rows):
        if kept.mask[first : first + file.rows].any():
            with (
                source.place.open(file.name, file.size, BLOCK_BYTES) as stream,
                open(kept_file(stage, file.name), "wb") as written,
            ):
                _write_tar(source, file, first, stream, written, kept)


class _Span(NamedTuple):
    """The bytes of a tar from one sample's first header to that of the next."""

    key: str
    start: int
    stop: int


def _write_tar(
    source: WebDatasetSource, file: SourceFile, row: int, stream: BufferedIOBase, written: BinaryIO, kept: Kept
) -> None:
    count = 0
    for span in _spans(source, file, kept.weight is not None):
        if not count:
            _copy(stream, written, 0, span.start)  # bytes before the first sample
        if count < file.rows and kept.mask[row + count]:
            _copy(stream, written, span.start, span.stop)
            if kept.weight is not None:
                _add(written, f"{span.key}.{EXTENSION}", repr(float(kept.weight[row + count])).encode())
        count += 1
    if count != file.rows:
        source.place.changed(file.name, f"{count} samples", f"{file.rows}")
    written.write(bytes(2 * tarfile.BLOCKSIZE))
    written.write(bytes(-written.tell() % tarfile.RECORDSIZE))


def _spans(source: WebDatasetSource, file: SourceFile, weighted: bool) -> Iterator[_Span]:
    """Yield the span of every sample. Headers are read from a second stream, so that the first is free to copy.

    Raises:
        DataError: the tar is damaged, or `weighted` and a sample has a weight already.
    """
    with source.open_file(file) as tar:
        before = None
        for sample in tar_samples(tar, None):
            if weighted and EXTENSION in sample.extensions:
                refuse_weights(f"sample {printable(sample.key)} of {source.place.url(file.name)}")
            if before is not None:
                yield _Span(before.key, before.offset, sample.offset)
            before = sample
        if before is not None:
            yield _Span(before.key, before.offset, tar.offset)


def _copy(stream: BufferedIOBase, written: BinaryIO, start: int, stop: int) -> None:
    stream.seek(start)
    while start < stop:
        data = stream.read(min(stop - start, BLOCK_BYTES))
        if not data:
            raise DataError("a tar ended while it was copied: it has changed; restore it, or start a new audit")
        written.write(data)
        start += len(data)


def _add(written: BinaryIO, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    written.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    written.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))


def write_file_list(source: FolderSource, stage: Path, kept: Kept) -> None:
    """Write the names of the files that stay, one a line, relative to the data set's folder, and their weights."""

    def checked(entry: tuple[SourceFile, int]) -> tuple[bytes, int] | None:
        file, row = entry
        if not kept.mask[row]:
            return None
        size = source.place.size(file.name)
        if (size or 0) != file.size:
            source.place.changed(file.name, "nothing" if size is None else f"{size} bytes", f"{file.size}")
        if "\n" in file.name:
            raise DataError(
                f"the name of {source.place.url(file.name)!r} has a line break in it, and a list has one name a line: "
                f"rename the file and audit again, or drop row {row} in the list"
            )
        return os.fsencode(file.name), row

    entries = source.listing.entries(0, source.num_rows)
    with open(stage / FILE_LIST, "wb") as names, _weights(stage, kept) as weights:
        for found in read_ahead(checked, entries, source.place.threads):
            if found:
                names.write(found[0] + b"\n")
                if kept.weight is not None:
                    weights.write(f"{float(kept.weight[found[1]])!r}\n".encode())


def _weights(stage: Path, kept: Kept) -> BinaryIO:
    return open(os.devnull if kept.weight is None else stage / WEIGHT_LIST, "wb")
