"""Fragments: one published Parquet file per shard, and what its footer says."""

import numpy as np
import pyarrow as pa

from volgrowth.audit.manifest import HOLDOUT_FOLDER, SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.store import Store
from volgrowth.errors import OutputError
from volgrowth.records import SCHEMA_VERSION, SCORES


def publish(store: Store, shard: Shard, table: pa.Table, config_digest: str, attempt: int, seconds: float) -> None:
    """Write a shard's scores in one step. `seconds` is the time the worker spent on it."""
    footer = {
        "schema_version": str(SCHEMA_VERSION),
        "shard": shard.name,
        "rows": str(shard.rows),
        "config_digest": config_digest,
        "attempt": str(attempt),
        "seconds": f"{seconds:.3f}",
    }
    store.write_table(shard.name, table, footer)


def published(store: Store) -> set[str]:
    """Names of the fragments that are there: a listing, whatever the number of rows."""
    folders = (SCORES_FOLDER, HOLDOUT_FOLDER)
    return {f"{folder}/{name}" for folder in folders for name in store.names(folder) if name.endswith(".parquet")}


def reconcile(store: Store, manifest: Manifest) -> float:
    """Check that every shard's fragment is there, is of this audit and has its rows; give the seconds spent on all.

    Raises:
        OutputError: naming the first fragment that does not fit.
    """
    seconds = 0.0
    for shard in manifest.shards:
        rows, footer = store.read_footer(shard.name)
        expected = {"shard": shard.name, "config_digest": manifest.config_digest}
        found = {key: footer.get(key) for key in expected}
        if found != expected or rows != shard.rows:
            raise OutputError(
                f"{store.url}/{shard.name} has {rows} rows and footer {found}: expected {shard.rows} rows "
                f"and {expected}; delete it and run the audit again"
            )
        seconds += float(footer["seconds"])
    return seconds


def read_scores(store: Store, manifest: Manifest, folder: str = SCORES_FOLDER) -> pa.Table:
    """All scores of the audited (or, with `HOLDOUT_FOLDER`, the held-out) rows, in row order.

    Raises:
        OutputError: rows that are missing, or there twice.
    """
    shards = [shard for shard in manifest.shards if shard.folder == folder]
    tables = [store.read_table(shard.name).replace_schema_metadata() for shard in shards]
    table = pa.concat_tables([SCORES.remove_metadata().empty_table(), *tables])
    expected = shards[-1].stop if shards else 0
    if not np.array_equal(table.column("row").to_numpy(), np.arange(expected)):
        raise OutputError(
            f"{store.url}/{folder} does not hold every row from 0 to {expected - 1} once: delete the folder "
            f"and run the audit again"
        )
    return table
