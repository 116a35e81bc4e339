"""Curation lists as Parquet or CSV files, which people may edit, and the checks of a list that is read.

A list holds every row of the data set once; one from the report's page holds decisions (`page_lists`). Its column
`audit` names the audit in every row, so that a list that went through a spreadsheet or a data frame still says which
audit it was made from.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import zip_longest
from tempfile import TemporaryFile
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from volgrowth.analysis.policy import CURATION, Action, list_digest, new_file_of
from volgrowth.audit.output.result import Audit
from volgrowth.curation.page_lists import LISTED, SCOPE, PageList
from volgrowth.errors import OutputError, UsageError, first_line
from volgrowth.storage.csv_files import quoted_cells, unquoted_cells
from volgrowth.storage.store import Store

CURATION_FILE = "curation.parquet"
NEEDED = ("row", "image_id", "action", "weight", "audit")
# rows that are written or read at once, and bytes of a CSV file, of which each row must fit into one block
ROWS_AT_ONCE, CSV_BLOCK = 1 << 16, 1 << 22
# columns by which a list is known that the report's page made
_PAGE = {SCOPE, LISTED}
AGAIN = "make the list again with `volgrowth curate OUT --fdr RATE`"


def list_file(file: str) -> tuple[Store, str]:
    """Split the path or URL of a list into its folder, as a store, and its name.

    Raises:
        UsageError: the name ends neither in .parquet nor in .csv, or is that of a file of an audit.
    """
    if not file.endswith((".parquet", ".csv")):
        raise UsageError(f"--list {file}: expected a file name that ends in .parquet or .csv")
    return new_file_of(file)


class ListWriter:
    """Writes a list piece by piece, as CSV or Parquet by the end of its name.

    Args:
        file: open for writing.
        name: its name.
        metadata: entries of a Parquet file's footer.
    """

    def __init__(self, file: Any, name: str, metadata: dict[str, str] | None = None):
        self._csv = name.endswith(".csv")
        schema = CURATION if self._csv or not metadata else CURATION.with_metadata(metadata)
        self._writer: Any = (
            csv.CSVWriter(file, schema) if self._csv else pq.ParquetWriter(file, schema, compression="zstd")
        )
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Write rows with the columns of `CURATION`."""
        self._waiting.append(table.replace_schema_metadata(self._writer.schema.metadata if not self._csv else None))
        if sum(map(len, self._waiting)) >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            self._writer.write_table(quoted_cells(table) if self._csv else table)
        self._waiting = []


def encode_list(table: pa.Table, name: str) -> bytes:
    """Encode a list as the bytes of a file, CSV or Parquet by the end of its name."""
    buffer = BytesIO()
    with ListWriter(buffer, name) as writer:
        writer.write(table)
    return buffer.getvalue()


@contextmanager
def new_list(file: str, metadata: dict[str, str]) -> Iterator[ListWriter]:
    """Give a writer of a list, which is published at the end of the block, unless the file holds the same list already.

    Raises:
        UsageError: as `list_file`.
        OutputError: there is such a file, and it holds another list.
    """
    store, name = list_file(file)
    with TemporaryFile() as made:
        with ListWriter(made, name, metadata) as writer:
            yield writer
        made.seek(0)
        if not store.exists(name):
            with store.open_new(name) as published:
                shutil.copyfileobj(made, published)
            return
        with store.local_file(name) as path, open(path, "rb") as there:
            same = all(one == other for one, other in zip_longest(_blocks(made), _blocks(there)))
        if not same:
            raise OutputError(
                f"--list {file} exists and holds another list, which may have been edited: leave the policy out to "
                "take that, or choose another name"
            )


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(1 << 20), b"")


def read_list(audit: Audit, file: str) -> pa.Table:
    """Read a list that was made from this audit, whether it was edited or not, all of it at once; see `ListFile`."""
    return pa.concat_tables(open_list(audit, file).tables())


def open_list(audit: Audit, file: str) -> "ListFile | PageList":
    """Open a list that was made from this audit: one with a line for every row, or one from the report's page.

    Raises:
        OutputError, UsageError: as `ListFile` and `PageList`.
    """
    store, name = list_file(file)
    with store.local_file(name) as path:
        tables = _batches(path, name)
        try:
            if not set(next(tables).column_names) >= _PAGE:
                return ListFile(audit, file)
            some = [_of_page(table) for table in _batches(path, name)]
            lines = pa.concat_tables(some, promote_options="permissive")
        except (pa.ArrowException, ValueError) as error:
            raise _unreadable(file, error) from None
    if missing := [name for name in NEEDED if name not in lines.column_names]:
        raise _lacking(file, missing[0])
    _check_audit(audit, file, set(lines["audit"].unique().to_pylist()))
    return PageList(audit, file, lines)


def _of_page(table: pa.Table) -> pa.Table:
    """Return the lines of a page's list with the columns that matter, in their types."""
    known = (*CURATION, pa.field(SCOPE, pa.string()), pa.field(LISTED, pa.int64()))
    kept = [field for field in known if field.name in table.column_names]
    return table.select([field.name for field in kept]).cast(pa.schema(kept))


def _check_audit(audit: Audit, file: str, names: set[str | None]) -> None:
    """Refuse a list whose column `audit` names another audit."""
    here = list_digest(audit)
    if names != {here}:
        other = min((name for name in names if name not in (here, None)), default="none")
        raise OutputError(
            f"list {file} is of another audit ({other} in its column audit; {audit.store.url} is {here}, or had "
            f"another name before it was extended): {AGAIN}"
        )


