"""A folder of image files as rows, sorted by relative path."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from volgrowth.errors import DataError
from volgrowth.sources.base import FilesSource, Request, Row, content_id, too_large
from volgrowth.sources.conditions import OPTIONS
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.opened import Opened
from volgrowth.sources.readers.folder_metadata import Described, FolderMetadata, Note
from volgrowth.storage.places import Found, Place, printable, read_ahead


class FolderSource(FilesSource):
    """The image files in a folder and below, one row each, whether they can be decoded or not.

    A file that cannot be read is a row that says so, if it is there as it was listed. A file that has gone or has
    another size ends the run: scores of a data set that is not the one listed could not be measured again.

    The split is a folder in it, of whose images alone the data set is made. Ids and conditions come from tables beside
    the images: see `FolderMetadata`. The other arguments are those of `FilesSource`.

    Args:
        tables: the tables that lie in the folder; not looked at if there is a listing.

    Raises:
        DataError: there is no such split, there are no images, or no table has the columns that were asked for.
    """

    kind = "folder"
    unit = "image file"

    def __init__(
        self,
        place: Place,
        request: Request,
        files: Iterable[Found] = (),
        listing: Listing | None = None,
        tables: Iterable[Found] = (),
    ) -> None:
        self._metadata, notes = _metadata(place, request, listing, sorted(tables))
        self._below = f"{request.split.strip('/')}/" if request.split else ""
        super().__init__(place, request, files, listing)
        if not self.num_rows:
            folders = {file.name.partition("/")[0] for file in files if "/" in file.name}
            raise DataError(
                f"{request.data} has no split {request.split!r}: a split of an image folder is a folder in it with "
                f"images, and it has: {', '.join(sorted(folders)[:20]) or 'none'}. Leave split (--split) out to take "
                "all images"
            )

        if self._metadata is not None and listing is None:
            names = (file.name for file in self.listing if file.rows)
            for note in (*notes, *self._metadata.notes(names)):
                self.leave_aside(*note)

    @property
    def columns_by_role(self) -> dict[str, str]:
        named = {"id": self.request.id_column, "condition": self.request.condition_column}
        return {role: name for role, name in named.items() if name is not None}

    @property
    def opened(self) -> Opened:
        """The tables in the listing are no images."""
        return replace(super().opened, files=self.num_rows)

    def _scanned(self, files: Iterable[Found]) -> Iterable[SourceFile]:
        yield from self._metadata.entries if self._metadata is not None else ()
        for file in files:
            if file.name.startswith(self._below):
                yield SourceFile(file.name, file.size, 1, (), file.tag)

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        return read_ahead(self._row, self.listing.entries(start, stop), self.place.threads)

    def _row(self, entry: tuple[SourceFile, int]) -> Row:
        file, row = entry
        name, most = printable(file.name), self.request.max_bytes
        told = self._metadata.describe(file.name) if self._metadata is not None else Described()
        if file.size > most:
            data, error, status = too_large(file.size, most)
            return Row(row, told.id or content_id(b""), name, data, error, told.condition, status)
        data, error = self.place.read(file.name)
        size = len(data) if data is not None else self.place.size(file.name)
        if (size or 0) != file.size:
            self.place.changed(file.name, "nothing" if size is None else f"{size} bytes", f"{file.size}")
        return Row(row, told.id or content_id(data or b""), name, data, error, told.condition)


def _metadata(
    place: Place, request: Request, listing: Listing | None, tables: list[Found]
) -> tuple[FolderMetadata | None, list[Note]]:
    """Return the metadata that the columns of a request are in, and notes on tables without them; None without columns.

    Raises:
        DataError: the columns are not there.
    """
    if request.image_column is None and request.id_column is None and request.condition_column is None:
        return None, []
    if request.image_column is None and listing is not None:
        found = FolderMetadata.listed(place, request, listing)
        if found is not None:
            return found, []
    elif request.image_column is None and tables:
        return FolderMetadata.found(place, request, tables)
    raise _no_columns(request)


def _no_columns(request: Request) -> DataError:
    """Return the error that a column was asked for and there is no table."""
    hint = (
        "; a table metadata.csv or metadata.jsonl beside the images, with their names in the column file_name, would "
        "give it, and datasets.load_dataset('imagefolder', data_dir=...) takes class folders into the column label, "
        "which save_to_disk writes"
    )
    given, name, more = next(
        (given, name, more)
        for given, name, more in (
            ("image_column", request.image_column, ""),
            ("id_column", request.id_column, ""),
            (OPTIONS, request.condition_column, hint),
        )
        if name is not None
    )
    return DataError(
        f"{request.data} holds no table, so {given} {name!r} has no meaning there: expected a folder with parquet "
        f"files, tars, or one written by save_to_disk, or leave {given} out for a folder of images{more}"
    )
