"""Tables as CSV, for spreadsheets: text that one would evaluate is quoted, lists are written as JSON."""

import json
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

# beginnings of a formula, of their wide forms too, and of what spreadsheets skip before one
_EVALUATED = "=+\\-@\t\r\n＝＋－＠"


class CsvTable:
    """Writes tables of one schema as a CSV file.

    Args:
        file: open for writing.
        schema: of the tables.
    """

    def __init__(self, file: Any, schema: pa.Schema):
        fields = [field.with_type(pa.string()) if pa.types.is_nested(field.type) else field for field in schema]
        self._schema = pa.schema(fields)
        self._writer = csv.CSVWriter(file, self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Write some rows."""
        columns = [_as_text(column) if pa.types.is_nested(column.type) else column for column in table.columns]
        self._writer.write_table(quoted_cells(pa.table(columns, schema=self._schema)))


def quoted_cells(table: pa.Table) -> pa.Table:
    """Put an apostrophe before cells that a spreadsheet would evaluate, and before those that seem to have one."""
    return _changed(table, f"\\A('*[{_EVALUATED}])", "'\\1")


def unquoted_cells(table: pa.Table) -> pa.Table:
    """Take off the apostrophes that `quoted_cells` put."""
    return _changed(table, f"\\A'('*[{_EVALUATED}])", "\\1")


def _changed(table: pa.Table, pattern: str, replacement: str) -> pa.Table:
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(index, field, pc.replace_substring_regex(table[index], pattern, replacement))
    return table


def _as_text(column: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if value is None else json.dumps(value) for value in column.to_pylist()], pa.string())
