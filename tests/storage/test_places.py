"""Data sets by URL, on a real S3 server."""

import os
import threading
import time

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs  # type: ignore[import-untyped]

from tests.support.samples import again, dataset, pairs, write_folder, write_parquet, write_tar
from volgrowth.errors import DataError
from volgrowth.sources import open_source
from volgrowth.storage import places as module
from volgrowth.storage.places import StorePlace, locate, read_ahead

KINDS = {
    "one.parquet": "parquet",
    "parts": "parquet",
    "folder": "folder",
    "tars": "webdataset",
    "tars/0.tar": "webdataset",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory, images):
    """The same twelve images as a parquet file, a folder of parquet files, image files, tars."""
    root, images = tmp_path_factory.mktemp("kinds"), images[:12]
    write_parquet(root / "one.parquet", images)
    for part in range(3):
        write_parquet(root / "parts" / f"train-{part:05}.parquet", images[part * 4 : (part + 1) * 4], group=3)
    write_folder(root / "folder" / "a", images[:5])
    write_folder(root / "folder" / "b", images[5:])
    write_tar(root / "tars" / "0.tar", pairs(images))
    return root


@pytest.fixture
def url(root, bucket):
    return bucket.upload(root, "some/data")


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_every_kind_is_read_by_url_as_it_is_here(root, url, name, kind):
    here, there = open_source(str(root / name)), open_source(f"{url}/{name}")
    assert there.kind == kind
    assert there.fingerprint == here.fingerprint
    rows = list(here.read(0, 12))
    assert list(there.read(0, 12)) == rows
    assert list(again(there, f"{url}/{name}").read(2, 9)) == rows[2:9]
    assert list(open_source(f"file://{root}/{name}").read(2, 9)) == rows[2:9]


@pytest.mark.parametrize(
    "pattern",
    ["parts/*.parquet", "parts/train-0000[0-2].parquet", "parts/train-{00000..00002}.parquet", "tars/{0,*}.tar"],
)
def test_patterns_are_read_by_url_as_they_are_here(root, url, pattern):
    here, there = open_source(f"{root}/{pattern}"), open_source(f"{url}/{pattern}")
    assert there.fingerprint == here.fingerprint
    assert list(again(there, f"{url}/{pattern}").read(3, 10)) == list(here.read(3, 10))


@pytest.mark.parametrize("name", [*KINDS, "parts/*.parquet"])
def test_other_stores_go_the_same_way(root, name):
    memory = fsspec.filesystem("memory")
    memory.put(f"{root}/", "/kinds/", recursive=True)
    try:
        there = open_source(f"memory://kinds/{name}")
        assert list(there.read(0, 12)) == list(open_source(f"{root}/{name}").read(0, 12))
        assert list(again(there, f"memory://kinds/{name}").read(3, 9)) == list(there.read(3, 9))
    finally:
        memory.rm("/kinds", recursive=True)


def test_names_of_any_characters_are_read(bucket, images):
    names = sorted(["ü +%20&#?[x]*.png", "a//b..c.png", "{0..1}.png", "d/e..f g.png"])
    for name, data in zip(names, images, strict=False):
        bucket.put(f"x/{name}", data)
    source = open_source(f"{bucket.url}/x")
    assert [(row.source, row.data) for row in source.read(0, 4)] == list(zip(names, images, strict=False))


def test_a_whole_bucket_is_a_data_set(bucket, images):
    for name in ("b.png", "a/1.png", ".hidden.png", "a/.hid/1.png", "note.txt", "a/"):
        bucket.put(name, images[0] if name[-1] == "g" else b"")
    assert [row.source for row in open_source(bucket.url).read(0, 2)] == ["a/1.png", "b.png"]
    assert open_source(bucket.url + "/", split="a").num_rows == 1
    with pytest.raises(DataError, match=r"has no split 'c'.* it has: a"):
        open_source(bucket.url, split="c")