def _unreadable(file: str, error: Exception) -> OutputError:
    return OutputError(f"list {file} cannot be read ({first_line(error)}): {AGAIN}")


def _lacking(file: str, column: str) -> OutputError:
    return OutputError(f"list {file} has no column {column}: put it back, or {AGAIN}")


class ListFile:
    """A list that was made from this audit, whether it was edited or not.

    Args:
        audit: finished.
        file: path or URL of the list.

    Raises:
        OutputError: the file cannot be read, was made from another audit, or lacks rows.
        UsageError: the name of the file ends neither in .parquet nor in .csv.
    """

    def __init__(self, audit: Audit, file: str):
        self.audit, self.file = audit, file
        names, rows, self._in_order, expected = set[str | None](), 0, True, audit.frozen.data.rows
        for table in self._read():
            names |= set(table["audit"].unique().to_pylist())
            numbers = table["row"].to_numpy()
            self._in_order = self._in_order and np.array_equal(numbers, np.arange(rows, rows + len(numbers)))
            rows += len(numbers)
        _check_audit(audit, file, names)
        if rows != expected or not (self._in_order or self._each_once(expected)):
            raise OutputError(
                f"list {file} has {rows} rows: expected every row from 0 to {expected - 1} once, also those that are "
                f"kept; put them back, or {AGAIN}"
            )

    def tables(self) -> Iterator[pa.Table]:
        """Yield the list in row order, with the columns of `CURATION`; the rows of a list in another order at once.

        Raises:
            UsageError: the action or the weight of a row makes no sense.
        """
        tables = self._read() if self._in_order else iter([pa.concat_tables(self._read()).sort_by("row")])
        held = CURATION.empty_table()
        for part in self.audit.parts(findings=["image_id"]):
            while len(held) < len(part):
                held = pa.concat_tables([held, next(tables)])
            table, held = held.slice(0, len(part)), held.slice(len(part))
            _check_rows(part["image_id"], table, self.file)
            yield table

    def _each_once(self, expected: int) -> bool:
        seen = np.zeros(expected, bool)
        for table in self._read():
            rows = table["row"].drop_null().to_numpy()
            seen[rows[(rows >= 0) & (rows < expected)]] = True
        return bool(seen.all())

    def _read(self) -> Iterator[pa.Table]:
        """Yield the rows of the file, in its order; columns that a person took out are null."""
        store, name = list_file(self.file)
        with store.local_file(name) as path:
            try:
                yield from map(self._as_list, _batches(path, name))
            except (pa.ArrowException, ValueError) as error:
                raise _unreadable(self.file, error) from None

    def _as_list(self, table: pa.Table) -> pa.Table:
        if missing := [name for name in NEEDED if name not in table.column_names]:
            raise _lacking(self.file, missing[0])
        kept = [field for field in CURATION if field.name in table.column_names]
        table = table.select([field.name for field in kept]).cast(pa.schema(kept))
        nulls = {field.name: pa.nulls(len(table), field.type) for field in CURATION}
        return pa.table(
            [table[name] if name in table.column_names else nulls[name] for name in CURATION.names], CURATION
        )


def _batches(path: str, name: str) -> Iterator[pa.Table]:
    """Yield the rows of a file, at least one table without any."""
    if name.endswith(".csv"):
        options = csv.ConvertOptions(column_types={field.name: field.type for field in CURATION})
        reader = csv.open_csv(
            pa.OSFile(path),
            csv.ReadOptions(block_size=CSV_BLOCK),
            csv.ParseOptions(newlines_in_values=True),
            options,
        )
        yield unquoted_cells(reader.schema.empty_table())
        for batch in reader:
            yield unquoted_cells(pa.Table.from_batches([batch]))
        return
    parquet = pq.ParquetFile(pa.OSFile(path))
    yield parquet.schema_arrow.empty_table()
    for batch in parquet.iter_batches(ROWS_AT_ONCE):
        yield pa.Table.from_batches([batch])


def _check_rows(ids: pa.ChunkedArray, table: pa.Table, file: str) -> None:
    """Check the image id, action and weight of every row of a part; `ids` are those of the audit."""

    def refuse(wrong: np.ndarray, say: Callable[[dict[str, Any]], str]) -> None:
        if wrong.any():
            row = table.slice(int(np.argmax(wrong)), 1).to_pylist()[0]
            raise UsageError(f"list {file}, row {row['row']}: {say(row)}")

    first = table["row"][0].as_py()
    strange = pc.fill_null(pc.not_equal(table["image_id"], ids), True).to_numpy().astype(bool)
    refuse(
        strange, lambda row: f"image_id is {row['image_id']!r} and was {ids[row['row'] - first].as_py()!r}: put it back"
    )
    action, weight = table["action"].to_numpy(), pc.fill_null(table["weight"], np.nan).to_numpy()
    unknown = ~np.isin(action.astype(str), [known.value for known in Action])
    refuse(unknown, lambda row: f"action is {row['action']!r}: expected keep, drop, downweight or review")
    light = (action == Action.DOWNWEIGHT.value) & ~((weight > 0) & (weight <= 1))
    refuse(light, lambda row: f"action is downweight and weight {row['weight']}: expected above 0 and at most 1")
    plain = (action == Action.KEEP.value) | (action == Action.REVIEW.value)
    refuse(
        plain & (weight != 1),
        lambda row: f"action is {row['action']} and weight {row['weight']}: expected 1, or action downweight",
    )
