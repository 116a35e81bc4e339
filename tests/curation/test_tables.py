"""Whatever table is read is written again: every kept row, in its columns and types."""

import os
from pathlib import Path
from typing import cast

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.curation.test_applying import edited
from tests.sources.readers.tables.test_table_types import PLAIN, STRUCTS, column
from tests.support.samples import digits, values, write_parquet
from volgrowth.curation import apply_list
from volgrowth.curation.kept import WEIGHT, Kept
from volgrowth.curation.stages import FolderStage
from volgrowth.curation.tables import write_kept_dataset, write_kept_parquet
from volgrowth.errors import DataError
from volgrowth.sources import open_source
from volgrowth.sources.base import Request
from volgrowth.sources.readers.tables.parquet import ParquetSource
from volgrowth.sources.readers.tables.saved import ArrowSource
from volgrowth.storage.places import LocalPlace

IMAGES = digits(200)
ROWS = len(IMAGES)
BESIDE = {
    "string view": pa.array([f"{n}, longer than twelve" for n in range(ROWS)], pa.string_view()),
    "views in a list": pa.array([[f"{n}, longer than twelve", None] for n in range(ROWS)], pa.list_(pa.string_view())),
    "views in a struct": pa.array([{"a": b"x" * n} for n in range(ROWS)], pa.struct([("a", pa.binary_view())])),
    "dictionary": pa.array([str(n % 3) for n in range(ROWS)]).dictionary_encode(),
    "nulls": pa.nulls(ROWS),
    "ids": pa.array([os.urandom(16) for _ in range(ROWS)], pa.uuid()),
    "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(4 * ROWS, dtype="float32").reshape(ROWS, 2, 2)),
    "map": pa.array([[("a", n)] for n in range(ROWS)], pa.map_(pa.string(), pa.int64())),
    "halves": pa.array(np.arange(ROWS, dtype="float16")),
    "json": pa.array(["{}"] * ROWS, pa.json_()),
}


def kept(weighted: bool = False) -> Kept:
    """Drops rows here and there, and a stretch longer than a batch of the reader."""
    mask = np.arange(ROWS) % 3 != 1
    mask[70:140] = False
    return Kept(mask, np.where(mask, 0.5, 0.0) if weighted else None)


def applied(tmp_path: Path, table: pa.Table, weighted: bool, **options: int) -> tuple[pa.Table, pa.Table]:
    """The table as a list leaves it, and as it was written."""
    (tmp_path / "data").mkdir(exist_ok=True)
    pq.write_table(table, tmp_path / "data/a.parquet", **options)
    some, stage = kept(weighted), tmp_path / "new"
    source = cast(ParquetSource, open_source(str(tmp_path / "data"), image_column="image"))
    write_kept_parquet(source, FolderStage(stage), some)
    rows = np.flatnonzero(some.mask)
    written = open_source(str(stage), image_column="image").read(0, len(rows))
    assert [row.data for row in written] == [IMAGES[row] for row in rows]
    return pq.ParquetFile(tmp_path / "data/a.parquet").read(), pq.ParquetFile(stage / "a.parquet").read()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("form", [*STRUCTS, *PLAIN])
def test_images_of_every_type_are_written_in_it(tmp_path, form, weighted):
    table = pa.table({"image": column(IMAGES, form), "number": range(ROWS)})
    before, now = applied(tmp_path, table, weighted)
    assert now.schema.remove(2) == before.schema if weighted else now.schema == before.schema
    assert now["number"].to_pylist() == np.flatnonzero(kept().mask).tolist()
    assert not weighted or set(now[WEIGHT].to_pylist()) == {0.5}


@pytest.mark.parametrize("form", BESIDE)
def test_columns_of_every_type_are_written_in_it(tmp_path, form):
    before, now = applied(tmp_path, pa.table({"image": values(IMAGES), "beside": BESIDE[form]}), False)
    assert now.schema == before.schema
    expected, mask = before["beside"].to_pylist(), kept().mask
    assert str(now["beside"].to_pylist()) == str([value for value, stays in zip(expected, mask, strict=True) if stays])


