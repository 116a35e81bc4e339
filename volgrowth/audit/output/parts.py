"""The tables of an audit in parts: the rows of one shard after the other, so that no table must fit the memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from volgrowth.audit.output.fragments import READERS, read_fragment
from volgrowth.audit.output.manifest import Manifest, Shard
from volgrowth.errors import DamagedError, OutputError
from volgrowth.records import FINDINGS
from volgrowth.storage.places import read_ahead
from volgrowth.storage.store import Store

NEEDED_FINDINGS = ("row", "image_id", "growth", "excess_growth", "p_value", "q_value", "memorized")


def read_parts(
    store: Store, manifest: Manifest, folder: str, file: str, scores: Sequence[str], findings: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield the rows of one shard after the other, in row order, with columns of its scores and findings.

    Only at the end is it known that no bit of the findings has changed: whoever takes the parts must do without them if
    this raises.

    Args:
        store: the output of the audit.
        manifest: its manifest.
        folder: of the scores, which says whether the audited rows are read or the held-out ones.
        file: name of the findings of these rows.
        scores: columns of `records.SCORES`.
        findings: columns of `records.FINDINGS`.

    Returns:
        Tables with the column `row`, the columns of findings and those of scores. What the files lack is null. A column
        that is asked for of both is that of the findings.

    Raises:
        DamagedError: a file is damaged.
        OutputError: a file cannot be read, or findings and scores are not of the same rows.
    """
    shards = [shard for shard in manifest.shards if shard.folder == folder]
    beside = [name for name in dict.fromkeys(scores) if name != "row" and name not in findings]
    rows = (pa.table({"row": pa.array(np.arange(shard.start, shard.stop))}) for shard in shards)
    parts = _findings(store, file, shards, findings) if findings else rows
    threads = 1 if store.local else READERS
    measured = read_ahead(lambda shard: read_fragment(store, shard, beside), shards if beside else [], threads)
    for part in parts:
        columns = next(measured) if beside else part.select([])
        for name in columns.column_names:
            part = part.append_column(columns.field(name), columns[name])
        yield part


def _findings(store: Store, name: str, shards: Sequence[Shard], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns of the findings, the rows of a shard at a time."""
    there, (rows, _) = store.read_schema(name), store.read_footer(name)
    check_findings(store, name, there.names, rows, sum(shard.rows for shard in shards))
    wanted = list(dict.fromkeys(["row", *columns]))
    schema = pa.schema([FINDINGS.field(column) for column in wanted])
    batches = store.read_batches(name, wanted)
    held = schema.empty_table()
    for shard in shards:
        pieces, missing = [held], shard.rows - len(held)
        while missing > 0:
            batch = next(batches)
            pieces.append(_as_findings(pa.Table.from_batches([batch]), schema, store, name))
            missing -= len(batch)
        held = pa.concat_tables(pieces)
        part, held = held.slice(0, shard.rows), held.slice(shard.rows)
        if not np.array_equal(part["row"].to_numpy(), np.arange(shard.start, shard.stop)):
            raise other_rows(store.url)
        yield part
    for _ in batches:  # to its end, where it is known that nothing has changed
        pass


def _as_findings(table: pa.Table, schema: pa.Schema, store: Store, name: str) -> pa.Table:
    """Return rows with the columns of a schema; those that a version did not write are null."""
    try:
        return pa.table(
            [table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type) for f in schema], schema
        )
    except pa.ArrowException as error:
        raise DamagedError(name, store.path(name), str(error)) from None


def other_rows(url: str) -> OutputError:
    """Return the error for findings that are not of the rows of the scores."""
    return OutputError(
        f"findings and scores in {url} are not of the same rows: delete {url}/_SUCCESS and run the same `volgrowth "
        f"audit` again, which keeps the scores"
    )


def check_findings(store: Store, name: str, columns: Sequence[str], rows: int, expected: int) -> None:
    """Check that a table of findings has the columns that every version wrote, and the rows of the audit.

    Raises:
        OutputError: it has not.
    """
    lacking = [column for column in NEEDED_FINDINGS if column not in columns]
    if lacking or rows != expected:
        wrong = f"it lacks the column {lacking[0]}" if lacking else f"it has {rows} rows, expected {expected}"
        raise OutputError(
            f"{store.path(name)} does not hold the findings of this audit ({wrong}): run the same `volgrowth "
            f"audit` again, which keeps the scores"
        )
