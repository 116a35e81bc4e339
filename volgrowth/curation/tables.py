"""Writers of tables without the rows that a list drops: Parquet files, `save_to_disk` folders, and row numbers.

All columns stay as they are. A file that keeps no row is left out.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from volgrowth.curation.kept import WEIGHT, Kept, kept_entries, refuse_weights
from volgrowth.curation.stages import Stage
from volgrowth.errors import DataError
from volgrowth.sources.listing import SourceFile
from volgrowth.sources.readers.tables.parquet import ParquetSource
from volgrowth.sources.readers.tables.saved import ArrowSource, DatasetSource
from volgrowth.sources.readers.tables.table_columns import BATCH_ROWS
from volgrowth.sources.readers.tables.table_types import without_views
from volgrowth.storage.failures import store_reason

GROUP_BYTES = 64 << 20
"""Bytes held in memory before a row group is written; smaller row groups keep their bounds."""
INDICES_FILE = "indices.arrow"
BATCH_INDICES = 1 << 16
SHARD_BYTES = 500_000_000
"""Bytes of an Arrow file that is written, about, as `save_to_disk` has them by default."""
STATE_FILE = "state.json"
BESIDE = ("dataset_info.json", STATE_FILE)
"""What `save_to_disk` writes beside the Arrow files of a split."""
SPLITS_FILE = "dataset_dict.json"
"""What it writes above the folders of splits."""


def write_kept_parquet(source: ParquetSource, stage: Stage, kept: Kept) -> None:
    """Write the Parquet files of the data set with the rows that stay, row group by row group."""
    stage.expect([file.name for file, _ in kept_entries(source, kept)])
    for file, first in kept_entries(source, kept):
        if stage.has(file.name):
            continue
        with source.open_file(file) as parquet:
            schema = parquet.schema_arrow
            if kept.weight is not None:
                schema = _weighted(schema, source.place.url(file.name))
            with (
                stage.new_file(file.name, _count_parquet) as path,
                path.open("wb") as written,  # by its name pyarrow would refuse one without UTF-8
                pq.ParquetWriter(written, schema, compression="zstd") as writer,
            ):
                for table in _groups(source, file, parquet, first, kept):
                    writer.write_table(table.cast(schema))


def _groups(
    source: ParquetSource, file: SourceFile, parquet: pq.ParquetFile, row: int, kept: Kept
) -> Iterator[pa.Table]:
    """Yield the rows that stay of each row group, in parts of about `GROUP_BYTES`; `row` is the file's first row."""
    for group in range(parquet.num_row_groups):
        end = row + parquet.metadata.row_group(group).num_rows
        if kept.mask[row:end].any():
            waiting: list[pa.Table] = []
            for table in _batches(source, file, parquet, group, row, kept):
                waiting.append(table)
                if sum(some.nbytes for some in waiting) >= GROUP_BYTES:
                    yield pa.concat_tables(waiting)
                    waiting = []
            if waiting:
                yield pa.concat_tables(waiting)
        row = end


def _batches(
    source: ParquetSource, file: SourceFile, parquet: pq.ParquetFile, group: int, row: int, kept: Kept
) -> Iterator[pa.Table]:
    batches = parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[group])
    last = row + parquet.metadata.row_group(group).num_rows - 1
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"row group {group} of {source.place.url(file.name)} cannot be read ({store_reason(error)}): restore "
                f"the file, or drop the rows {row} to {last} in the list"
            ) from None
        if batch is None:
            return
        mask = kept.mask[row : row + batch.num_rows]
        table = _selectable(pa.Table.from_batches([batch]))
        check_whole(table[source.columns.image], mask, source.place.url(file.name))
        table = table.filter(pa.array(mask))
        weights = kept.weights(row, row + batch.num_rows)
        if weights is not None:
            table = table.append_column(WEIGHT, pa.array(weights))
        row += batch.num_rows
        if table.num_rows:
            yield table


def _selectable(table: pa.Table) -> pa.Table:
    """Return a table in types from which Arrow can select rows; a cast to its schema undoes this."""
    return table.cast(pa.schema([field.with_type(without_views(field.type)) for field in table.schema]))


def _weighted(schema: pa.Schema, where: str) -> pa.Schema:
    """Add the column of weights to a schema, and to the note on columns that the Hugging Face tools keep in it."""
    if WEIGHT in schema.names:
        refuse_weights(where)
    metadata = dict(schema.metadata or {})
    try:
        noted = json.loads(metadata[b"huggingface"])
        noted["info"]["features"][WEIGHT] = {"dtype": "float64", "_type": "Value"}
        metadata[b"huggingface"] = json.dumps(noted).encode()
    except (KeyError, TypeError, ValueError):
        pass  # the file has no such note
    return schema.append(pa.field(WEIGHT, pa.float64())).with_metadata(metadata or None)


