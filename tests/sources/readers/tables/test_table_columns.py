import os

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import dataset, values
from volgrowth.errors import DataError
from volgrowth.sources import open_source
from volgrowth.storage.places import LocalPlace


def open_table(tmp_path, columns, **options):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    return open_source(str(tmp_path / "a.parquet"), **options)


@pytest.fixture
def two(images):
    return {"left": values(images), "right": values(images), "label": np.arange(57)}


def test_several_image_columns_need_a_name(tmp_path, two):
    with pytest.raises(DataError, match=r"several image columns \(left, right\): name one with image_column"):
        open_table(tmp_path, two)
    assert open_table(tmp_path, two, image_column="right").num_rows == 57


@pytest.mark.parametrize("option", ["image_column", "id_column"])
def test_a_wrong_column_is_answered_with_those_there_are(tmp_path, two, option):
    with pytest.raises(DataError, match=f"no column 'nope'; it has: left, right, label. Pass one as {option}"):
        open_table(tmp_path, two, **{option: "nope"})


def test_a_data_set_without_images_names_its_columns(tmp_path):
    with pytest.raises(DataError, match="data set without images; it has the columns text, label"):
        open_table(tmp_path, {"text": ["a"], "label": [1]})


@pytest.mark.parametrize("options", [{}, {"image_column": "link"}])
def test_urls_are_not_fetched(tmp_path, options):
    with pytest.raises(DataError, match=r"column 'link' .* a column of URLs is not fetched; download"):
        open_table(tmp_path, {"label": [1], "link": ["https://example.org/a.png"]}, **options)


@pytest.mark.parametrize("url", ["http://example.org/a.png", "s3://bucket/a.png"])
def test_urls_as_paths_of_images_are_not_fetched(tmp_path, url):
    with pytest.raises(DataError, match="a column of URLs is not fetched"):
        open_table(tmp_path, {"image": [{"bytes": None, "path": url}]})


def test_a_url_beside_the_bytes_is_a_note(tmp_path, images):
    source = open_table(tmp_path, {"image": [{"bytes": images[0], "path": "http://example.org/a.png"}]})
    assert [row.data for row in source.read(0, 1)] == images[:1]


def test_of_images_only_the_paths_are_looked_at_when_opening(tmp_path, images, monkeypatch):
    asked, iter_batches = [], pq.ParquetFile.iter_batches

    def spy(self, **options):
        asked.append(options["columns"])
        return iter_batches(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    open_table(tmp_path, {"image": values(images)})
    assert asked == [["image.path"]]


def test_a_column_of_another_type_is_not_an_image_column(tmp_path, two):
    with pytest.raises(DataError, match=r"column 'label' .* holds int64, not images"):
        open_table(tmp_path, two, image_column="label")
    with pytest.raises(DataError, match="an id column holds strings or integers"):
        open_table(tmp_path, two, image_column="left", id_column="right")


def test_metadata_tell_images_from_other_bytes(tmp_path, images):
    data = dataset(images, blob=[b"x"] * 57)
    data.to_parquet(str(tmp_path / "a.parquet"))
    source = open_source(str(tmp_path / "a.parquet"))
    assert [row.data for row in source.read(0, 57)] == images
    features = datasets.Features({"sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    table = pa.table({"sound": values(images)})
    marked = features.arrow_schema.with_metadata(
        {"huggingface": '{"info": {"features": {"sound": {"_type": "Audio"}}}}'}
    )
    pq.write_table(table.cast(marked), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="without images"):
        open_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": 3}}', b'{"info": null}'])
def test_broken_metadata_are_left_aside(tmp_path, images, metadata):
    table = pa.table({"image": values(images)}).replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet")).num_rows == 57


def test_reading_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert LocalPlace(tmp_path).read("pipe") == (None, "not a regular file")


def test_a_path_that_cannot_be_one_is_an_error_of_its_row(tmp_path):
    data, error = LocalPlace(tmp_path).read("a\0b")
    assert data is None
    assert error
