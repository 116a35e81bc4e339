"""Images that were given as objects, written into an output as Parquet files, from where workers read them."""

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from volgrowth.errors import DataError
from volgrowth.sources.given.containers import CONDITION, EMBEDDING, IMAGE, GivenImages, GivenRow
from volgrowth.sources.opened import LeftAside, as_metadata
from volgrowth.storage.store import Store

PART_ROWS, PART_BYTES, GROUP_ROWS = 4096, 1 << 26, 128


class Written:
    """A folder of an output with images that were given as objects.

    Attributes:
        url: path or URL of the folder.
        columns: names of its columns, by role: "image", "id", "condition" or "embedding".
    """

    def __init__(self, store: Store, folder: str, given: GivenImages):
        self.url = store.path(folder)
        self.columns = {"image": given.image_column or IMAGE}
        if given.id_column:
            self.columns["id"] = given.id_column
        if given.condition_column or given.conditions is not None:
            self.columns["condition"] = given.condition_column or CONDITION
        if given.embedding_column or given.embeddings is not None:
            self.columns["embedding"] = given.embedding_column or EMBEDDING
        self._store, self._folder, self._given = store, folder, given

    def write(self, frozen: bool) -> tuple[bytes, ...]:
        """Write the images, and return the digest of each file, which depends on its rows alone.

        Args:
            frozen: whether an audit of the folder's images has begun, so that they must be the same.

        Raises:
            DataError: an image is none, or the folder holds other images and `frozen` is true.
        """
        names, digests = list[str](), list[bytes]()
        for index, data in enumerate(self._parts()):
            name = f"{self._folder}/part-{index:05d}.parquet"
            self._publish(name, data, frozen)
            names.append(name.rpartition("/")[2])
            digests.append(_digest(data))
        for name in self._store.names(self._folder):
            if name not in names:
                self._refuse(frozen)
                self._store.delete(f"{self._folder}/{name}")
        return tuple(digests)

    def _publish(self, name: str, data: bytes, frozen: bool) -> None:
        """Write one file, unless it is there with the same rows."""
        if self._store.exists(name):
            if _digest(self._store.read(name)) == _digest(data):
                return
            self._refuse(frozen)
        elif frozen:
            self._refuse(frozen)
        self._store.write(name, data)

    def _refuse(self, frozen: bool) -> None:
        if frozen:
            raise DataError(
                f"{self._given.called} are others than those that {self._store.url} audits: give the same images in "
                f"the same order, or another output"
            )

    def _parts(self) -> Iterator[bytes]:
        rows, size = list[GivenRow](), 0
        for row in self._given.rows():
            if len(rows) >= PART_ROWS or size >= PART_BYTES:
                yield self._file(rows, [])
                rows, size = [], 0
            rows.append(row)
            size += len(row.image or b"")
        yield self._file(rows, self._given.left_aside)  # which is known after the last row

    def _file(self, rows: list[GivenRow], left_aside: list[LeftAside]) -> bytes:
        columns: dict[str, pa.Array] = {
            self.columns["image"]: pa.array(
                [None if row.image is None else {"bytes": row.image, "path": None} for row in rows],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            )
        }
        if "id" in self.columns:
            columns[self.columns["id"]] = pa.array(
                [None if row.image_id is None else str(row.image_id) for row in rows]
            )
        if "condition" in self.columns:
            columns[self.columns["condition"]] = _conditions([row.condition for row in rows])
        if "embedding" in self.columns:
            columns[self.columns["embedding"]] = _embeddings([row.embedding for row in rows], self._given.called)
        table = pa.table(columns).replace_schema_metadata(as_metadata(left_aside))
        file = io.BytesIO()
        pq.write_table(table, file, row_group_size=GROUP_ROWS, compression="none", use_dictionary=False)
        return file.getvalue()


def _conditions(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, bool}:
        return pa.array(values, pa.int64())
    if kinds == {str}:
        return pa.array(values, pa.string())
    raise DataError("conditions are numbers and strings: expected classes as whole numbers, or captions as strings")


def _embeddings(values: list[Any], called: str) -> pa.Array:
    try:
        return pa.array(values, pa.list_(pa.float64()))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"embeddings of {called} hold something else ({' '.join(str(error).split())[:100]}): expected a list of "
            f"finite numbers for each image, or None for one without"
        ) from None


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