@pytest.fixture
def pages(bucket, monkeypatch):
    """A folder that the server lists in pages of seven, and that is taken from its client by nines."""
    place, _ = locate(bucket.url) or (None, None)
    assert isinstance(place, StorePlace)
    monkeypatch.setitem(place.files.req_kw, "MaxKeys", 7)
    monkeypatch.setattr(module, "PAGE", 9)
    for number in range(25):
        bucket.put(f"x/{number:02}.png", b"0")
    return f"{bucket.url}/x"


def test_a_long_listing_comes_in_pages(pages):
    assert [row.source for row in open_source(pages).read(0, 25)] == [f"{n:02}.png" for n in range(25)]


def test_opening_reads_footers_and_reading_reads_row_groups(bucket, monkeypatch):
    images = [os.urandom(20_000) for _ in range(40)]
    table = pa.table(
        {"image": images, "name": [str(number) for number in range(40)], "other": [os.urandom(20_000)] * 40}
    )
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, row_group_size=10, use_dictionary=False, compression=None)
    bucket.put("a.parquet", stream.getvalue().to_pybytes())
    fetched, fetch = [], s3fs.S3File._fetch_range

    def watched(self, *span):
        fetched.append(span)
        return fetch(self, *span)

    monkeypatch.setattr(s3fs.S3File, "_fetch_range", watched)
    source = open_source(f"{bucket.url}/a.parquet", image_column="image", id_column="name")
    assert sum(stop - start for start, stop in fetched) <= 1 << 17
    fetched.clear()
    rows = list(source.read(12, 18))
    assert [(row.image_id, row.data) for row in rows] == [(str(row), images[row]) for row in range(12, 18)]
    assert 10 * 20_000 < sum(stop - start for start, stop in fetched) < 10 * 20_000 + (1 << 17)
    assert len(fetched) <= 4


def test_a_worker_lists_nothing_and_reads_one_footer(root, url, proxy):
    for name, most in (("folder", 3), ("parts", 7), ("tars", 4)):
        source = open_source(f"{url}/{name}")
        proxy.requests.clear()
        row = next(again(source, f"{url}/{name}").read(5, 6))
        assert row.row == 5
        listings = [request for request in proxy.requests if "list-type" in request and "max-keys=1" not in request]
        assert not listings
        assert len(proxy.requests) <= most, proxy.requests


def test_images_are_fetched_side_by_side_in_order(root, url, monkeypatch):
    source = open_source(f"{url}/folder")
    together, most, lock, read = 0, 0, threading.Lock(), StorePlace.read

    def watched(self, name):
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.01)
        try:
            return read(self, name)
        finally:
            with lock:
                together -= 1

    monkeypatch.setattr(StorePlace, "read", watched)
    monkeypatch.setattr(StorePlace, "threads", 4)
    assert list(source.read(0, 12)) == list(open_source(f"{root}/folder").read(0, 12))
    assert 1 < most <= 4


def test_reading_ahead_is_bounded_and_ends_with_its_reader():
    asked = []

    def items():
        for item in range(1000):
            asked.append(item)
            yield item

    reader = read_ahead(str, items(), 4)
    assert [next(reader) for _ in range(3)] == ["0", "1", "2"]
    reader.close()
    assert len(asked) == 6


