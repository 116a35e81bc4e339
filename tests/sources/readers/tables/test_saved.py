import json
import pickle

import datasets
import pytest

from tests.support.samples import dataset
from volgrowth.errors import DataError
from volgrowth.sources import open_source


def test_the_order_of_a_selection_is_the_order_of_rows(tmp_path, images):
    mixed = dataset(images, number=list(range(57))).shuffle(seed=3).select(range(5, 45))
    mixed.save_to_disk(str(tmp_path / "mixed"), num_shards=2)
    rows = list(open_source(str(tmp_path / "mixed"), id_column="number").read(0, 40))
    assert [int(row.image_id) for row in rows] == list(mixed["number"])
    assert [row.data for row in rows] == [images[int(row.image_id)] for row in rows]


def test_a_dict_of_splits_needs_a_name_unless_there_is_one(tmp_path, images):
    both = datasets.DatasetDict({"train": dataset(images), "test": dataset(images[:3])})
    both.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError, match=r"several splits \(train, test\)"):
        open_source(str(tmp_path / "both"))
    with pytest.raises(DataError, match="no split 'dev'; it has: train, test"):
        open_source(str(tmp_path / "both"), split="dev")
    source = open_source(str(tmp_path / "both"), split="test")
    assert [row.source for row in source.read(0, 3)] == ["test#0", "test#1", "test#2"]
    datasets.DatasetDict({"only": dataset(images)}).save_to_disk(str(tmp_path / "one"))
    assert open_source(str(tmp_path / "one")).num_rows == 57


def test_a_single_data_set_has_one_split(tmp_path, images):
    dataset(images).save_to_disk(str(tmp_path / "d"))
    assert open_source(str(tmp_path / "d"), split="train").num_rows == 57
    with pytest.raises(DataError, match="no split 'test'; it has: train"):
        open_source(str(tmp_path / "d"), split="test")


def test_images_by_path_are_read_from_their_files(tmp_path, images):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "near.png").write_bytes(images[0])
    (tmp_path / "far.png").write_bytes(images[1])
    paths = ["near.png", str(tmp_path / "far.png"), "gone.png"]
    # A plain struct: saving a column of the type Image would put the files' bytes in.
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = {"image": [{"bytes": None, "path": path} for path in paths]}
    saved = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": struct}))
    saved.save_to_disk(str(tmp_path / "d"))
    near, far, gone = open_source(str(tmp_path / "d")).read(0, 3)
    assert (near.data, far.data, gone.data) == (images[0], images[1], None)
    assert (gone.error or "").startswith("the file does not exist; the table holds its path and no bytes")


def test_the_fingerprint_follows_rows_and_shards(tmp_path, images):
    dataset(images).save_to_disk(str(tmp_path / "a"))
    dataset(images).save_to_disk(str(tmp_path / "b"))
    dataset(images).save_to_disk(str(tmp_path / "c"), num_shards=2)
    dataset(images[:-1]).save_to_disk(str(tmp_path / "d"))
    a, b, c, d = (open_source(str(tmp_path / name)).fingerprint for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def test_a_worker_notices_a_changed_data_set(tmp_path, images):
    dataset(images).save_to_disk(str(tmp_path / "d"))
    pickled = pickle.dumps(open_source(str(tmp_path / "d")))
    dataset(images[:50]).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="it has 50 rows, then 57"):
        list(pickle.loads(pickled).read(0, 1))


def test_no_rows_are_an_error(tmp_path, images):
    dataset(images).select([]).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match="empty data set"):
        open_source(str(tmp_path / "d"))


def test_broken_folders_are_said(tmp_path, images):
    dataset(images).save_to_disk(str(tmp_path / "d"))
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    (tmp_path / "d" / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "i"}]}))
    with pytest.raises(DataError, match="indices mapping by an old version"):
        open_source(str(tmp_path / "d"))
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    (tmp_path / "d" / state["_data_files"][0]["filename"]).write_bytes(b"no arrow")
    with pytest.raises(DataError, match="cannot be loaded as a save_to_disk folder"):
        open_source(str(tmp_path / "d"))
    for content in ("{", "[]"):
        (tmp_path / "d" / "state.json").write_text(content)
        with pytest.raises(DataError, match=r"state\.json"):
            open_source(str(tmp_path / "d"))
