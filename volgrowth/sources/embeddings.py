"""Embeddings of images, which the user keeps in a column of the data set's table, or of a table beside image files.

An embedding is a list of finite floats, of one length in the whole data set. A row may have none: null, a list of zeros
(which has no direction), or no row in the table beside the files.
"""

import json
import posixpath
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from volgrowth.errors import DataError
from volgrowth.sources.base import Source
from volgrowth.sources.readers.folder import FolderSource
from volgrowth.sources.readers.folder_metadata import (
    FILE_NAME,
    KEY,
    Keys,
    by_key,
    by_name,
    is_table,
    naming_column,
)
from volgrowth.sources.readers.tables.metadata_tables import read_table_file, table_columns
from volgrowth.sources.readers.tables.parquet import ParquetSource
from volgrowth.sources.readers.tables.saved import DatasetSource
from volgrowth.sources.readers.tables.table_columns import shown_names
from volgrowth.sources.readers.tables.table_types import is_several
from volgrowth.storage.places import Found, printable

BATCH = 4096
"""Rows of which embeddings are in the memory at once."""
_FIX = "expected a list of finite floats, of one length in all rows, or null for a row without one (--embedding-column)"


class Embedded(NamedTuple):
    """Embeddings of some rows: numbers of the rows, (k,), and one vector of length 1 for each, (k, d) float32."""

    rows: np.ndarray
    vectors: np.ndarray


def check_embedding_column(source: Source, column: str) -> None:
    """Check that a data set has a column of embeddings, as far as its tables tell without being read.

    Raises:
        DataError: it has no such column, or one of another type, or is of a kind without columns.
    """
    if isinstance(source, FolderSource):
        _tables(source, column)
    elif isinstance(source, ParquetSource):
        for file in islice((file for file in source.listing if file.rows), 1):
            with source.open_file(file) as parquet:
                _check_type(parquet.schema_arrow, column, source.place.url(file.name))
    elif isinstance(source, DatasetSource):
        _check_type(source.load().features.arrow_schema, column, source.where)
    else:
        raise DataError(
            f"embedding_column {column!r}: the data set is of the kind {source.kind}, which has no columns: expected a "
            "table, or image files with a table beside them; write the embeddings and images as parquet to use them"
        )


def read_embeddings(source: Source, column: str) -> Iterator[Embedded]:
    """Yield the embeddings of all rows that have one, some at a time: for tables in the order of the rows.

    Raises:
        DataError: as `check_embedding_column`, or a value is no embedding; it names the row.
    """
    width = 0
    for rows, values, where in _values(source, column):
        found = _embedded(rows, values, f"column {column} of {where}")
        if len(found.rows):
            width = width or found.vectors.shape[1]
            if found.vectors.shape[1] != width:
                raise DataError(
                    f"row {found.rows[0]} of column {column} of {where} has {found.vectors.shape[1]} numbers, and rows "
                    f"before it {width}: {_FIX}"
                )
            yield found


def _values(source: Source, column: str) -> Iterator[tuple[np.ndarray, pa.Array, str]]:
    """Yield numbers of rows, what the column holds for each, and the name of the table."""
    check_embedding_column(source, column)
    if isinstance(source, FolderSource):
        yield from _beside_files(source, column)
    elif isinstance(source, ParquetSource):
        for file, row in source.listing.entries(0, source.num_rows):
            where = source.place.url(file.name)
            with source.open_file(file) as parquet:
                _check_type(parquet.schema_arrow, column, where)
                for batch in parquet.iter_batches(BATCH, columns=[column]):
                    yield np.arange(row, row + batch.num_rows), batch.column(0), where
                    row += batch.num_rows
    elif isinstance(source, DatasetSource):
        table = source.load().select_columns([column]).with_format("arrow")
        for start in range(0, source.num_rows, BATCH):
            values = table[start : start + BATCH].column(0).combine_chunks()
            yield np.arange(start, start + len(values)), values, source.where


def _check_type(schema: pa.Schema, column: str, where: str) -> None:
    if column not in schema.names:
        raise DataError(
            f"{where} has no embedding_column {column!r}: it has {shown_names(schema.names)}; name one of them "
            "(--embedding-column)"
        )
    kind = schema.field(column).type
    if not (is_several(kind) and (pa.types.is_floating(kind.value_type) or pa.types.is_null(kind.value_type))):
        raise DataError(f"column {column} of {where} holds {kind}: {_FIX}")


