"""Folders of arrow files as rows, as `save_to_disk` and the cache of `datasets` have them, and what they share with the
hub.

Rows are taken from `datasets` as Arrow tables, so images stay encoded and an order made by `select` or
`shuffle` is the order of rows. The files of such a data set do not tell how many rows they hold without being
opened, so its listing is one entry for the split, with all rows, followed by the files with their sizes.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from volgrowth.errors import DataError
from volgrowth.sources.base import Request, Row, Source
from volgrowth.sources.conditions import class_names
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.opened import Opened
from volgrowth.sources.readers.splits import DEFAULT_SPLIT, choose_split
from volgrowth.sources.readers.tables.arrow_files import (
    described_splits,
    files_by_split,
    is_kept_result,
    load_arrow_files,
)
from volgrowth.sources.readers.tables.table_columns import BATCH_ROWS, Columns, choose_columns, rows_of
from volgrowth.storage.failures import store_reason
from volgrowth.storage.places import Found, LocalPlace, Place

KEPT_RESULTS = "what map() or filter() of datasets kept: save such a result with save_to_disk to audit it"


class DatasetSource(Source):
    """Rows of a `datasets.Dataset`. A subclass writes `load`, and calls `_open` when it is built.

    Pickled without the data set: a worker loads it again at its first read, and checks that it is the same.

    Attributes:
        where: name of the data set, for people.
        split: the split that is read.
        place: the folder that relative paths in the image column start from.
        columns: the columns that are read.
        max_bytes: the most bytes of an encoded image.
    """

    where: str
    split: str
    place: LocalPlace
    columns: Columns
    max_bytes: int
    _dataset: Any

    @abstractmethod
    def load(self) -> Any:
        """Return the `datasets.Dataset`, or raise a DataError."""

    @property
    def columns_by_role(self) -> dict[str, str]:
        return self.columns.by_role

    @property
    def opened(self) -> Opened:
        """The first entry of the listing is no file: it holds the rows."""
        return replace(super().opened, files=self.num_files - 1)

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        if self._dataset is None:
            self._dataset = self._checked(self.load())
        tables = self._dataset.select_columns(self.columns.names).with_format("arrow")
        for begin in range(start, stop, BATCH_ROWS):
            table = tables[begin : min(begin + BATCH_ROWS, stop)]
            yield from rows_of(table, self.columns, self.place, begin, self.split, begin, self.max_bytes)

    def _open(self, dataset: Any, request: Request, listing: Listing | None) -> None:
        if not len(dataset):
            raise DataError(f"split {self.split!r} of {self.where} is an empty data set: it holds no rows")
        self.max_bytes = request.max_bytes
        self.listing = listing or Listing.build(self.kind, _files(dataset, self.split))
        self._dataset = self._checked(dataset)

        def peek(column: str) -> pa.ChunkedArray:
            name = column if column in dataset.column_names else column.removesuffix(".path")
            return dataset.select_columns([name]).with_format("arrow")[:8].column(0)

        schema = dataset.features.arrow_schema
        self.columns = choose_columns(schema, request, peek)
        self.condition_names = class_names(schema, self.columns.condition)

    def _checked(self, dataset: Any) -> Any:
        """Return the data set if it is the one that the listing is of, or raise a DataError."""
        if Listing.build(self.kind, _files(dataset, self.split)).fingerprint != self.fingerprint:
            raise DataError(
                f"split {self.split!r} of {self.where} is not what it was when the data set was opened "
                f"(it has {len(dataset)} rows, then {self.num_rows}): restore it, or start a new audit"
            )
        return dataset

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}


class ArrowSource(DatasetSource):
    """A folder written by `save_to_disk`, of a `Dataset` or a `DatasetDict`, or one of the cache of `datasets`.

    Args:
        place: the folder.
        request: the split and the columns.
        files: arrow files in it, where it was not written by `save_to_disk`; without any, all that lie in it.
        listing: the listing of this data set when it was opened before.

    Raises:
        DataError: the folder lies in a store, cannot be loaded or holds no rows, or `choose_columns` or
            `choose_split` refuses.
    """

    kind = "arrow"
    unit = "arrow file"

    def __init__(
        self, place: Place, request: Request, files: Iterable[Found] = (), listing: Listing | None = None
    ) -> None:
        if not isinstance(place, LocalPlace):
            raise DataError(
                f"{request.data} holds arrow files (save_to_disk), which are read from local folders only: copy it to "
                "every node, or write it as parquet (Dataset.to_parquet)"
            )
        self.where, self.place = request.data, place
        root = self.folder = place.path
        files, self._names = list(files), list[str]()
        # files that the user named need not be all that the cache has
        self._splits = {} if request.data.lower().endswith(".arrow") else described_splits(root)
        if (root / "dataset_dict.json").is_file():
            available = _json(root / "dataset_dict.json").get("splits") or []
            self.split = choose_split(available, request.split, self.where)
            self.folder = root / self.split
        elif (root / "state.json").is_file() and not files and _is_whole(root, listing):
            available = [_json(root / "state.json").get("_split") or DEFAULT_SPLIT]
            self.split = choose_split(available, request.split, self.where)
        else:
            self._choose_files(request, files, listing)
        self._open(self.load(), request, listing)

    def _choose_files(self, request: Request, files: Iterable[Found], listing: Listing | None) -> None:
        """Choose the files of the split in a folder of the cache of `datasets`."""
        if listing is not None:
            first, *others = listing
            self.split, self._names = first.name, [file.name for file in others]
            return
        names = [file.name for file in files] or [path.name for path in self.folder.glob("*.arrow")]
        folders = sorted({name.rpartition("/")[0] or "." for name in names})
        if not names:
            raise DataError(
                f"{self.where} holds no arrow files: expected a folder written by save_to_disk or one of the cache of "
                "datasets"
            )
        if folders != ["."]:
            raise DataError(
                f"{self.where} holds arrow files in {', '.join(folders[:4])}: name the one folder whose files are the "
                "data set"
            )
        kept = sorted(filter(is_kept_result, names))
        self.leave_aside("arrow file", len(kept), KEPT_RESULTS, kept[0] if kept else "")
        splits = files_by_split(names, self._splits, self.where)
        if not splits:
            raise DataError(f"{self.where} holds no data set, only {len(kept)} arrow files that are {KEPT_RESULTS}")
        self.split = choose_split(list(splits), request.split, self.where)
        self._names = splits[self.split]

    def load(self) -> Any:
        if self._names:
            return load_arrow_files(self.folder, self._names, self.split, self._splits)
        from datasets import load_from_disk  # a second to import, and only some data sets need it

        state = _json(self.folder / "state.json")
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise DataError(
                f"{self.folder} was saved with an indices mapping by an old version of datasets, and the "
                "present one would read its rows unmapped: load it with the old version, flatten_indices() "
                "and save it again"
            )
        if not state.get("_data_files"):
            raise DataError(f"split {self.split!r} of {self.where} is an empty data set: it holds no rows")
        try:
            return load_from_disk(str(self.folder))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(
                f"{self.folder} cannot be loaded as a save_to_disk folder ({store_reason(error)}): save it again"
            ) from None


def _is_whole(root: Path, listing: Listing | None) -> bool:
    """Return whether a listing is of all that `save_to_disk` wrote to a folder, and not of arrow files named in it."""
    if listing is None:
        return True
    names = {file.name for file in listing if not file.rows}
    written = _json(root / "state.json").get("_data_files") or []
    return not names or names == {entry.get("filename") for entry in written if isinstance(entry, dict)}


def _files(dataset: Any, split: str) -> tuple[SourceFile, ...]:
    paths = [Path(file["filename"]) for file in dataset.cache_files]
    files = [SourceFile(path.name, os.path.getsize(path), 0, tag=str(path.stat().st_mtime_ns)) for path in paths]
    # A data set in memory has no files; its buffers stand in for them.
    return (SourceFile(split, 0 if files else dataset.data.nbytes, len(dataset)), *files)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({store_reason(error)}): save the data set again with save_to_disk"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, expected a JSON object: save the data set again")
    return content
