"""Tables that describe image files, read row by row: CSV with a header, JSON lines, and parquet."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from volgrowth.errors import DataError
from volgrowth.sources.arrays import texts
from volgrowth.sources.conditions import check_condition_column, conditions_of
from volgrowth.sources.readers.tables.table_columns import image_columns
from volgrowth.storage.places import Found, Place

SUFFIXES = frozenset({".csv", ".jsonl", ".parquet", ".pq", ".parq"})
BATCH_LINES = 4096
TEXT_BYTES = 1 << 20
"""Bytes of a text that are fetched from a store at a time."""
Told = tuple[str | None, str | None, str | int | None]
"""What one row of a table tells: the name of its file, an id, and a condition."""


def table_columns(place: Place, file: Found) -> list[str]:
    """Return the names of a table's columns; of JSON lines, those of the first line; none if it holds images itself.

    Raises:
        DataError: the table cannot be read.
    """
    with read_table_file(place, file) as stream:
        if _suffix(file) == ".csv":
            return next(csv.reader(_lines(stream)), [])
        if _suffix(file) == ".jsonl":
            first = json.loads(next((line for line in _lines(stream) if line.strip()), "{}"))
            return list(first) if isinstance(first, dict) else []
        schema = pq.read_schema(stream)
        return [] if image_columns(schema) else schema.names


def table_rows(place: Place, file: Found, name: str, identity: str | None, condition: str | None) -> Iterator[Told]:
    """Yield what each row of a table tells, in order.

    Args:
        place: the folder of the data set.
        file: the table.
        name: the column that names files.
        identity: the column of ids, if one is wanted.
        condition: the column of conditions, if one is wanted.

    Raises:
        DataError: the table cannot be read, or holds something else than conditions.
    """
    readers: dict[str, Callable[..., Iterator[Told]]] = {".csv": _csv_rows, ".jsonl": _json_rows}
    with read_table_file(place, file) as stream:
        reader = readers.get(_suffix(file), _parquet_rows)
        yield from reader(stream, place.url(file.name), name, identity, condition)


def _csv_rows(stream: Any, where: str, name: str, identity: str | None, condition: str | None) -> Iterator[Told]:
    for row in csv.DictReader(_lines(stream)):
        yield row.get(name) or None, row.get(identity or "") or None, row.get(condition or "") or None


def _json_rows(stream: Any, where: str, name: str, identity: str | None, condition: str | None) -> Iterator[Told]:
    for number, line in enumerate(_lines(stream), 1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise DataError(f"line {number} of {where} holds {type(row).__name__}, expected a JSON object")
        told = row.get(condition or "")
        told = (told[0] if told else None) if isinstance(told, list) else told
        if not isinstance(told, str | int | None) or isinstance(told, bool):
            raise DataError(
                f"line {number} of {where} has {str(told)[:40]!r} as {condition}: a class is an integer or a string, a "
                "caption is a string or the first of a list of strings"
            )
        yield _string(row.get(name)), _string(row.get(identity or "")), told


def _parquet_rows(stream: Any, where: str, name: str, identity: str | None, condition: str | None) -> Iterator[Told]:
    parquet = pq.ParquetFile(stream)
    wanted = list(dict.fromkeys(column for column in (name, identity, condition) if column is not None))
    if condition is not None:
        check_condition_column(parquet.schema_arrow.field(condition), where)
    for batch in parquet.iter_batches(batch_size=BATCH_LINES, columns=wanted):
        table = pa.Table.from_batches([batch])
        nothing: list[Any] = [None] * table.num_rows
        yield from zip(
            texts(table[name]),
            texts(table[identity]) if identity is not None else nothing,
            conditions_of(table[condition]) if condition is not None else nothing,
            strict=True,
        )


@contextmanager
def read_table_file(place: Place, file: Found) -> Iterator[Any]:
    """Open a table; what its format cannot be parsed as is a DataError."""
    block = TEXT_BYTES if _suffix(file) in (".csv", ".jsonl") else 0
    with place.open(file.name, file.size, block) as stream:
        try:
            yield stream
        except (csv.Error, ValueError, KeyError, pa.ArrowException, OSError, RecursionError) as error:
            what = _suffix(file).removeprefix(".")
            raise DataError(
                f"{place.url(file.name)} cannot be read as {what} ({' '.join(str(error).split())[:200]}): write it "
                "again, or leave out the columns that are taken from it"
            ) from None


def _lines(stream: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, "utf-8-sig", "backslashreplace", newline="")


def _suffix(file: Found) -> str:
    return os.path.splitext(file.name)[1].lower()


def _string(value: Any) -> str | None:
    return None if value is None else str(value)
