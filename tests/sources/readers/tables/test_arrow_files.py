"""Folders of arrow files as the cache of `datasets` has them, made by `datasets` itself."""

import json
import os
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pytest

from tests.support.samples import again, dataset, digits, write_parquet
from volgrowth.errors import DataError
from volgrowth.sources import open_source
from volgrowth.sources.base import Request
from volgrowth.sources.readers.tables.arrow_files import files_by_split
from volgrowth.sources.readers.tables.saved import ArrowSource
from volgrowth.storage.places import LocalPlace

IMAGES = digits(40)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of two splits, one in two files, with the results of `map` and `filter` beside them."""
    root = tmp_path_factory.mktemp("kept")
    write_parquet(root / "data/train.parquet", IMAGES[:30], number=range(30))
    write_parquet(root / "data/test.parquet", IMAGES[30:], number=range(10))
    datasets.load_dataset(str(root / "data"), split="test", cache_dir=str(root / "cache"))
    loaded = datasets.load_dataset(str(root / "data"), split="train", cache_dir=str(root / "cache"))
    loaded.map(lambda row: {"number": 1})
    loaded.filter(lambda row: row["number"] > 3)
    (folder,) = [path.parent for path in (root / "cache").rglob("dataset_info.json")]
    (folder / "data-train.arrow").unlink()
    for part, rows in enumerate((range(12), range(12, 30))):
        loaded.select(rows).save_to_disk(str(root / "part"))
        shutil.move(root / "part/data-00000-of-00001.arrow", folder / f"data-train-{part:05}-of-00002.arrow")
        shutil.rmtree(root / "part")
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "cache"))


def opened(folder: Path, split: str | None = None, id_column: str | None = None) -> ArrowSource:
    return ArrowSource(LocalPlace(folder), Request(str(folder), split, id_column=id_column))


def test_a_cache_opens_by_its_splits_and_says_what_it_leaves_aside(folder):
    with pytest.raises(DataError, match=r"several splits \(test, train\)"):
        opened(folder)
    source = opened(folder, "train", id_column="number")
    rows = list(source.read(0, 30))
    assert [(row.image_id, row.data) for row in rows] == [(str(row), IMAGES[row]) for row in range(30)]
    assert source.opened.said == "30 rows of 2 arrow files; images from column image, ids from column number"
    (aside,) = source.left_aside
    assert (aside.kind, aside.count) == ("arrow file", 2)
    assert aside.why.startswith("what map() or filter() of datasets kept: save such a result with save_to_disk")
    assert [row.data for row in opened(folder, "test").read(0, 10)] == IMAGES[30:]


def test_a_worker_opens_the_same_files_by_the_listing(folder):
    source = opened(folder, "train")
    shutil.copy(folder / "data-test.arrow", folder / "data-train-more.arrow")
    read = ArrowSource(LocalPlace(folder), Request(str(folder), "train"), listing=source.listing)
    assert list(read.read(5, 20)) == list(source.read(5, 20))
    shutil.copy(folder / "data-test.arrow", folder / "data-train-00001-of-00002.arrow")
    with pytest.raises(DataError, match=r"is not what it was|has 22 rows, and 30 by dataset_info\.json"):
        ArrowSource(LocalPlace(folder), Request(str(folder), "train"), listing=source.listing)


def test_a_cache_that_lost_rows_is_refused(folder):
    file = folder / "data-train-00001-of-00002.arrow"
    content = file.read_bytes()
    os.truncate(file, len(content) // 2)
    with pytest.raises(DataError, match=r"00001-of-00002\.arrow cannot be read as arrow .*: it was cut off or damaged"):
        opened(folder, "train")
    file.unlink()
    with pytest.raises(DataError, match=r"split 'train' .* has 2 arrow files by their names, and 1 are there"):
        opened(folder, "train")
    shutil.copy(folder / "data-test.arrow", file)
    with pytest.raises(DataError, match=r"has 22 rows, and 30 by dataset_info\.json: it was cut off"):
        opened(folder, "train")
    assert opened(folder, "test").num_rows == 10
    (folder / "dataset_info.json").write_text("{")
    assert opened(folder, "train").num_rows == 22  # nothing tells that rows are missing


def test_what_is_no_cache_is_refused_with_the_fix(folder, tmp_path):
    for path in folder.glob("data-*"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds no data set, only 2 arrow files that are what map\(\) or filter\(\)"):
        opened(folder)
    with pytest.raises(DataError, match="holds no arrow files: expected a folder written by save_to_disk"):
        opened(tmp_path)
    table = pa.table({"image": IMAGES})
    pyarrow.feather.write_feather(table, tmp_path / "a.arrow")
    with pytest.raises(DataError, match=r"a\.arrow is an arrow file of the file format \(Feather\), which is not read"):
        opened(tmp_path)
    (tmp_path / "a.arrow").unlink()
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert [row.data for row in opened(tmp_path).read(0, 40)] == IMAGES
    with pytest.raises(DataError, match=r"has no split 'test'; it has: train"):
        opened(tmp_path, "test")


@pytest.mark.parametrize(
    ("names", "infos", "splits"),
    [
        (["a-train.arrow", "a-test.arrow"], {}, {"train": 1, "test": 1}),
        (["a-b_c-train-00000-of-00002.arrow", "a-b_c-train-00001-of-00002.arrow"], {}, {"train": 2}),
        (["my-data.arrow"], {}, {"train": 1}),
        (["data-00000-of-00001.arrow"], {}, {"train": 1}),
        (["test-00000-of-00001.arrow"], {}, {"test": 1}),
        (["x.arrow", "cache-1.arrow", "tmpq1.arrow", "notes.txt"], {}, {"train": 1}),
        (["a-art.arrow", "a-train.arrow"], {"art": {}, "train": {}}, {"art": 1, "train": 1}),
        (["a-test-hard.arrow", "a-hard.arrow"], {"hard": {}, "test-hard": {}}, {"test-hard": 1, "hard": 1}),
    ],
)
def test_names_tell_splits(names, infos, splits):
    assert {split: len(files) for split, files in files_by_split(names, infos, "x").items()} == splits


def test_splits_that_are_described_strangely_are_told_by_names(folder):
    for content in ("[]", '{"splits": []}', '{"splits": null}', '{"splits": {"train": 3}}'):
        (folder / "dataset_info.json").write_text(content)
        assert opened(folder, "train").num_rows == 30
    described = {"splits": {"train": {"num_examples": "many"}}}
    (folder / "dataset_info.json").write_text(json.dumps(described))
    assert opened(folder, "train").num_rows == 30


def test_a_cache_opens_by_its_name_alone_and_so_does_one_file(folder):
    source = open_source(str(folder), "train")
    assert [row.data for row in source.read(0, 30)] == IMAGES[:30]
    assert list(again(source, str(folder), split="train").read(3, 9)) == list(source.read(3, 9))
    kinds = {(aside.kind, aside.count) for aside in source.left_aside}
    assert ("arrow file", 2) in kinds
    for name, images in (("data-test.arrow", IMAGES[30:]), ("data-train-00001-of-00002.arrow", IMAGES[12:30])):
        one = open_source(str(folder / name))
        assert [row.data for row in one.read(0, one.num_rows)] == images
        assert list(again(one, str(folder / name)).read(3, 9)) == list(one.read(3, 9))


def test_a_file_of_a_saved_data_set_is_opened_by_itself(tmp_path):
    dataset(IMAGES).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    name = str(tmp_path / "saved/data-00001-of-00002.arrow")
    one = open_source(name)
    assert [row.data for row in one.read(0, 20)] == IMAGES[20:]
    assert list(again(one, name).read(3, 9)) == list(one.read(3, 9))
    whole = open_source(str(tmp_path / "saved"))
    assert list(again(whole, str(tmp_path / "saved")).read(3, 29)) == list(whole.read(3, 29))
