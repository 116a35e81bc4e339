"""Freezing a plan into OUT, and comparing it with what is there.

Beside the manifest OUT keeps the listing of the data set's files, in chunks: workers read what their rows need and list
nothing again, and a data set that gained files can be told from one that changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from volgrowth.audit.output.manifest import COMPUTING, MANIFEST, SCORES_FOLDER, SUCCESS, DataInfo, Manifest
from volgrowth.errors import DataError, OutputError
from volgrowth.sources import Listing
from volgrowth.storage.store import Store

LISTING_FOLDER = "listing"


@dataclass(frozen=True)
class Plan:
    """A manifest, and the listings it was made from, by the folder of their scores."""

    manifest: Manifest
    listings: dict[str, Listing]


def freeze(store: Store, plan: Plan, *, extend: bool = False) -> Manifest:
    """Write the plan to an empty OUT, or check it against the one that is there.

    Args:
        extend: take in the files that the data set gained.

    Raises:
        OutputError: OUT holds another audit, or something else.
    """
    if store.exists(MANIFEST):
        frozen = Manifest.from_json(store.read_json(MANIFEST), f"{store.url}/{MANIFEST}")
        difference = next(_differences(frozen, plan.manifest, finished=store.exists(SUCCESS)), None)
        if difference:
            raise OutputError(
                f"output {store.url} holds another audit: {difference}. Choose another output, or repeat "
                f"the audit as it was to resume it"
            )
        return _grown(store, frozen, plan, extend)
    strangers = [name for name in store.names() if not name.startswith(".") and name != LISTING_FOLDER]
    if strangers:
        raise OutputError(
            f"output {store.url} is not empty and holds no audit (it has {strangers[0]}): choose an empty or new folder"
        )
    write_listings(store, plan)
    store.write_json(MANIFEST, plan.manifest.to_json())
    return plan.manifest


def write_listings(store: Store, plan: Plan) -> None:
    """Put the listings of a new plan where workers find them."""
    for folder, listing in plan.listings.items():
        _write_listing(store, folder, 0, listing)


def stored_listing(store: Store, folder: str, data: DataInfo) -> Listing:
    """The frozen listing of a data set."""
    generation = len(data.grown)
    return Listing.stored(data.listing, lambda chunk: store.read_table(_chunk_name(folder, generation, chunk)))


def _grown(store: Store, frozen: Manifest, plan: Plan, extend: bool) -> Manifest:
    """The frozen plan, with what the data set gained.

    Raises:
        OutputError: it changed, or gained files and that was not asked for.
    """
    if frozen.data.fingerprint == plan.manifest.data.fingerprint:
        return frozen
    before, now = frozen.data, plan.manifest.data
    try:
        listing = Listing.extended(stored_listing(store, SCORES_FOLDER, before), plan.listings[SCORES_FOLDER])
    except DataError as error:
        raise OutputError(
            f"output {store.url} holds another audit: {_changed('data', before, now)}; {error}. Choose another output"
        ) from None
    if listing.num_files == before.files:
        return frozen
    if not extend:
        raise OutputError(
            f"output {store.url} holds an audit of fewer files: the data set had {before.files} and gained "
            f"{listing.num_files - before.files}. Repeat the command with --extend to audit those into it, or choose "
            f"another output"
        )
    data = before.extended(listing)
    _write_listing(store, SCORES_FOLDER, len(data.grown), listing)
    store.delete(SUCCESS)
    extended = replace(frozen, data=data)
    store.write_json(MANIFEST, extended.to_json())
    return extended


def _write_listing(store: Store, folder: str, generation: int, listing: Listing) -> None:
    for index, chunk in enumerate(listing.chunks()):
        store.write_table(_chunk_name(folder, generation, index), chunk, {})


def _chunk_name(folder: str, generation: int, chunk: int) -> str:
    return f"{LISTING_FOLDER}/{folder}-{generation}-{chunk:05d}.parquet"


def _differences(frozen: Manifest, planned: Manifest, *, finished: bool) -> Iterator[str]:
    """What differs, the most telling first, as `name was A there and is B now`."""
    for name in () if finished else COMPUTING:
        begun, here = frozen.versions.get(name), planned.versions.get(name)
        if begun != here:
            yield f"it was begun with {name} {begun} and would go on with {here}"
    for name in sorted({*frozen.config, *planned.config}):
        before, now = frozen.config.get(name), planned.config.get(name)
        if before != now:
            yield f"{name} was {before!r} there and is {now!r} now"
    if frozen.model.hash != planned.model.hash:
        yield f"the model's weights changed ({frozen.model.hash[:19]} there, {planned.model.hash[:19]} now)"
    if frozen.holdout and planned.holdout and frozen.holdout.fingerprint != planned.holdout.fingerprint:
        yield _changed("holdout", frozen.holdout, planned.holdout)


def _changed(which: str, before: DataInfo, now: DataInfo) -> str:
    return (
        f"the {which} set changed (it had {before.rows} rows in {before.files} files there and has {now.rows} "
        f"in {now.files} now)"
    )
