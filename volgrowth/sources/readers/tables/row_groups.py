"""A Parquet file that stays open from one read to the next, so that the rows of a row group are unpacked once.

Parquet cannot be entered in the middle of a row group: who wants its last rows fetches and unpacks all rows before
them. A row group is often as large as a hundred shards. So a read that ends inside one leaves the file open, and the
next read goes on where that one stopped, if the rows that it wants come later.

Inside a group rows are streamed, as many at a time as fit into `BATCH_BYTES`, `BATCH_ROWS` at most. A few kB can hold
values of any size, packed or as a dictionary, so the rows of a group that might not fit are unpacked one by one. A page
of a column is unpacked whole; the format ends it at 2 GiB. What a file holds between two reads is what it holds during
a read: the columns of one group as stored, if they were fetched ahead, and the rows that were unpacked last.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from volgrowth.sources.readers.tables.table_columns import BATCH_ROWS

BATCH_BYTES = 1 << 26
"""Bytes of rows that are taken at a time, or a single row if it has more."""


class OpenFile:
    """A Parquet file, opened, and the place in it where the last read stopped.

    Args:
        name: of the file in its data set.
        parquet: the file.
        columns: the columns that are read.
        stack: closes it.

    Attributes:
        damaged: whether rows of it could not be read.
    """

    def __init__(self, name: str, parquet: pq.ParquetFile, columns: list[str], stack: ExitStack):
        self.name, self.damaged = name, False
        self._parquet, self._columns, self._stack = parquet, columns, stack
        self._group, self._at = -1, 0
        self._coming: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None

    def close(self) -> None:
        """Close the file."""
        self._coming, self._rest = iter(()), None
        self._stack.close()

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the file if the block raises, or is left before its end."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def overlaps(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the row groups that hold some of the rows start..stop-1: group, its first row, wanted rows."""
        metadata, first = self._parquet.metadata, 0
        for group in range(metadata.num_row_groups):
            end = first + metadata.row_group(group).num_rows
            if max(start, first) < min(stop, end):
                yield group, first, max(start, first), min(stop, end)
            first = end

    def tables(self, group: int, first: int, span: tuple[int, int]) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows of `span` from the row group that begins at row `first`: tables, with their first rows."""
        some, at, rows, size = list[pa.RecordBatch](), first, 0, 0
        try:
            for low, batch in self._batches(group, first, *span):
                if some and (rows + batch.num_rows > BATCH_ROWS or size + batch.nbytes > BATCH_BYTES):
                    yield at, pa.Table.from_batches(some)
                    some, rows, size = [], 0, 0
                at = at if some else low
                some.append(batch)
                rows, size = rows + batch.num_rows, size + batch.nbytes
        except (pa.ArrowException, OSError):
            if some:  # what was read before the damage counts
                yield at, pa.Table.from_batches(some)
            raise
        if some:
            yield at, pa.Table.from_batches(some)

    def _batches(self, group: int, first: int, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        if group != self._group or start < self._at:
            size = _batch_size(self._parquet.metadata.row_group(group), self._columns)
            self._coming = self._parquet.iter_batches(batch_size=size, row_groups=[group], columns=self._columns)
            self._group, self._at, self._rest = group, first, None
        while self._at < stop:
            batch = next(self._coming, None) if self._rest is None else self._rest
            if batch is None:
                return
            begin, end = self._at, self._at + batch.num_rows
            self._at, self._rest = min(end, stop), batch.slice(stop - begin) if end > stop else None
            if start < self._at:
                low = max(start, begin)
                yield low, batch.slice(low - begin, self._at - low)


def _batch_size(group: pq.RowGroupMetaData, columns: list[str]) -> int:
    """Return the rows to unpack at a time: `BATCH_ROWS` if they fit into `BATCH_BYTES` whatever they hold, else 1."""
    total = 0
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema.partition(".")[0] in columns:
            # a dictionary may stand for every value
            total += chunk.total_uncompressed_size * (BATCH_ROWS if chunk.has_dictionary_page else 1)
    return BATCH_ROWS if total <= BATCH_BYTES else 1
