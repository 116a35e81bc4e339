"""Fragments: one published Parquet file per shard, and the facts in its footer."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.errors import DamagedError, DataError, OutputError
from volgrowth.records import SCHEMA_VERSION, SCORES, Status
from volgrowth.storage.store import Store

# fragments read at once: on an object store each waits for the network
READERS = 16


def publish_fragment(
    store: Store, manifest: Manifest, shard: Shard, table: pa.Table, attempt: int, **extra: str
) -> None:
    """Write a shard's scores in one step.

    The footer says which audit and rows the scores are of, never when or where they were made. So every worker that
    writes a shard at its first attempt writes the same bytes.

    Args:
        store: the output of the audit.
        manifest: its manifest.
        shard: the rows, and the name of the fragment.
        table: one row of `records.SCORES` for each row of the shard, in order.
        attempt: number of the attempt at the shard, from 1.
        extra: further entries of the footer.

    Raises:
        DataError: the table does not hold the shard's rows.
    """
    rows = table.column("row").to_numpy()
    if not np.array_equal(rows, np.arange(shard.start, shard.stop)):
        raise DataError(
            f"{shard.name} got {len(rows)} rows: expected rows {shard.start} to {shard.stop - 1}, each once; the data "
            f"set changed while it was read"
        )
    failed = pc.sum(pc.not_equal(table.column("status"), Status.OK.value)).as_py() or 0
    footer = {
        "schema_version": str(SCHEMA_VERSION),
        "rows": str(shard.rows),
        "failed": str(failed),
        "attempt": str(attempt),
        **identity(manifest, shard),
        **extra,
    }
    store.write_table(shard.name, table, footer)


def identity(manifest: Manifest, shard: Shard) -> dict[str, str]:
    """Return the part of a footer that ties a fragment to its audit."""
    plan_digest = manifest.digest_at(shard.generation)
    return {"shard": shard.name, "config_digest": manifest.config_digest, "plan_digest": plan_digest}


def published(store: Store, manifest: Manifest) -> dict[str, dict[str, str]]:
    """Return the footers of all whole fragments of an audit, by name. It reads a listing and footers, never rows.

    Raises:
        OutputError: a fragment is there and cannot be read, for lack of credentials or network.
    """
    folders = {shard.folder for shard in manifest.shards}
    there = {f"{folder}/{name}" for folder in folders for name in store.names(folder)}
    candidates = [shard for shard in manifest.shards if shard.name in there]

    def footer(shard: Shard) -> dict[str, str] | None:
        rows, footer = whole_footer(store, shard.name) or (-1, {})
        mine = rows == shard.rows and identity(manifest, shard).items() <= footer.items()
        return footer if mine else None

    with ThreadPoolExecutor(READERS) as pool:
        footers = pool.map(footer, candidates)
        return {shard.name: footer for shard, footer in zip(candidates, footers, strict=True) if footer is not None}


def whole_footer(store: Store, name: str) -> tuple[int, dict[str, str]] | None:
    """Return the number of rows and the footer of a Parquet file, or None if it is missing or damaged.

    Raises:
        OutputError: the store could not say.
    """
    try:
        return store.read_footer(name)
    except DamagedError:
        return None
    except OutputError as error:
        if _is_gone(error):
            return None
        raise


def _is_gone(error: OutputError) -> bool:
    """Return True if a file could not be read because it is not there."""
    return isinstance(error.__context__, FileNotFoundError | NotADirectoryError)


def as_scores(tables: Sequence[pa.Table], columns: Sequence[str] | None = None) -> pa.Table:
    """Return tables of scores as one with the columns of `SCORES`, or some of them; what a table lacks is null."""
    wanted = SCORES.names if columns is None else list(columns)
    tables = [table.select([name for name in table.column_names if name in wanted]) for table in tables]
    tables = [SCORES.empty_table().select(wanted), *(table.replace_schema_metadata() for table in tables)]
    return pa.concat_tables(tables, promote_options="permissive").select(wanted)


def reconcile(store: Store, manifest: Manifest) -> None:
    """Check that every shard's fragment is there, belongs to this audit and has its rows.

    Raises:
        OutputError: naming the first fragment that does not fit.
    """
    footers = published(store, manifest)
    for shard in manifest.shards:
        if shard.name not in footers:
            raise missing_fragment(store, shard)


def missing_fragment(store: Store, shard: Shard) -> OutputError:
    """Return the error for a fragment that is missing or damaged."""
    return OutputError(
        f"{store.url}/{shard.name} is missing or not whole: expected {shard.rows} rows of this audit; "
        f"run the audit again to score them"
    )


def read_scores(
    store: Store, manifest: Manifest, folder: str = SCORES_FOLDER, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return all scores of one data set of an audit, in row order.

    Args:
        store: the output of the audit.
        manifest: its manifest.
        folder: `SCORES_FOLDER` for the audited rows, `HOLDOUT_FOLDER` for the held-out ones.
        columns: those to read, of the columns of `SCORES`; all for None.

    Raises:
        DamagedError: a fragment is damaged, or does not hold its rows.
        OutputError: a fragment cannot be read.
    """
    shards = [shard for shard in manifest.shards if shard.folder == folder]
    with ThreadPoolExecutor(READERS) as pool:
        return as_scores(list(pool.map(lambda shard: read_fragment(store, shard, columns), shards)), columns)


def read_fragment(store: Store, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the scores of one shard, with the columns of `SCORES` or some of them, without the metadata of its file.

    Raises:
        DamagedError: the fragment is damaged, or does not hold the rows of the shard.
        OutputError: it cannot be read, or is not there any more.
    """
    wanted = None if columns is None else list(dict.fromkeys(["row", *columns]))
    try:
        table = store.read_table(shard.name, wanted)
    except OutputError as error:
        raise missing_fragment(store, shard) if _is_gone(error) else error from None
    with suppress(pa.ArrowException, KeyError):  # columns of other types are not those of a fragment
        found = as_scores([table], wanted)
        if np.array_equal(found["row"].to_numpy(), np.arange(shard.start, shard.stop)):
            return found if columns is None else found.select(list(columns))
    raise DamagedError(
        shard.name, store.path(shard.name), f"it does not hold rows {shard.start} to {shard.stop - 1}, each once"
    )