def _embedded(rows: np.ndarray, values: pa.Array, where: str) -> Embedded:
    """Return the embeddings among some values, each divided by its length."""
    there = values.is_valid().to_numpy(zero_copy_only=False)
    rows, values = rows[there], values.drop_null()
    if not len(rows):
        return Embedded(rows, np.empty((0, 0), np.float32))
    lengths = pc.list_value_length(values).to_numpy()
    if (odd := np.flatnonzero(lengths != lengths[0])).size or not lengths[0]:
        first = odd[0] if odd.size else 0
        raise DataError(f"row {rows[first]} of {where} has {lengths[first]} numbers, and others {lengths[0]}: {_FIX}")
    flat = values.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)  # nulls become NaN
    vectors = flat.reshape(len(rows), lengths[0])
    if (bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1))).size:
        raise DataError(f"row {rows[bad[0]]} of {where} holds a value that is no finite number: {_FIX}")
    norms = np.linalg.norm(vectors / np.maximum(abs(vectors).max(axis=1, keepdims=True), 1e-300), axis=1)
    some = norms > 0
    scaled = vectors[some] / abs(vectors[some]).max(axis=1, keepdims=True)
    return Embedded(rows[some], (scaled / norms[some, None]).astype(np.float32))


def _tables(source: FolderSource, column: str) -> list[Found]:
    """Return the tables beside image files that name files and have the column."""
    used, there = list[Found](), dict[str, None]()
    for table in sorted(source.place.walk()):
        hidden = any(part.startswith(".") for part in table.name.split("/"))
        if hidden or not is_table(table.name) or table.name.lower().endswith(".csv"):
            continue
        columns = table_columns(source.place, table)
        if naming_column(columns):
            there |= dict.fromkeys(columns)
            used.extend([table] if column in columns else [])
    if not used:
        raise DataError(
            f"{source.request.data} holds images, and no table beside them has an embedding_column {column!r} and a "
            f"column {FILE_NAME} (in metadata.jsonl or metadata.parquet) or {KEY}; such tables there have: "
            f"{shown_names(list(there)) or 'nothing'}"
        )
    return used


def _beside_files(source: FolderSource, column: str) -> Iterator[tuple[np.ndarray, pa.Array, str]]:
    """Yield what tables beside image files hold, in their order; a temporary database finds the files' rows."""
    with closing(sqlite3.connect("", isolation_level=None)) as database:
        database.execute("CREATE TABLE files (name BLOB PRIMARY KEY, row INTEGER, seen INTEGER DEFAULT 0)")
        database.execute("BEGIN")
        for file, row in source.listing.entries(0, source.num_rows):
            keys = by_name(file.name), by_key(posixpath.splitext(file.name)[0])
            database.executemany("INSERT OR IGNORE INTO files (name, row) VALUES (?, ?)", [(key, row) for key in keys])
        for table in _tables(source, column):
            where, keyed = source.place.url(table.name), Keys.of(source.place, table)
            for names, values in _table_values(source, table, keyed.named, column):
                places = list[int]()
                rows = [_row_of(database, keyed.key(name), where) if name else None for name in names]
                places = [place for place, row in enumerate(rows) if row is not None]
                yield (
                    np.array([rows[place] for place in places], np.int64),
                    values.take(pa.array(places, pa.int64())),
                    where,
                )


def _row_of(database: sqlite3.Connection, key: bytes, where: str) -> int | None:
    """Return the row of the image file that a row of a table names; None if it names none."""
    found = database.execute("SELECT row, seen FROM files WHERE name = ?", (key,)).fetchone()
    if found is None:
        return None
    if found[1]:
        raise DataError(
            f"{where} has a second row for {printable(key[1:].decode('utf-8', 'surrogateescape'))}: leave one"
        )
    database.execute("UPDATE files SET seen = 1 WHERE name = ?", (key,))
    return found[0]


def _table_values(
    source: FolderSource, table: Found, named: str, column: str
) -> Iterator[tuple[list[str | None], pa.Array]]:
    """Yield the names of files in a table, and the values of a column beside them."""
    where = source.place.url(table.name)
    with read_table_file(source.place, table) as stream:
        if table.name.lower().endswith(".jsonl"):
            lines = (json.loads(line) for line in stream if line.strip())
            while batch := list(islice(lines, BATCH)):
                yield (
                    [_text(row.get(named)) for row in batch],
                    _floats([row.get(column) for row in batch], column, where),
                )
            return
        parquet = pq.ParquetFile(stream)
        _check_type(parquet.schema_arrow, column, where)
        for some in parquet.iter_batches(BATCH, columns=[named, column]):
            yield some.column(named).to_pylist(), some.column(column)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _floats(values: list[Any], column: str, where: str) -> pa.Array:
    try:
        return pa.array(values, pa.list_(pa.float64()))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"column {column} of {where} holds something else ({' '.join(str(error).split())[:100]}): {_FIX}"
        ) from None
