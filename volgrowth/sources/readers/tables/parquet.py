"""Parquet files as rows: footers when opened, and only the row groups that overlap when read.

A file's rows are known from its footer. A row group is the unit that Parquet can skip to, and `row_groups` streams the
rows of one. The file that a read ended in stays open: the next read of rows behind goes on in the same row group.
Of an object in a store, too, only the footer and the wanted columns of these row groups are fetched.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from volgrowth.errors import DataError
from volgrowth.sources.base import FilesSource, Request, Row, content_id
from volgrowth.sources.conditions import class_names
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.opened import from_metadata
from volgrowth.sources.readers.splits import files_of_split
from volgrowth.sources.readers.tables.row_groups import OpenFile
from volgrowth.sources.readers.tables.table_columns import Columns, choose_columns, rows_of
from volgrowth.sources.readers.tables.table_types import is_untold, same_values
from volgrowth.storage.places import Found, Place, printable, read_ahead

PAGE_BYTES = 1 << 20
"""Bytes that are fetched at a time to look at the first rows, or to read large row groups: about one page."""
_BY_PAGES: dict[str, Any] = {"buffer_size": PAGE_BYTES, "pre_buffer": False}
AHEAD_BYTES = 1 << 28
"""Bytes of a row group as stored up to which its columns are fetched ahead, in one request; of larger ones, pages."""
_TAIL = 8
"""Bytes at the end of a file: the length of its footer, and PAR1."""
_NOTHING = pa.chunked_array([], pa.string())
"""A worker's look at a column, which was looked at when the data set was listed."""


