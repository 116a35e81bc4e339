"""The listings of an audit's data sets, kept in its output, and the data sets opened by them.

A listing names the data set's files in a fixed order, with the rows of each. Workers read by the frozen listing what
their rows need and list nothing again. A data set that has changed since is an error, and never another picture.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import pyarrow as pa

from volgrowth.audit.output.manifest import SCORES_FOLDER, DataInfo, Manifest
from volgrowth.errors import DamagedError, OutputError
from volgrowth.sources import Listing, Row, Source, open_source
from volgrowth.storage.places import printable
from volgrowth.storage.store import Store

LISTING_FOLDER = "listing"
# rows between two wanted ones that are read through to save a read
READ_THROUGH = 16


def write_listings(store: Store, listings: Mapping[str, Listing], generation: int = 0) -> None:
    """Write listings in chunks, where workers find them.

    Args:
        listings: by the folder that holds the scores of their rows.
        generation: how often the data set had been extended when it was listed.
    """
    for folder, listing in listings.items():
        for index, chunk in enumerate(listing.chunks()):
            store.write_table(chunk_name(folder, generation, index), chunk, {})


def stored_listing(store: Store, folder: str, data: DataInfo) -> Listing:
    """Return the frozen listing of a data set whose scores are in `folder`. Chunks are read when they are needed."""
    generation = len(data.grown)

    def load(chunk: int) -> pa.Table:
        name = chunk_name(folder, generation, chunk)
        table = store.read_table(name)
        if lacking := [column for column in ("name", "size", "rows", "offsets") if column not in table.column_names]:
            raise DamagedError(name, store.path(name), f"it lacks the column {lacking[0]}")
        if (strange := _outside(table["name"])) is not None:
            raise DamagedError(
                name, store.path(name), f"it names {printable(strange)!r}, which is not below {data.name}"
            )
        return table

    return Listing.stored(data.listing, load)


def _outside(names: pa.ChunkedArray) -> str | None:
    """Return the first name of a listing that leads out of the data set: volgrowth writes none."""
    for name in names.to_pylist():
        if name.startswith(b"/") or (b".." in name and b".." in name.split(b"/")):
            return os.fsdecode(name)
    return None


def open_frozen_data(store: Store, manifest: Manifest, folder: str = SCORES_FOLDER) -> Source:
    """Open a data set of an audit by the listing that was frozen with it.

    Args:
        store: the output of the audit.
        manifest: its manifest.
        folder: `SCORES_FOLDER` for the audited data set, `HOLDOUT_FOLDER` for the held-out one.

    Raises:
        DataError: the data set is not there any more, or no longer the one that was listed.
    """
    audited, config = folder == SCORES_FOLDER, manifest.config
    data = manifest.data if audited else manifest.holdout
    assert data is not None
    return open_source(
        data.name,
        data.split,
        config["image_column"],
        config["id_column"] if audited else None,
        stored_listing(store, folder, data),
        config["class_column"] or config["caption_column"],
        config["max_bytes"],
        config.get("data_config" if audited else "holdout_config"),  # manifests of older versions have neither
    )


def read_rows(source: Source, rows: Sequence[int]) -> Iterator[Row]:
    """Yield some rows of a data set, given in rising order; rows that are near to one another are read in one go."""
    starts = [k for k, row in enumerate(rows) if not k or row - rows[k - 1] > READ_THROUGH]
    for first, end in pairwise([*starts, len(rows)]):
        wanted = set(rows[first:end])
        for row in source.read(rows[first], rows[end - 1] + 1):
            if row.row in wanted:
                yield row


def listing_is_whole(store: Store, folder: str, data: DataInfo) -> bool:
    """Return whether the stored listing of a data set can be read and is the one that the manifest names."""
    try:
        return Listing.build(data.kind, stored_listing(store, folder, data)).fingerprint == data.fingerprint
    except OutputError:
        return False


def chunk_name(folder: str, generation: int, chunk: int) -> str:
    """Return the name of a chunk of a listing, which was written after so many extensions of the data set."""
    return f"{LISTING_FOLDER}/{folder}-{generation}-{chunk:05d}.parquet"
