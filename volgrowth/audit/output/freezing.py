"""Freezing an audit into its output folder, and comparing a repeated command with the audit that is there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from volgrowth.audit.output.listings import LISTING_FOLDER, listing_is_whole, stored_listing, write_listings
from volgrowth.audit.output.manifest import (
    COMPUTING,
    HOLDOUT_FOLDER,
    IMAGES_FOLDER,
    MANIFEST,
    SCORES_FOLDER,
    SUCCESS,
    DataInfo,
    Manifest,
)
from volgrowth.audit.output.mending import tell_user
from volgrowth.audit.output.trust import remember_output
from volgrowth.errors import DataError, OutputError
from volgrowth.sources import Listing
from volgrowth.storage.store import Store


@dataclass(frozen=True)
class FrozenAudit:
    """A manifest and the listings it was made from; each listing is keyed by the folder of its scores."""

    manifest: Manifest
    listings: dict[str, Listing]


def freeze(store: Store, asked: FrozenAudit, *, extend: bool = False) -> Manifest:
    """Write an audit to an empty output folder, or check it against the audit that is there.

    The output counts as this account's own from now on: its user named the model and the data sets in it.

    Args:
        store: the output folder.
        asked: the audit as model, data and settings are now.
        extend: take in the files that the data set gained.

    Returns:
        The manifest that holds from now on: the one that was there, if there was one.

    Raises:
        OutputError: the folder holds another audit, or something else.
    """
    manifest = _frozen(store, asked, extend)
    remember_output(store)
    return manifest


def _frozen(store: Store, asked: FrozenAudit, extend: bool) -> Manifest:
    """Do what `freeze` says, but remember nothing."""
    if store.exists(MANIFEST):
        frozen = Manifest.from_json(store.read_json(MANIFEST), f"{store.url}/{MANIFEST}")
        difference = next(_differences(frozen, asked.manifest, finished=store.exists(SUCCESS)), None)
        if difference:
            raise OutputError(
                f"output {store.url} holds another audit: {difference}. Choose another output, or repeat "
                f"the audit as it was to resume it"
            )
        if frozen.holdout:
            _mend_listing(store, frozen, asked, HOLDOUT_FOLDER)
        return _grown(store, frozen, asked, extend)
    ours = (LISTING_FOLDER, IMAGES_FOLDER)
    strangers = [name for name in store.names() if not name.startswith(".") and name not in ours]
    if strangers:
        raise OutputError(
            f"output {store.url} is not empty and holds no audit (it has {strangers[0]}): choose an empty or new folder"
        )
    write_listings(store, asked.listings)
    store.write_json(MANIFEST, asked.manifest.to_json())
    return asked.manifest


def _grown(store: Store, frozen: Manifest, asked: FrozenAudit, extend: bool) -> Manifest:
    """Return the frozen manifest, extended by the files that the data set gained if there are any.

    Raises:
        OutputError: the data set changed, or it gained files and `extend` was not asked for.
    """
    if frozen.data.fingerprint == asked.manifest.data.fingerprint:
        _mend_listing(store, frozen, asked, SCORES_FOLDER)
        return frozen
    before, now = frozen.data, asked.manifest.data
    try:
        listing = Listing.extended(stored_listing(store, SCORES_FOLDER, before), asked.listings[SCORES_FOLDER])
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
    data = before.extended(listing, now.opened)
    write_listings(store, {SCORES_FOLDER: listing}, len(data.grown))
    store.delete(SUCCESS)
    extended = replace(frozen, data=data)
    store.write_json(MANIFEST, extended.to_json())
    return extended


def _mend_listing(store: Store, frozen: Manifest, asked: FrozenAudit, folder: str) -> None:
    """Write a listing again that is missing or damaged: the data set as it is now has the same files."""
    data = frozen.data if folder == SCORES_FOLDER else frozen.holdout
    assert data is not None
    if not listing_is_whole(store, folder, data):
        tell_user(
            f"the listing of {data.name} in {store.url}/{LISTING_FOLDER} is missing or damaged: it is written again"
        )
        write_listings(store, {folder: asked.listings[folder]}, len(data.grown))


def _differences(frozen: Manifest, asked: Manifest, *, finished: bool) -> Iterator[str]:
    """Yield the differences between two audits as `name was A there and is B now`, the most telling first."""
    for name in () if finished else COMPUTING:
        begun, here = frozen.versions.get(name), asked.versions.get(name)
        if begun != here:
            yield f"it was begun with {name} {begun} and would go on with {here}"
    for name in sorted({*frozen.config, *asked.config}):
        before, now = frozen.config.get(name), asked.config.get(name)
        if before != now:
            yield f"{name} was {before!r} there and is {now!r} now"
    # settings name them too; what is opened later is what stands here
    for which, before, now in (("data", frozen.data, asked.data), ("holdout", frozen.holdout, asked.holdout)):
        if before and now and (before.name, before.split) != (now.name, now.split):
            yield f"its {which} set is {before.name} there and {now.name} now"
    if not asked.model.is_model_of(frozen.model):
        yield f"the model's weights changed ({frozen.model.hash[:19]} there, {asked.model.hash[:19]} now)"
    if frozen.holdout and asked.holdout and frozen.holdout.fingerprint != asked.holdout.fingerprint:
        yield _changed("holdout", frozen.holdout, asked.holdout)


def _changed(which: str, before: DataInfo, now: DataInfo) -> str:
    return (
        f"the {which} set changed (it had {before.rows} rows in {before.files} files there and has {now.rows} "
        f"in {now.files} now)"
    )
