"""Rows of a data set are compared with what was scored: a file can change and keep its name and its size.

The listing holds the time of each file, or its ETag in an object store. Files whose time is another one may be a copy
of the same data set, or other images. So rows of these files are read again and their bytes compared with the hashes in
the fragments. Some rows of the whole data set are compared as well, since times can be set. What is read is bounded: it
finds a data set that was replaced, and may miss single images in a large one.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import pyarrow as pa

from volgrowth.audit.output.fragments import published, read_fragment
from volgrowth.audit.output.listings import open_frozen_data, read_rows
from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.output.mending import tell_user
from volgrowth.errors import DamagedError, DataError
from volgrowth.sources import Listing, Row, Source, SourceFile, bytes_hash
from volgrowth.sources.base import FilesSource
from volgrowth.storage.places import read_ahead
from volgrowth.storage.store import Store

ROWS = 32
"""Rows that are compared whatever the times of their files say, from at most `SHARDS` fragments."""
SHARDS = 8
FILES = 1000
"""Files of another time of which rows are compared, at most."""
ROWS_A_FILE = 2
LOOKED_AT = 10_000
"""Files whose times are asked for one by one, at most, where the data set was not listed anew."""
NAMED = 3

Entry = tuple[SourceFile, int]
"""A file of a listing, and the number of its first row."""


def check_unchanged(store: Store, manifest: Manifest, now: Mapping[str, Listing] | None = None) -> None:
    """Compare some rows of an audit's data sets with what was scored.

    Args:
        store: the output of the audit.
        manifest: its manifest.
        now: the listings of the data sets as they are, by the folder of their scores, if they were listed anew.

    Raises:
        DataError: a row holds something else than what was scored; it names the rows.
    """
    done = published(store, manifest)
    for folder, data in ((SCORES_FOLDER, manifest.data), (HOLDOUT_FOLDER, manifest.holdout)):
        shards = [shard for shard in manifest.shards if shard.folder == folder and shard.name in done]
        if data is None or not shards:
            continue
        source = open_frozen_data(store, manifest, folder)
        random = np.random.default_rng(manifest.config["seed"])
        files = _of_another_time(source, random, (now or {}).get(folder))
        if len(files) > FILES:
            tell_user(
                f"{len(files):,} files of {data.name} have another time or tag than when they were audited: rows of "
                f"{FILES:,} of them are compared with what was scored"
            )
        rows = {*_spread(shards, random), *_rows_of(files, random)}
        id_column = manifest.config["id_column"] if folder == SCORES_FOLDER else None
        check_rows(source, [dict(_scored(store, shards, sorted(rows), id_column))])


def check_rows(source: Source, parts: Iterable[Mapping[int, int]]) -> None:
    """Compare rows of a data set with hashes of their bytes.

    Args:
        source: the data set.
        parts: the `bytes_hash` of each row that is compared, in the order of rows, some rows at a time.

    Raises:
        DataError: a row holds something else; it names the rows.
    """
    other = list[str]()
    different = count = 0
    for expected in parts:
        for row in read_rows(source, list(expected)):
            count += 1
            if bytes_hash(row.data or b"") != expected[row.row]:
                different += 1
                other += [f"row {row.row} ({row.source})"] if different <= NAMED else []
    if other:
        named = ", ".join(other)
        more = f" and {different - NAMED} more" if different > NAMED else ""
        raise DataError(
            f"the data set changed since it was audited: {named}{more} of {count} rows that were compared hold another "
            f"image than was scored, or none; restore the files, or audit into a new output"
        )


def check_row(row: Row, scored: Mapping[int, int]) -> None:
    """Raise a DataError if a row that was read holds something else than what was scored.

    Args:
        row: the row.
        scored: the `bytes_hash` of rows, which may lack this one.
    """
    now = bytes_hash(row.data or b"")
    if scored.get(row.row, now) != now:
        held = "another image than was scored" if row.data else "no image any more"
        raise DataError(f"row {row.row} ({row.source}) holds {held}: restore the data set")


def expected_hashes(scores: pa.Table, id_column: str | None) -> dict[int, int]:
    """Return the hash of the bytes of each scored row, by its row; rows without bytes are left out.

    Args:
        scores: with the columns row, image_id and, if it is not of an older version, bytes_hash.
        id_column: the column that ids come from; without one they are hashes of the bytes themselves.
    """
    known = scores["bytes_hash"].to_pylist() if "bytes_hash" in scores.column_names else [None] * len(scores)
    nothing, found = bytes_hash(b""), {}
    for row, name, value in zip(scores["row"].to_pylist(), scores["image_id"].to_pylist(), known, strict=True):
        if value is None and id_column is None and name and name.startswith("sha256:"):
            value = int(name[7:23], 16)
        if value is not None and value != nothing:
            found[row] = value
    return found


def _of_another_time(source: Source, random: np.random.Generator, now: Listing | None) -> list[Entry]:
    """Return the files whose time or tag is not that of the listing."""
    listing = source.listing
    if now is not None and now.fingerprint == listing.fingerprint:
        pairs = zip(_entries(listing), (file.tag for file, _ in _entries(now)), strict=True)
        return [entry for entry, tag in pairs if _differ(entry[0].tag, tag)]
    if not isinstance(source, FilesSource):  # its rows are not in the files of its listing
        return []

    def asked(entry: Entry) -> Entry | None:
        found = source.place.find(entry[0].name)
        return entry if found and _differ(entry[0].tag, found.tag) else None

    share = min(1.0, LOOKED_AT / max(listing.num_files, 1))
    looked_at = (entry for entry in _entries(listing) if random.random() <= share)
    return [entry for entry in read_ahead(asked, looked_at, source.place.threads) if entry]


def _entries(listing: Listing) -> Iterator[Entry]:
    return listing.entries(0, listing.num_rows)


def _differ(before: str, now: str) -> bool:
    return bool(before and now) and before != now


def _rows_of(files: list[Entry], random: np.random.Generator) -> Iterator[int]:
    """Yield rows of files, of a random part of them if they are many."""
    chosen = random.permutation(len(files))[:FILES]
    for file, first in (files[index] for index in chosen):
        yield from (first + random.integers(file.rows, size=ROWS_A_FILE)).tolist()


def _spread(shards: list[Shard], random: np.random.Generator) -> Iterator[int]:
    """Yield random rows of a few random shards."""
    chosen = random.permutation(len(shards))[:SHARDS]
    for shard in (shards[index] for index in chosen):
        yield from random.integers(shard.start, shard.stop, size=-(-ROWS // len(chosen))).tolist()


def _scored(store: Store, shards: Iterable[Shard], rows: list[int], id_column: str | None) -> Iterator[tuple[int, int]]:
    """Yield those of the rows that are scored and have bytes, in order, with the hashes of these."""
    numbers = np.array(rows)
    for shard in shards:
        low, high = np.searchsorted(numbers, [shard.start, shard.stop])
        if low < high:
            try:
                table = read_fragment(store, shard)
            except DamagedError:  # whoever needs its rows says so, or scores them again
                continue
            wanted = set(islice(rows, int(low), int(high)))
            yield from ((row, value) for row, value in expected_hashes(table, id_column).items() if row in wanted)