def write_kept_dataset(source: ArrowSource, stage: Stage, kept: Kept) -> None:
    """Write a `save_to_disk` folder with the rows that stay; of several splits, only the audited one.

    `save_to_disk` writes each of its shards as a data set of its own, so that one shard at a time is on the disk.
    """
    dataset = _kept_dataset(source, kept)
    several = source.folder != source.place.path
    below = f"{source.split}/" if several else ""
    shards = min(len(dataset), int(dataset.data.nbytes * len(dataset) / len(dataset.data) / SHARD_BYTES) + 1)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    stage.expect([*(f"{below}{name}" for name in (*names, *BESIDE)), *([SPLITS_FILE] if several else [])])
    for shard, name in enumerate(names):
        last = shard == shards - 1  # is written again in any case, for the files beside it
        if last or not stage.has(f"{below}{name}"):
            with stage.new_file(f"{below}{name}", count_batches) as path:
                beside = _write_shard(dataset.shard(shards, shard, contiguous=True), path)
    beside[STATE_FILE] |= {"_data_files": [{"filename": name} for name in names], "_fingerprint": dataset._fingerprint}
    for name, content in beside.items():
        _write_json(stage, f"{below}{name}", content)
    if several:
        _write_json(stage, SPLITS_FILE, {"splits": [source.split]})


def _kept_dataset(source: ArrowSource, kept: Kept) -> Any:
    """Return the `datasets.Dataset` of the rows that stay, with their weights."""
    dataset = source.load()
    check_whole(dataset.data.column(source.columns.image), kept.mask, source.where)
    if kept.weight is not None:
        if WEIGHT in dataset.column_names:
            refuse_weights(source.where)
        # added before rows are selected: added afterwards `datasets` would write a cache beside the source
        dataset = dataset.add_column(WEIGHT, kept.weight)
    return dataset.select(np.flatnonzero(kept.mask))


def _write_shard(shard: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Write the Arrow file of a `datasets.Dataset`, and return what `save_to_disk` writes beside it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        shard.save_to_disk(folder, num_shards=1)
        os.replace(next(Path(folder).glob("*.arrow")), path)
        return {name: json.loads((Path(folder) / name).read_text(encoding="utf-8")) for name in BESIDE}


def _write_json(stage: Stage, name: str, content: dict[str, Any]) -> None:
    if not stage.has(name):
        with stage.new_file(name) as path:
            path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def write_kept_indices(source: DatasetSource, stage: Stage, kept: Kept) -> None:
    """Write the numbers of the rows that stay, in the form in which `datasets` keeps those of a selection."""
    rows = np.flatnonzero(kept.mask).astype(np.uint64)
    columns = {"indices": rows} if kept.weight is None else {"indices": rows, WEIGHT: kept.weight[kept.mask]}
    table = pa.table(columns)
    stage.expect([INDICES_FILE])
    with stage.new_file(INDICES_FILE, count_batches) as path, pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, BATCH_INDICES)


def count_batches(path: Path) -> int:
    """Return the number of rows in an Arrow file that was written."""
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as batches:
        return sum(batch.num_rows for batch in batches)


def _count_parquet(path: Path) -> int:
    with path.open("rb") as file:
        return pq.read_metadata(file).num_rows


def check_whole(column: pa.ChunkedArray, mask: np.ndarray, where: str) -> None:
    """Check that the images of the masked rows are in the column, not in files beside the table.

    Args:
        column: of images, in the form of the Hugging Face feature `Image`, or of bytes.
        mask: of the rows that stay, (rows,).
        where: name of the table in messages.

    Raises:
        DataError: an image is in a file that a copy of the table would not find.
    """
    fields = {field.name for field in column.type} if pa.types.is_struct(column.type) else set()
    if "path" not in fields:
        return
    column = column.cast(without_views(column.type))
    outside = pa.array(mask)
    if "bytes" in fields:
        outside = pc.and_(outside, pc.is_null(pc.struct_field(column, "bytes")))
    for path in pc.struct_field(column, "path").filter(outside).drop_null().to_pylist():
        if not os.path.isabs(path):
            raise DataError(
                f"{where} has images in files beside it, such as {path!r}, which a copy of the table would not find: "
                "put their bytes into the table and audit that, or use the list by itself"
            )
