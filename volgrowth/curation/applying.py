"""Apply a curation list: write the data set that it keeps beside the source, which is only read.

For a folder everything is written to a hidden folder beside it, which is renamed as the last step: the destination
holds either nothing or all of it. For an object store, see `volgrowth.curation.stored`. The rows of each file are
counted by reading it. A receipt lists what was written: see `volgrowth.curation.receipts`.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.policy import Action, list_digest
from volgrowth.audit.output.result import Audit
from volgrowth.audit.output.unchanged import check_rows, check_unchanged, expected_hashes
from volgrowth.curation.image_files import write_file_list
from volgrowth.curation.kept import Kept
from volgrowth.curation.receipts import Receipt
from volgrowth.curation.stages import Stage, open_folder_stage, open_target
from volgrowth.curation.stored import Unfinished, check_prefix, open_stored_stage
from volgrowth.curation.tables import write_kept_dataset, write_kept_indices, write_kept_parquet
from volgrowth.curation.tars import write_kept_tars
from volgrowth.errors import OutputError, UsageError
from volgrowth.storage.store import Store
from volgrowth.storage.urls import filesystem, is_url

INDICES = "indices"
WRITERS: dict[str, Callable[[Any, Stage, Kept], None]] = {
    "parquet": write_kept_parquet,
    "arrow": write_kept_dataset,
    "webdataset": write_kept_tars,
    "folder": write_file_list,
    INDICES: write_kept_indices,
}
COMPARED_AT_ONCE = 1 << 16
COPIED = frozenset(("parquet", "arrow", "webdataset"))
"""Forms that copy the rows. All rows that stay are compared with what was scored, since all are read anyway."""


def check_destination(audit: Audit, destination: str, indices: bool = False) -> Path | Store:
    """Check that a data set can be written to a destination, and return its absolute path, or its store.

    Args:
        audit: of the data set.
        destination: a new local folder, or the URL of an empty prefix in an object store.
        indices: write row numbers instead of rows; see `apply_list`.

    Raises:
        UsageError: rows of the data set have no numbers in `datasets`.
        OutputError: the destination exists, or is in the data set itself, or the store cannot be reached.
    """
    kind, data = audit.frozen.data.kind, audit.frozen.data.name
    if indices and kind not in ("arrow", "hub"):
        raise UsageError(
            f"--indices: the rows of {data}, of the kind {kind}, may have another order in `datasets`; expected a "
            "save_to_disk folder or a data set of the hub; leave --indices out"
        )
    target = open_target(destination)
    within = f"--apply {destination} is in the audited data set {data}: choose a folder outside of it"
    if isinstance(target, Store):
        if is_url(data) and _holds(data, target):
            raise OutputError(within)
        check_prefix(target)
        return target
    if os.path.lexists(target):
        raise OutputError(f"--apply {destination} exists: choose a new folder, or `volgrowth curate --undo` it first")
    if not is_url(data) and os.path.isdir(data) and target.resolve().is_relative_to(Path(data).resolve()):
        raise OutputError(within)
    return target


def _holds(data: str, target: Store) -> bool:
    """Return whether the URL of a data set is that of a folder that a prefix of the same store is in."""
    files, path = filesystem(data)
    return files == target.files and PurePosixPath(target.root).is_relative_to(PurePosixPath(path))


def apply_list(
    audit: Audit, rows: pa.Table | Iterable[pa.Table], destination: str, *, indices: bool = False
) -> Receipt:
    """Write the data set that a list keeps, in the form of the audited one.

    Args:
        audit: finished; its data set is read again.
        rows: the list, with the columns of `CURATION`, every row of the data set once, in row order; in one table or
            in parts.
        destination: a new local folder, or the URL of an empty prefix in an object store.
        indices: for a data set that `datasets` loads, write the row numbers instead of the rows.

    Returns:
        The receipt, which is also in the destination.

    Raises:
        OutputError: the destination exists or cannot be written.
        DataError: the data set has changed since it was audited.
        UsageError: the list keeps no row, or the data set cannot be written so.
    """
    target = check_destination(audit, destination, indices)
    source = audit.open_data()
    kept, counts = _kept([rows] if isinstance(rows, pa.Table) else rows, audit.frozen.data.rows)
    form = INDICES if indices or source.kind == "hub" else source.kind
    if form in COPIED:
        check_rows(source, _hashes(audit, kept))
    else:
        check_unchanged(audit.store, audit.frozen)
    actions = {action.value: counts[action.value] for action in Action}
    receipt = Receipt(list_digest(audit), audit.frozen.data.name, form, kept.rows, actions, {})
    with _opened(target, receipt, kept) as stage:
        WRITERS[form](source, stage, kept)
        if stage.rows != kept.rows:
            raise OutputError(
                f"{destination} would hold {stage.rows} rows, and the list keeps {kept.rows}: nothing was written; try "
                "again, and report it if it stays"
            )
        return stage.finish(receipt)


def _opened(target: Path | Store, receipt: Receipt, kept: Kept) -> AbstractContextManager[Stage]:
    """Open the place to write the rows that stay to."""
    if isinstance(target, Path):
        return open_folder_stage(target)
    digest = hashlib.sha256(kept.mask.tobytes() + (b"" if kept.weight is None else kept.weight.tobytes()))
    return open_stored_stage(target, Unfinished(replace(receipt, files={}, tags={}), digest.hexdigest()))


def _kept(parts: Iterable[pa.Table], rows: int) -> tuple[Kept, Counter[str]]:
    """Return what a list keeps, and the number of rows of each action."""
    mask, counts, weight, start = np.zeros(rows, bool), Counter[str](), None, 0
    for part in parts:
        some = slice(start, start + len(part))
        mask[some] = pc.not_equal(part["action"], Action.DROP.value).to_numpy()
        counts.update(part["action"].to_pylist())
        if weight is None and counts[Action.DOWNWEIGHT.value]:
            weight = np.where(mask, 1.0, 0.0)  # of the rows up to here
        if weight is not None:
            weight[some] = part["weight"].to_numpy()
        start += len(part)
    if not mask.any():
        raise UsageError("the list drops every row: expected one at least that stays")
    return Kept(mask, weight), counts


def _hashes(audit: Audit, kept: Kept) -> Iterator[dict[int, int]]:
    """Yield the hash of the bytes of each row that stays, those of some shards at a time."""
    waiting, count = dict[int, int](), 0
    for part in audit.parts(scores=["image_id", "bytes_hash"]):
        hashes = expected_hashes(part, audit.frozen.config["id_column"])
        waiting |= {row: value for row, value in hashes.items() if kept.mask[row]}
        count += len(part)
        if count >= COMPARED_AT_ONCE:
            yield waiting
            waiting, count = {}, 0
    yield waiting