class ParquetSource(FilesSource):
    """The rows of parquet files, in the order of the files' names.

    The split is one that the files' names tell. Relative paths of images start from the folder, as names of files do.
    The arguments are those of `FilesSource`.

    Raises:
        DataError: a footer cannot be read, there are no rows, or `choose_columns` or `choose_split` refuses.
    """

    kind = "parquet"
    unit = "parquet file"

    def __init__(
        self, place: Place, request: Request, files: Iterable[Found] = (), listing: Listing | None = None
    ) -> None:
        self._first: dict[str, tuple[str, pa.DataType]] = {}
        self._kept: list[OpenFile] = []
        super().__init__(place, request, files, listing)
        if not self.num_rows:
            raise DataError(f"{request.data} is an empty data set: its {self.num_files} parquet files hold no rows")
        if listing is not None:
            self._choose_again(listing)

    @property
    def columns_by_role(self) -> dict[str, str]:
        return self.columns.by_role

    def open_file(self, file: Found | SourceFile, **options: Any) -> AbstractContextManager[pq.ParquetFile]:
        """Return the context that gives a file of the data set, opened: see `open_parquet`."""
        return open_parquet(self.place, file, **options)

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        for file, first in self.listing.entries(start, stop):
            yield from self._read_file(file, first, max(start - first, 0), min(stop - first, file.rows))

    def _read_file(self, file: SourceFile, first: int, start: int, stop: int) -> Iterator[Row]:
        name = printable(file.name)
        with self._open_or_kept(file, stop) as opened:
            for group, begin, low, high in opened.overlaps(start, stop):
                position = low
                try:
                    for at, table in opened.tables(group, begin, (low, high)):
                        for row in rows_of(
                            table, self.columns, self.place, first + at, name, at, self.request.max_bytes
                        ):
                            yield row
                            position += 1
                    reason = "the row group ends early"
                except (pa.ArrowException, OSError) as error:
                    reason = f"the row group cannot be read: {' '.join(str(error).split())}"
                if position < high:
                    opened.damaged = True
                for at in range(position, high):
                    yield Row(first + at, content_id(b""), f"{name}#{at}", None, reason)

    @contextmanager
    def _open_or_kept(self, file: SourceFile, stop: int) -> Iterator[OpenFile]:
        """Give a file of the listing, to read rows before `stop`: it stays open if there are more, and none failed."""
        opened = self._take_kept(file)
        if opened is None:
            stack = ExitStack()
            with stack:
                parquet = stack.enter_context(self.open_file(file))
                # A listing may have been made without the condition column, or with another.
                self._check(file.name, parquet.schema_arrow)
                opened = OpenFile(file.name, parquet, self.columns.names, stack.pop_all())
        with opened.closed_on_error():
            yield opened
        if opened.damaged or stop == file.rows:
            opened.close()
        else:
            self._kept.append(opened)

    def _take_kept(self, file: SourceFile) -> OpenFile | None:
        """Return the file that the last read left open, if it is this one; another one is closed.

        Raises:
            DataError: the file has changed since.
        """
        while True:
            try:
                kept = self._kept.pop()  # in one step: another thread may read too
            except IndexError:
                return None
            if kept.name == file.name:
                with kept.closed_on_error(), self.place.open(file.name, file.size):
                    return kept
            kept.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": []}

    def _scanned(self, files: Iterable[Found]) -> Iterator[SourceFile]:
        # Files whose columns cannot be chosen yet, since one is of nulls alone: one of each schema.
        waiting: dict[pa.Schema, SourceFile] = {}
        chosen = files_of_split(files, self.request.split, self.request.data)
        for file, schema in read_ahead(self._footer, chosen, self.place.threads):
            for note in from_metadata(schema.metadata):
                self.leave_aside(note.kind, note.count, note.why, note.example)
            if file.rows and self._first:
                # A worker should not be the first to find that a later file is of another kind.
                self._check(file.name, schema)
            elif file.rows:
                waiting.setdefault(_without_notes(schema), file)
                if not _has_untold(schema):
                    self._choose(waiting)
            yield file
        if waiting and not self._first:
            self._choose(waiting)

    def _choose(self, files: dict[pa.Schema, SourceFile]) -> None:
        """Choose the columns by the first files, of which a later one tells the type of what an earlier has as nulls.

        Raises:
            DataError: `choose_columns` refuses, or the files do not agree.
        """
        schema, origin = next(iter(files.items()))
        origins = dict.fromkeys(schema.names, origin)
        for later, file in files.items():
            for index, field in enumerate(schema):
                if is_untold(field.type) and later.names.count(field.name) == 1:
                    schema = schema.set(index, field.with_type(later.field(field.name).type))
                    origins[field.name] = file

        def peek(column: str) -> pa.ChunkedArray:
            return self._head(origins.get(column) or origins[column.removesuffix(".path")], column)

        self._refuse_folder_names(schema, origin.name)
        self._settle(schema, choose_columns(schema, self.request, peek), origins)
        for later, file in files.items():
            self._check(file.name, later)

    def _refuse_folder_names(self, schema: pa.Schema, name: str) -> None:
        """Raise a DataError if a column that was asked for is told by names of folders, such as `label=3`, alone."""
        asked = (self.request.image_column, self.request.id_column, self.request.condition_column)
        for column in asked:
            folder = next((part for part in name.split("/")[:-1] if part.startswith(f"{column}=")), None)
            if folder is not None and column not in schema.names:
                raise DataError(
                    f"column {column!r} of {self.request.data} is told by names of folders ({printable(folder)}), "
                    "which are not read: write it into a file, pyarrow.parquet.write_table("
                    "pyarrow.parquet.read_table(folder), ...), and audit that"
                )

    def _choose_again(self, listing: Listing) -> None:
        """Choose the columns by the first file in which each has a type; what they hold was looked at at first."""
        refusal: DataError | None = None
        for file, _ in listing.entries(0, listing.num_rows):
            with self.open_file(file) as parquet:
                schema = parquet.schema_arrow
            try:
                columns = choose_columns(schema, self.request, lambda column: _NOTHING)
                return self._settle(schema, columns, dict.fromkeys(schema.names, file))
            except DataError as error:
                refusal = refusal or error
            if not _has_untold(schema):
                break
        assert refusal is not None
        raise refusal

    def _settle(self, schema: pa.Schema, columns: Columns, origins: dict[str, SourceFile]) -> None:
        self.columns = columns
        self.condition_names = class_names(schema, columns.condition)
        self._first = {column: (origins[column].name, schema.field(column).type) for column in columns.names}

    def _check(self, name: str, schema: pa.Schema) -> None:
        """Raise a DataError unless the columns hold what they do in the first file with rows, in whatever width."""
        for column, (first, kind) in self._first.items():
            count = schema.names.count(column)
            got = schema.field(column).type if count == 1 else None
            if got is None or not same_values(got, kind):
                held = got or (f"{count} columns of this name" if count else "nothing")
                raise DataError(
                    f"column {column!r} holds {held} in {name} and {kind} in {first}: the files of one data set have "
                    "the same columns; audit them apart"
                )
            if is_untold(kind):
                self._first[column] = name, got
        names, condition = class_names(schema, self.columns.condition), self.columns.condition
        if None not in (names, self.condition_names) and names != self.condition_names:
            first, _ = self._first[condition or ""]
            raise DataError(
                f"column {condition!r} names its classes differently in {name} and {first}: the same "
                "number would mean two classes; write the files with one datasets.ClassLabel, or audit them apart"
            )

    def _footer(self, file: Found) -> tuple[SourceFile, pa.Schema]:
        with self.open_file(file) as parquet:
            return SourceFile(file.name, file.size, parquet.metadata.num_rows, tag=file.tag), parquet.schema_arrow

    def _head(self, file: SourceFile, column: str, rows: int = 8) -> pa.ChunkedArray:
        with self.open_file(file, **_BY_PAGES) as parquet:
            schema = parquet.schema_arrow
            name = column if column in schema.names else column.removesuffix(".path")
            try:
                batch = next(parquet.iter_batches(batch_size=rows, columns=[column]))
            except (pa.ArrowException, OSError):
                # The rows will say so one by one when they are read.
                return pa.Table.from_batches([], schema).column(name)
        return pa.chunked_array([batch.column(name)])


