"""Tar files as webdataset writes them, as rows: headers when opened, and from the nearest `STRIDE`th sample when read.

A sample is what consecutive members share as their key, see `tar_samples`. A sample's image is the member whose
extension is `image_column` or, without one, the one member with the extension of an image. Its condition is the content
of the member whose extension is `condition_column`; a sample without one, or with a link or more than `CONDITION_BYTES`
there, has none. Whatever else a tar holds is counted as left aside.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from volgrowth.errors import DataError
from volgrowth.sources.base import Encoded, FilesSource, Request, Row, content_id, too_large
from volgrowth.sources.conditions import condition_extension, condition_of
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.readers.splits import files_of_split
from volgrowth.sources.readers.tar_census import TarCensus
from volgrowth.sources.readers.tar_members import DamagedTarError, TarMember, TarMembers
from volgrowth.sources.readers.tar_samples import TarSample, tar_parts, tar_samples
from volgrowth.storage.places import Found, Place, printable, read_ahead

STRIDE = 64
"""Samples from one offset in the listing to the next. Stored listings are read by it: it never changes."""
BLOCK_BYTES = 4 << 20
"""Bytes fetched from a store at a time: for members smaller than this, reading on is faster than another request."""
CONDITION_BYTES = 1 << 20
"""Most bytes of a class or a caption; a larger one is none."""
_SCANS = 4
"""Local files that are scanned at a time."""
_SHOWN = 20
"""Extensions named in an error, at most."""
_KEY = "__key__"
"""The id column that stands for a sample's key."""
_PACKED = {
    **{b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"},
    **{b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7-zip"},
}


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
        self.keyed, self.found = request.id_column == _KEY, list[str]()
        wanted = request.condition_column
        self.condition = None if wanted is None else condition_extension(wanted, request.data, self.extension)
        super().__init__(place, request, files, listing)

    @property
    def columns_by_role(self) -> dict[str, str]:
        images = [self.extension] if self.extension else self.found
        named = {"image": images, "condition": [self.condition] if self.condition else []}
        extensions = {role: ", ".join(f".{each}" for each in some) for role, some in named.items() if some}
        return extensions | ({"id": _KEY} if self.keyed else {})

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        for file, first in self.listing.entries(start, stop):
            yield from self._read_file(file, first, max(start - first, 0), min(stop - first, file.rows))

    @contextmanager
    def open_file(self, file: Found | SourceFile) -> Iterator[TarMembers]:
        """Give the members of a tar of the data set, to be walked through in the block.

        Raises:
            DataError: the tar has changed, is packed, or is found to be cut off or damaged.
        """
        url = self.place.url(file.name)
        with self.place.open(file.name, file.size, BLOCK_BYTES) as stream:
            head = stream.read(8)
            for magic, packed in _PACKED.items():
                if head.startswith(magic):
                    refuse_packed(url, packed)
            try:
                yield TarMembers(stream, file.size)
            except DamagedTarError as error:
                raise DataError(f"{url} {error}") from None

    def _read_file(self, file: SourceFile, first: int, start: int, stop: int) -> Iterator[Row]:
        index = start // STRIDE * STRIDE
        name = printable(file.name)
        with self.place.open(file.name, file.size, BLOCK_BYTES) as stream:
            members = TarMembers(stream, file.size, file.offsets[index // STRIDE])

            def take(sample: TarSample, member: TarMember, found: str) -> None:
                if sample.index + index < start:
                    return
                most = self.request.max_bytes if found != self.condition else CONDITION_BYTES
                content = _content(members, member, most)
                if found != self.condition:
                    sample.content = content
                elif content.data is not None:
                    sample.condition = condition_of(content.data, found)

            try:
                for sample in tar_samples(members, self.extension, self.condition, take):
                    row = index + sample.index
                    if row >= start:
                        yield self._row(sample, first + row, name)
                    if row + 1 == stop:
                        return
            except DamagedTarError as error:
                self.place.changed(file.name, f"something else (it {error})", "whole samples")
        self.place.changed(file.name, f"less than {stop} samples", f"{file.rows}")

    def _row(self, sample: TarSample, row: int, file: str) -> Row:
        key, (data, error, status) = printable(sample.key), sample.content
        if sample.image is None:
            error = f"the sample holds no image: {', '.join(list(sample.extensions)[:_SHOWN])}"
        image_id = key if self.keyed else content_id(data or b"")
        return Row(row, image_id, f"{file}#{key}", data, error, sample.condition, status)

    def _scanned(self, files: Iterable[Found]) -> Iterator[SourceFile]:
        census = TarCensus(self.extension, self.condition)
        chosen = files_of_split(files, self.request.split, self.request.data)
        for file, counts in read_ahead(self._scan, chosen, max(self.place.threads, _SCANS)):
            census.merge(counts)
            yield file
        census.check(self.request.data)
        self.found = census.image_extensions[:_SHOWN]
        self.left_aside = (*self.left_aside, *census.left_aside())

    def _scan(self, file: Found) -> tuple[SourceFile, TarCensus]:
        """Return a file's rows and offsets, and the counts of what it holds."""
        offsets, census = list[int](), TarCensus(self.extension, self.condition)
        with self.open_file(file) as members:
            for part in tar_parts(members):
                if census.add(part) and (census.samples - 1) % STRIDE == 0:
                    offsets.append(part.member.start)
            census.close(members.archives, file.name, self.place.url(file.name))
        return SourceFile(file.name, file.size, census.samples, tuple(offsets), file.tag), census


def refuse_packed(url: str, packed: str = "compression") -> None:
    """Raise a DataError: a compressed tar cannot be read from its middle."""
    raise DataError(
        f"{url} is packed with {packed}, so that its samples cannot be sought: unpack it to a plain .tar first "
        "(images hardly shrink)"
    )


def _content(members: TarMembers, member: TarMember, max_bytes: int) -> Encoded:
    """Return the data of a member, or the reason why it has none."""
    if member.kind in ("hard link", "symbolic link"):
        return Encoded(
            None, "the image is a link in the tar, which is not followed (pack it with tar --hard-dereference -h)"
        )
    if member.kind != "file":
        return Encoded(None, f"the image is no regular member of the tar ({member.kind}), which is not expanded")
    if member.size > max_bytes:
        return too_large(member.size, max_bytes)
    data = members.content(member)
    return Encoded(data, None if data else "the image is empty")
