"""A folder of image files as rows, sorted by relative path."""

from collections.abc import Iterable, Iterator

from volgrowth.errors import DataError
from volgrowth.sources.base import FilesSource, Request, Row, content_id, too_large
from volgrowth.sources.conditions import OPTIONS
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.pixels.decoding import EXTENSIONS
from volgrowth.storage.places import Found, Place, printable, read_ahead


class FolderSource(FilesSource):
    """The image files in a folder and below, one row each, whether they can be decoded or not.

    A file that cannot be read is a row that says so, if it is there as it was listed. A file that has gone or has
    another size ends the run: scores of a data set that is not the one listed could not be measured again.

    The split is a folder in it, of whose images alone the data set is made. The arguments are those of `FilesSource`.

    Raises:
        DataError: a column was asked for, there is no such split, or there are no images.
    """

    kind = "folder"
    unit = "image file"

    def __init__(
        self, place: Place, request: Request, files: Iterable[Found] = (), listing: Listing | None = None
    ) -> None:
        _refuse_columns(request)
        self._below = f"{request.split.strip('/')}/" if request.split else ""
        super().__init__(place, request, files, listing)
        if not self.num_rows:
            folders = {file.name.partition("/")[0] for file in files if "/" in file.name}
            _refuse_empty(request.data, self._below, folders)

    def _scanned(self, files: Iterable[Found]) -> Iterable[SourceFile]:
        return (
            SourceFile(file.name, file.size, 1, (), file.tag) for file in files if file.name.startswith(self._below)
        )

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        return read_ahead(self._row, self.listing.entries(start, stop), self.place.threads)

    def _row(self, entry: tuple[SourceFile, int]) -> Row:
        file, row = entry
        name, most = printable(file.name), self.request.max_bytes
        if file.size > most:
            data, error, status = too_large(file.size, most)
            return Row(row, content_id(b""), name, data, error, status=status)
        data, error = self.place.read(file.name)
        size = len(data) if data is not None else self.place.size(file.name)
        if (size or 0) != file.size:
            self.place.changed(file.name, "nothing" if size is None else f"{size} bytes", f"{file.size}")
        return Row(row, content_id(data or b""), name, data, error)


def _refuse_empty(data: str, below: str, folders: set[str]) -> None:
    if below:
        raise DataError(
            f"{data} has no split {below[:-1]!r}: a split of an image folder is a folder in it with images, and it "
            f"has: {', '.join(sorted(folders)[:20]) or 'none'}. Leave split (--split) out to take all images"
        )
    raise DataError(
        f"{data.rstrip('/')}/{below} holds no images: expected files ending in {', '.join(sorted(EXTENSIONS))}, "
        "in it or in folders below"
    )


def _refuse_columns(request: Request) -> None:
    hint = (
        "; datasets.load_dataset('imagefolder', data_dir=...) takes class folders or metadata.csv into columns, and "
        "save_to_disk writes them"
    )
    for given, name, more in (
        ("image_column", request.image_column, ""),
        ("id_column", request.id_column, ""),
        (OPTIONS, request.condition_column, hint),
    ):
        if name:
            raise DataError(
                f"{request.data} holds no table, so {given} {name!r} has no meaning there: expected a folder with "
                f"parquet files, tars, or one written by save_to_disk, or leave {given} out for a folder of "
                f"images{more}"
            )
