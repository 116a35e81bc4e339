"""Folders written by `datasets.Dataset.save_to_disk` as rows, and what they share with the hub.

Rows are taken from `datasets` as Arrow tables, so images stay encoded and an order made by `select` or
`shuffle` is the order of rows. The files of such a data set do not tell how many rows they hold without being
opened, so its listing is one entry for the split, with all rows, followed by the files with their sizes.
"""

import json
import os
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from volgrowth.errors import DataError
from volgrowth.sources.base import Request, Row, Source, check_range
from volgrowth.sources.conditions import class_names
from volgrowth.sources.listing import Listing, SourceFile
from volgrowth.sources.readers.columns import BATCH_ROWS, choose_columns, rows_of
from volgrowth.sources.readers.splits import DEFAULT_SPLIT, choose_split
from volgrowth.storage.places import LocalPlace


class DatasetSource(Source):
    """Rows of a `datasets.Dataset`. Subclasses write `_load` and call `_open` when they are built.

    Pickled without the data set: a worker loads it again at its first read, and checks that it is the same.
    """

    where: str
    split: str
    place: LocalPlace

    @abstractmethod
    def _load(self) -> Any:
        """The `datasets.Dataset`; DataError if it cannot be loaded."""

    def read(self, start: int, stop: int) -> Iterator[Row]:
        check_range(start, stop, self.num_rows)
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        tables = self._tables()
        for begin in range(start, stop, BATCH_ROWS):
            table = tables[begin : min(begin + BATCH_ROWS, stop)]
            yield from rows_of(table, self.columns, self.place, begin, self.split, begin)

    def _open(self, dataset: Any, request: Request, listing: Listing | None) -> None:
        if not len(dataset):
            raise DataError(f"split {self.split!r} of {self.where} is an empty data set: it holds no rows")
        self.listing = listing or Listing.build(self.kind, _files(dataset, self.split))
        self._check(dataset)

        def peek(column: str) -> pa.ChunkedArray:
            name = column if column in dataset.column_names else column.removesuffix(".path")
            return dataset.select_columns([name]).with_format("arrow")[:8].column(0)

        schema = dataset.features.arrow_schema
        self.columns = choose_columns(schema, request, peek)
        self.condition_names = class_names(schema, self.columns.condition)
        self._dataset = dataset

    def _check(self, dataset: Any) -> None:
        if Listing.build(self.kind, _files(dataset, self.split)).fingerprint != self.fingerprint:
            raise DataError(
                f"split {self.split!r} of {self.where} is not what it was when the data set was opened "
                f"(it has {len(dataset)} rows, then {self.num_rows}): restore it, or start a new audit"
            )

    def _tables(self) -> Any:
        """The data set, such that slicing it gives Arrow tables of the columns that are read."""
        if self._dataset is None:
            dataset = self._load()
            self._check(dataset)
            self._dataset = dataset
        return self._dataset.select_columns(self.columns.names).with_format("arrow")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}


class ArrowSource(DatasetSource):
    """A folder written by `save_to_disk`, of a `Dataset` or a `DatasetDict`.

    Raises:
        DataError: the folder cannot be loaded, holds no rows, or columns and splits as in `choose_columns`
            and `choose_split`.
    """

    kind = "arrow"

    def __init__(self, place: LocalPlace, request: Request, listing: Listing | None = None) -> None:
        self.where, self.place = request.data, place
        root = place.path
        several = (root / "dataset_dict.json").is_file()
        if several:
            available = _json(root / "dataset_dict.json").get("splits") or []
        else:
            available = [_json(root / "state.json").get("_split") or DEFAULT_SPLIT]
        self.split = choose_split(available, request.split, self.where)
        self.folder = root / self.split if several else root
        self._open(self._load(), request, listing)

    def _load(self) -> Any:
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
                f"{self.folder} cannot be loaded as a save_to_disk folder ({error}): save it again"
            ) from None


def _files(dataset: Any, split: str) -> tuple[SourceFile, ...]:
    paths = [Path(file["filename"]) for file in dataset.cache_files]
    files = [SourceFile(path.name, os.path.getsize(path), 0) for path in paths]
    # A data set in memory has no files; its buffers stand in for them.
    return (SourceFile(split, 0 if files else dataset.data.nbytes, len(dataset)), *files)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): save the data set again with save_to_disk") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, expected a JSON object: save the data set again")
    return content