@contextmanager
def open_parquet(place: Place, file: Found | SourceFile, **options: Any) -> Iterator[pq.ParquetFile]:
    """Give a parquet file, opened.

    Args:
        place: the folder of the data set.
        file: the file; one of the listing must hold the rows that the listing says.
        options: passed to `pyarrow.parquet.ParquetFile`; without any, columns are fetched ahead
            if they are not too large.

    Raises:
        DataError: the file has changed, or its footer cannot be read.
    """
    with place.open(file.name, file.size) as stream:
        try:
            parquet = pq.ParquetFile(stream, **({"pre_buffer": True} | options))
        except (pa.ArrowException, OSError) as error:
            where = place.url(file.name)
            if "encrypted" in str(error):
                raise _encrypted(where) from None
            raise DataError(
                f"{where} cannot be read as parquet, its footer is corrupt or cut off ({error}): write it again"
            ) from None
        if isinstance(file, Found) and _has_signature(stream, parquet.metadata):
            raise _encrypted(place.url(file.name))
        if not options and _largest_group(parquet.metadata) > AHEAD_BYTES:
            parquet = pq.ParquetFile(stream, metadata=parquet.metadata, **_BY_PAGES)
        rows = parquet.metadata.num_rows
        if isinstance(file, SourceFile) and rows != file.rows:
            place.changed(file.name, f"{rows} rows", f"{file.rows}")
        yield parquet


def _has_signature(stream: Any, metadata: pq.FileMetaData) -> bool:
    """Return whether a footer is signed, as it is where columns are encrypted. To look at such a column ends Python."""
    stream.seek(-_TAIL, os.SEEK_END)
    return int.from_bytes(stream.read(4), "little") > metadata.serialized_size


def _encrypted(where: str) -> DataError:
    return DataError(f"{where} is encrypted, and keys are not taken: write it again without encryption")


def _has_untold(schema: pa.Schema) -> bool:
    return any(is_untold(field.type) for field in schema)


def _without_notes(schema: pa.Schema) -> pa.Schema:
    """Return a schema without the notes of pandas and others, which differ from file to file."""
    kept = {key: note for key, note in (schema.metadata or {}).items() if key == b"huggingface"}
    return schema.with_metadata(kept or None)


def _largest_group(metadata: pq.FileMetaData) -> int:
    """Return the stored bytes of the largest row group, over all its columns."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return max((sum(g.column(k).total_compressed_size for k in range(g.num_columns)) for g in groups), default=0)
