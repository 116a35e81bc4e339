"""Apply a curation list: write the data set that it keeps beside the source, which is only read.

Everything is written to a hidden folder beside the destination, counted by opening it as any reader would, and renamed
as the last step: the destination holds either nothing or all of it. A receipt in it lists what was written: see
`volgrowth.curation.undoing`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from volgrowth.analysis.policy import Action, list_digest
from volgrowth.audit.output.result import Audit
from volgrowth.audit.output.unchanged import check_rows, check_unchanged, expected_hashes
from volgrowth.curation.image_files import FILE_LIST, write_file_list
from volgrowth.curation.kept import Kept
from volgrowth.curation.tables import INDICES_FILE, write_kept_dataset, write_kept_indices, write_kept_parquet
from volgrowth.curation.tars import count_samples, write_kept_tars
from volgrowth.curation.undoing import Receipt, sealed_files
from volgrowth.errors import OutputError, UsageError
from volgrowth.sources import open_source
from volgrowth.storage.failures import store_reason
from volgrowth.storage.urls import is_url
from volgrowth.storage.whole import publish_whole

INDICES = "indices"
WRITERS: dict[str, Callable[[Any, Path, Kept], None]] = {
    "parquet": write_kept_parquet,
    "arrow": write_kept_dataset,
    "webdataset": write_kept_tars,
    "folder": write_file_list,
    INDICES: write_kept_indices,
}
COMPARED_AT_ONCE = 1 << 16
COPIED = frozenset(("parquet", "arrow", "webdataset"))
"""Forms that copy the rows. All rows that stay are compared with what was scored, since all are read anyway."""


def check_destination(audit: Audit, destination: str, indices: bool = False) -> Path:
    """Check that a data set can be written to a destination, and return its absolute path.

    Args:
        audit: of the data set.
        destination: a new local folder.
        indices: write row numbers instead of rows; see `apply_list`.

    Raises:
        UsageError: the destination is a URL, or rows of the data set have no numbers in `datasets`.
        OutputError: the destination exists, or is in the data set itself.
    """
    kind, data = audit.frozen.data.kind, audit.frozen.data.name
    if indices and kind not in ("arrow", "hub"):
        raise UsageError(
            f"--indices: the rows of {data}, of the kind {kind}, may have another order in `datasets`; expected a "
            "save_to_disk folder or a data set of the hub; leave --indices out"
        )
    if is_url(destination):
        raise UsageError(
            f"--apply {destination}: a store has no rename, and an interrupted copy would stay there in part; expected "
            "a local folder, to be copied there when it is whole"
        )
    folder = Path(destination).expanduser().absolute()
    if os.path.lexists(folder):
        raise OutputError(f"--apply {destination} exists: choose a new folder, or `volgrowth curate --undo` it first")
    if not is_url(data) and os.path.isdir(data) and folder.resolve().is_relative_to(Path(data).resolve()):
        raise OutputError(f"--apply {destination} is in the audited data set {data}: choose a folder outside of it")
    return folder


def apply_list(
    audit: Audit, rows: pa.Table | Iterable[pa.Table], destination: str, *, indices: bool = False
) -> Receipt:
    """Write the data set that a list keeps, in the form of the audited one.

    Args:
        audit: finished; its data set is read again.
        rows: the list, with the columns of `CURATION`, every row of the data set once, in row order; in one table or
            in parts.
        destination: a new local folder.
        indices: for a data set that `datasets` loads, write the row numbers instead of the rows.

    Returns:
        The receipt, which is also in the destination.

    Raises:
        OutputError: the destination exists or cannot be written.
        DataError: the data set has changed since it was audited.
        UsageError: the list keeps no row, or the data set cannot be written so.
    """
    folder = check_destination(audit, destination, indices)
    source = audit.open_data()
    kept, counts = _kept([rows] if isinstance(rows, pa.Table) else rows, audit.frozen.data.rows)
    form = INDICES if indices or source.kind == "hub" else source.kind
    if form in COPIED:
        check_rows(source, _hashes(audit, kept))
    else:
        check_unchanged(audit.store, audit.frozen)
    with _staged(folder) as stage:
        WRITERS[form](source, stage, kept)
        written = _count(form, stage, audit)
        if written != kept.rows:
            raise OutputError(
                f"{folder} would hold {written} rows, and the list keeps {kept.rows}: nothing was written; try again, "
                "and report it if it stays"
            )
        actions = {action.value: counts[action.value] for action in Action}
        receipt = Receipt(list_digest(audit), audit.frozen.data.name, form, written, actions, sealed_files(stage))
        receipt.write(stage)
    return receipt


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


def _count(form: str, stage: Path, audit: Audit) -> int:
    """Count the rows that were written, as a reader finds them."""
    if form == "folder":
        with open(stage / FILE_LIST, "rb") as lines:
            return sum(1 for _ in lines)
    if form == INDICES:
        with pa.ipc.open_stream(stage / INDICES_FILE) as batches:
            return sum(batch.num_rows for batch in batches)
    if form == "webdataset":
        return count_samples(stage)
    if form == "parquet":  # by name they need not be what a folder is opened by
        return sum(pq.read_metadata(path).num_rows for path in stage.rglob("*") if path.is_file())
    config = audit.manifest["config"]
    return open_source(str(stage), audit.frozen.data.split, config["image_column"], config["id_column"]).num_rows


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Open a new hidden folder that is renamed to `folder` at the end, or removed if there is an error."""
    try:
        with publish_whole(folder) as stage:
            stage.mkdir()
            yield stage
            if os.path.lexists(folder):  # os.rename would replace an empty folder
                raise FileExistsError(f"{folder} exists by now")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({store_reason(error)}): choose a new folder, with room, that you may write to"
        ) from None
