"""Curation lists as Parquet or CSV files, which people may edit, and the checks of a list that is read.

A list holds every row of the data set once. Its column `audit` names the audit in every row, so that a list that went
through a spreadsheet or a data frame still says which audit it was made from.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from volgrowth.analysis.policy import CURATION, Action, list_digest, store_of
from volgrowth.audit.output.result import Audit
from volgrowth.errors import OutputError, UsageError, first_line
from volgrowth.storage.sealing import arrow_file
from volgrowth.storage.store import Store

CURATION_FILE = "curation.parquet"
NEEDED = ("row", "image_id", "action", "weight", "audit")
# beginnings of a formula, of their wide forms too, and of what spreadsheets skip before one
_EVALUATED = "=+\\-@\t\r\n＝＋－＠"
AGAIN = "make the list again with `volgrowth curate OUT --fdr RATE`"


def list_file(file: str) -> tuple[Store, str]:
    """Split the path or URL of a list into its folder, as a store, and its name.

    Raises:
        UsageError: the name ends neither in .parquet nor in .csv.
    """
    if not file.endswith((".parquet", ".csv")):
        raise UsageError(f"--list {file}: expected a file name that ends in .parquet or .csv")
    return store_of(file)


def encode_list(table: pa.Table, name: str) -> bytes:
    """Encode a list as the bytes of a file, CSV or Parquet by the end of its name."""
    buffer = BytesIO()
    if name.endswith(".csv"):
        csv.write_csv(_cells(table, _quoted), buffer)
    else:
        pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _cells(table: pa.Table, change: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> pa.Table:
    """Return a table with its columns of strings changed."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            table = table.set_column(index, field, change(table[field.name]))
    return table


def _quoted(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Put an apostrophe before cells that a spreadsheet would evaluate, and before those that seem to have one."""
    return pc.replace_substring_regex(cells, f"\\A('*[{_EVALUATED}])", "'\\1")


def _unquoted(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(cells, f"\\A'('*[{_EVALUATED}])", "\\1")


def read_list(audit: Audit, file: str) -> pa.Table:
    """Read a list that was made from this audit, whether it was edited or not.

    Args:
        audit: finished.
        file: path or URL of the list.

    Returns:
        The list, with the columns of `CURATION`, in row order.

    Raises:
        OutputError: the file cannot be read, was made from another audit, or lacks rows.
        UsageError: the action or the weight of a row makes no sense.
    """
    table = _table(file)
    there, here = table["audit"].unique().to_pylist(), list_digest(audit)
    if there != [here]:
        other = next((name for name in there if name != here), "none")
        raise OutputError(
            f"list {file} is of another audit ({other} in its column audit; {audit.store.url} is {here}, or had "
            f"another name before it was extended): {AGAIN}"
        )
    table = table.sort_by("row")
    if not np.array_equal(table["row"].to_numpy(), np.arange(audit.frozen.data.rows)):
        raise OutputError(
            f"list {file} has {table.num_rows} rows: expected every row from 0 to {audit.frozen.data.rows - 1} once, "
            f"also those that are kept; put them back, or {AGAIN}"
        )
    _check_rows(audit, table, file)
    return table


def _table(file: str) -> pa.Table:
    """Read the file as a table with the columns of `CURATION`; columns that a person took out are null."""
    store, name = list_file(file)
    data = store.read(name)
    try:
        if name.endswith(".csv"):
            columns = {field.name: field.type for field in CURATION}
            options = csv.ConvertOptions(column_types=columns)
            table = csv.read_csv(
                arrow_file(data), parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=options
            )
            table = _cells(table, _unquoted)
        else:
            table = pq.read_table(arrow_file(data))
        if missing := [name for name in NEEDED if name not in table.column_names]:
            raise OutputError(f"list {file} has no column {missing[0]}: put it back, or {AGAIN}")
        kept = [field for field in CURATION if field.name in table.column_names]
        table = table.select([field.name for field in kept]).cast(pa.schema(kept))
    except (pa.ArrowException, ValueError) as error:
        raise OutputError(f"list {file} cannot be read ({first_line(error)}): {AGAIN}") from None
    nulls = {field.name: pa.nulls(len(table), field.type) for field in CURATION}
    return pa.table([table[name] if name in table.column_names else nulls[name] for name in CURATION.names], CURATION)


def _check_rows(audit: Audit, table: pa.Table, file: str) -> None:
    """Check the image id, action and weight of every row."""

    def refuse(wrong: np.ndarray, say: Callable[[dict[str, Any]], str]) -> None:
        if wrong.any():
            row = table.slice(int(np.argmax(wrong)), 1).to_pylist()[0]
            raise UsageError(f"list {file}, row {row['row']}: {say(row)}")

    ids = audit.findings["image_id"]
    strange = pc.fill_null(pc.not_equal(table["image_id"], ids), True).to_numpy().astype(bool)
    refuse(strange, lambda row: f"image_id is {row['image_id']!r} and was {ids[row['row']].as_py()!r}: put it back")
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
