"""Fragments: one published Parquet file per shard, and the facts in its footer."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.errors import DataError, OutputError
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
        **_identity(manifest, shard),
        **extra,
    }
    store.write_table(shard.name, table, footer)


def _identity(manifest: Manifest, shard: Shard) -> dict[str, str]:
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
        identity = _identity(manifest, shard)
        return footer if rows == shard.rows and identity.items() <= footer.items() else None

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
    except OutputError as error:
        cause = error.__context__
        # Arrow calls a footer that it cannot parse an OSError without a number; gcsfs calls a refusal so
        damaged = type(cause) is OSError and cause.errno is None and not str(cause).startswith("Forbidden")
        if damaged or isinstance(cause, FileNotFoundError | NotADirectoryError | UnicodeDecodeError | pa.ArrowInvalid):
            return None
        raise


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


def read_scores(store: Store, manifest: Manifest, folder: str = SCORES_FOLDER) -> pa.Table:
    """Return all scores of one data set of an audit, in row order.

    Args:
        store: the output of the audit.
        manifest: its manifest.
        folder: `SCORES_FOLDER` for the audited rows, `HOLDOUT_FOLDER` for the held-out ones.

    Raises:
        OutputError: rows are missing, or there twice.
    """
    shards = [shard for shard in manifest.shards if shard.folder == folder]
    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(lambda shard: store.read_table(shard.name).replace_schema_metadata(), shards))
    # an audit of an older version may lack columns that were added since: they are null
    table = pa.concat_tables([SCORES.empty_table(), *tables], promote_options="permissive").select(SCORES.names)
    expected = shards[-1].stop if shards else 0
    if not np.array_equal(table.column("row").to_numpy(), np.arange(expected)):
        raise OutputError(
            f"{store.url}/{folder} does not hold every row from 0 to {expected - 1} once: delete the folder "
            f"and run the audit again"
        )
    return table