def test_columns_of_one_name_are_written_as_they_are(tmp_path):
    twice = pa.Table.from_arrays([values(IMAGES), pa.array(range(ROWS)), pa.array(range(ROWS))], ["image", "x", "x"])
    before, now = applied(tmp_path, twice, False, row_group_size=30)
    assert now.schema == before.schema
    assert now.column(2).to_pylist() == np.flatnonzero(kept().mask).tolist()


@pytest.mark.parametrize("as_pyarrow", [False, True])
def test_what_polars_writes_is_read_and_written(tmp_path, as_pyarrow):
    frame = pl.DataFrame({"image": IMAGES, "name": [str(n % 9) for n in range(ROWS)]}).with_columns(
        pl.col("name").cast(pl.Categorical).alias("kind")
    )
    (tmp_path / "data").mkdir()
    frame.write_parquet(tmp_path / "data/a.parquet", use_pyarrow=as_pyarrow)
    source = open_source(str(tmp_path / "data"), id_column="name", condition_column="kind")
    assert [row.condition for row in source.read(0, ROWS)] == [row.image_id for row in source.read(0, ROWS)]
    write_kept_parquet(cast(ParquetSource, source), FolderStage(tmp_path / "new"), kept())
    written = pl.read_parquet(tmp_path / "new/a.parquet")
    assert written.equals(frame.filter(pl.Series(kept().mask)))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_cache_of_datasets_becomes_a_saved_data_set(tmp_path, weighted):
    write_parquet(tmp_path / "data/train.parquet", IMAGES, number=range(ROWS))
    datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    (folder,) = [path.parent for path in (tmp_path / "cache").rglob("dataset_info.json")]
    before = sorted(folder.iterdir())
    source = ArrowSource(LocalPlace(folder), Request(str(folder)))
    write_kept_dataset(source, FolderStage(tmp_path / "new"), kept(weighted))
    assert sorted(folder.iterdir()) == before
    rows = np.flatnonzero(kept().mask)
    new = open_source(str(tmp_path / "new"), "train", id_column="number")
    assert [(row.image_id, row.data) for row in new.read(0, new.num_rows)] == [(str(row), IMAGES[row]) for row in rows]
    assert (WEIGHT in datasets.load_from_disk(str(tmp_path / "new")).column_names) == weighted


def test_images_beside_a_table_of_views_are_refused(tmp_path):
    kind = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])
    for index, data in enumerate(IMAGES[:3]):
        (tmp_path / f"{index}.png").write_bytes(data)
    table = pa.table({"image": pa.array([{"bytes": None, "path": f"{index}.png"} for index in range(3)], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [row.data for row in source.read(0, 3)] == IMAGES[:3]
    with pytest.raises(DataError, match=r"has images in files beside it, such as '0\.png'"):
        write_kept_parquet(cast(ParquetSource, source), FolderStage(tmp_path / "new"), Kept(np.ones(3, bool), None))


def test_a_list_is_applied_to_tables_that_differ_in_width(run, tmp_path):
    (tmp_path / "data").mkdir()
    for name, form, start, stop in (("a", "views", 0, 90), ("b", "nulls", 90, 120), ("c", "order", 120, ROWS)):
        beside = BESIDE["string view"].slice(start, stop - start)
        table = pa.table({"image": column(IMAGES[start:stop], form), "beside": beside})
        pq.write_table(table, tmp_path / f"data/{name}.parquet")
    audit = run(tmp_path / "data", tmp_path / "out")
    drop = [0, *range(60, 100), 199]
    receipt = apply_list(audit, edited(audit, drop), str(tmp_path / "new"))
    expected = [None if 90 <= row < 120 else IMAGES[row] for row in range(ROWS) if row not in drop]
    new = open_source(str(tmp_path / "new"))
    assert receipt.rows == new.num_rows == len(expected)
    assert [row.data for row in new.read(0, new.num_rows)] == expected
    for name in "abc":
        assert pq.read_schema(tmp_path / f"new/{name}.parquet") == pq.read_schema(tmp_path / f"data/{name}.parquet")