def test_images_by_relative_path_are_fetched(bucket, images, tmp_path):
    paths = ["one.png", "deep/../one.png", "gone.png", str(tmp_path / "one.png")]
    (tmp_path / "one.png").write_bytes(images[0])
    pq.write_table(pa.table({"image": [{"bytes": None, "path": path} for path in paths]}), tmp_path / "a.parquet")
    rows = list(open_source(f"{bucket.upload(tmp_path, 'x')}/a.parquet").read(0, 4))
    assert [row.data for row in rows] == [images[0], images[0], None, None]
    assert (rows[2].error or "").startswith("the file does not exist; the table holds its path")
    assert rows[3].error == (
        "the value is an absolute path, and the data set lies in an object store; the table holds its path and no "
        "bytes: datasets.Image() and save_to_disk put them in"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("s3://no-such-bucket-here/data", r"The specified bucket does not exist\): create no-such-bucket-here"),
        ("s3://no-such-bucket-here", "does not exist .*check the bucket"),
        ("s3://no-such-bucket-here/*.parquet", "specified bucket does not exist"),
        ("{bucket}/nothing", "nothing does not exist .*check the bucket and the path"),
        ("{bucket}/x/*.parquet", "as a pattern it matches no file"),
        ("{bucket}/x/{{0..3}}.tar", r"0\.tar does not exist, and .* stands for it"),
        ("{bucket}/x/notes.txt", "neither parquet nor tar"),
        ("{bucket}/x", "holds no images"),
    ],
)
def test_what_is_not_there_is_said(bucket, data, message):
    bucket.put("x/notes.txt", b"no image")
    with pytest.raises(DataError, match=message) as caught:
        open_source(data.format(bucket=bucket.url))
    assert "\n" not in str(caught.value)


def test_a_saved_folder_is_not_read_by_url(bucket, images, tmp_path):
    dataset(images[:3]).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": dataset(images[:3])}).save_to_disk(str(tmp_path / "both"))
    for name in ("saved", "both"):
        with pytest.raises(DataError, match=r"holds arrow files \(save_to_disk\), .* copy it"):
            open_source(bucket.upload(tmp_path, "x") + f"/{name}")


@pytest.mark.parametrize("kind", ["denied", "expired"])
def test_a_store_that_refuses_is_said(url, proxy, kind):
    proxy.fail(kind, method="HEAD|GET")
    with pytest.raises(DataError, match=r"some/data/folder cannot be read .*: renew the credentials or ask"):
        open_source(f"{url}/folder")


@pytest.mark.parametrize(
    ("name", "after"), [("folder", 1), ("parts", 1), ("parts", 2), ("one.parquet", 2), ("tars", 1)]
)
def test_a_store_that_refuses_while_rows_are_read_ends_the_run(url, proxy, name, after):
    source = open_source(f"{url}/{name}")
    fault = proxy.fail("denied", method="HEAD|GET", after=after)
    with pytest.raises(DataError, match=r"cannot be read .*: renew the credentials or ask"):
        list(source.read(0, 12))
    assert fault.hits > after


def test_a_listing_that_breaks_off_is_no_data_set(pages, bucket, proxy, monkeypatch):
    place, _ = locate(bucket.url) or (None, None)
    assert isinstance(place, StorePlace)
    monkeypatch.setitem(place.files.req_kw, "MaxKeys", 7)
    fault = proxy.fail("denied", method="GET", path="continuation-token")
    with pytest.raises(DataError, match=r"x cannot be read .*: renew the credentials or ask"):
        open_source(pages)
    assert fault.hits


def test_a_store_that_is_not_there_is_worth_another_attempt(url, monkeypatch):
    source = open_source(f"{url}/folder")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"check the endpoint \(S3: AWS_ENDPOINT_URL,"):
        again(source, f"{url}/folder")


@pytest.mark.parametrize(
    ("name", "key"), [("folder", "folder/a/0003.png"), ("parts", "parts/train-00000.parquet"), ("tars", "tars/0.tar")]
)
def test_an_object_that_changed_or_went_is_an_error(url, bucket, name, key):
    source = open_source(f"{url}/{name}")
    bucket.put(f"some/data/{key}", encode_more := b"x" * 50)
    with pytest.raises(DataError, match=f"{key} holds {len(encode_more)} bytes, and .* when .* it has changed"):
        list(source.read(0, 4))
    bucket.client.delete_object(Bucket=bucket.name, Key=f"some/data/{key}")
    with pytest.raises(DataError, match=f"{key} (holds nothing, and|does not exist any more: restore)"):
        list(source.read(0, 4))


def test_a_package_that_is_missing_is_named():
    with pytest.raises(DataError, match=r"gs://.* needs a package .*pip install 'volgrowth\[gs\]'"):
        locate("gs://bucket/data")
