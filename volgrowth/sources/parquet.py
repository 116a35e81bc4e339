"""Parquet files as rows: footers when opened, and only the row groups that overlap when read.

A file's rows are known from its footer. A row group is the unit that Parquet can skip to, so a read costs at
most one row group more than it asks for at its front; inside a group rows are streamed, `BATCH_ROWS` at a
time.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from volgrowth.errors import DataError
from volgrowth.sources.base import Row, Source, SourceFile, content_id
from volgrowth.sources.columns import BATCH_ROWS, check_range, choose_columns, rows_of
from volgrowth.sources.splits import choose_split, split_of


class ParquetSource(Source):
    """The rows of parquet files, sorted by name.

    Args:
        root: folder that file names and relative image paths start from
        names: the files, relative to `root`
        split: which of the splits that the files' names tell
        image_column: found by its type when None
        id_column: `Row.image_id` is the content's hash when None

    Raises:
        DataError: a footer that cannot be read, no rows, or columns and splits as in `choose_columns` and
            `choose_split`.
    """

    kind = "parquet"

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        split: str | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
    ) -> None:
        self.root = root.resolve()
        where = str(root if len(names) > 1 else root / names[0])
        splits = {name: split_of(name) for name in sorted(names)}
        chosen = choose_split(sorted(set(splits.values())), split, where)
        paths = [self.root / name for name in splits if splits[name] == chosen]
        footers = [_footer(path) for path in paths]
        self.files = tuple(
            SourceFile(path.relative_to(self.root).as_posix(), path.stat().st_size, rows)
            for path, (rows, _) in zip(paths, footers, strict=True)
        )
        if not self.num_rows:
            raise DataError(f"{where} is an empty data set: its {len(paths)} parquet files hold no rows")
        path, schema = next((p, schema) for p, (rows, schema) in zip(paths, footers, strict=True) if rows)
        self.columns = choose_columns(schema, image_column, id_column, where, partial(_head, path))
        for file, (rows, other) in zip(self.files, footers, strict=True):
            # A worker should not be the first to find that a later file is of another kind.
            for name in self.columns.names if rows else []:
                _check_column(name, schema, other, path.name, file.name)

    def read(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the rows start..stop-1; those of a corrupt row group say so in `error`.

        Raises:
            ValueError: `start` and `stop` are not a range of this source.
            DataError: a file is missing or holds other rows than when it was opened.
        """
        check_range(start, stop, self.num_rows)
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        ends = list(accumulate(file.rows for file in self.files))
        for index in range(bisect_right(ends, start), len(ends)):
            offset = ends[index] - self.files[index].rows
            if offset >= stop:
                return
            low, high = max(start - offset, 0), min(stop, ends[index]) - offset
            yield from self._read_file(self.files[index], offset, low, high)

    def _read_file(self, file: SourceFile, offset: int, start: int, stop: int) -> Iterator[Row]:
        path = self._path(file)
        with _opened(path) as parquet:
            if parquet.metadata.num_rows != file.rows:
                raise DataError(
                    f"{path} holds {parquet.metadata.num_rows} rows, and {file.rows} when the data set was "
                    "opened: it has changed; restore it, or start a new audit"
                )
            for group, first, low, high in _overlaps(parquet.metadata, start, stop):
                position = low
                try:
                    for at, table in _tables(parquet, group, first, self.columns.names, (low, high)):
                        for row in rows_of(table, self.columns, self.root, offset + at, file.name, at):
                            yield row
                            position += 1
                    reason = "the row group ends early"
                except (pa.ArrowException, OSError) as error:
                    reason = f"the row group cannot be read: {error}"
                for at in range(position, high):
                    yield Row(offset + at, content_id(b""), f"{file.name}#{at}", None, reason)

    def _path(self, file: SourceFile) -> Path:
        return self.root / file.name


def _footer(path: Path) -> tuple[int, pa.Schema]:
    with _opened(path) as parquet:
        return parquet.metadata.num_rows, parquet.schema_arrow


def _check_column(name: str, expected: pa.Schema, found: pa.Schema, first: str, other: str) -> None:
    kind = expected.field(name).type
    got = found.field(name).type if name in found.names else "nothing"
    if got != kind:
        raise DataError(
            f"column {name!r} holds {got} in {other} and {kind} in {first}: the files of one data set have "
            "the same columns; audit them apart"
        )


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist any more: restore it, or start a new audit") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as parquet, its footer is corrupt or cut off ({error}): write it again"
        ) from None


def _head(path: Path, columns: list[str], rows: int = 8) -> pa.Table:
    with _opened(path) as parquet:
        try:
            batch = next(parquet.iter_batches(batch_size=rows, columns=columns))
        except (pa.ArrowException, OSError):
            # The rows will say so one by one when they are read.
            return parquet.schema_arrow.empty_table().select(columns)
    return pa.Table.from_batches([batch])


def _overlaps(metadata: pq.FileMetaData, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Row groups that hold some of a file's rows start..stop-1: group, its first row, wanted rows."""
    first = 0
    for group in range(metadata.num_row_groups):
        end = first + metadata.row_group(group).num_rows
        if max(start, first) < min(stop, end):
            yield group, first, max(start, first), min(stop, end)
        first = end


def _tables(
    parquet: pq.ParquetFile, group: int, first: int, columns: list[str], span: tuple[int, int]
) -> Iterator[tuple[int, pa.Table]]:
    """The rows of `span` from the row group that begins at row `first`: tables, with their first rows."""
    start, stop = span
    for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=columns):
        end = first + batch.num_rows
        low, high = max(start, first), min(stop, end)
        if low < high:
            yield low, pa.Table.from_batches([batch.slice(low - first, high - low)])
        first = end
        if first >= stop:
            return
