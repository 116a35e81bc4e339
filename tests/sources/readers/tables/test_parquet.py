import base64
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from pyarrow.parquet.encryption import CryptoFactory, EncryptionConfiguration, KmsClient, KmsConnectionConfig

from tests.support.samples import CUTS, digits, in_parts, values, write_parquet
from volgrowth.errors import DataError
from volgrowth.sources import Listing, content_id, open_source

SIZES = (7, 1, 30, 19)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Files of odd sizes, an empty one among them, with row groups of four."""
    root, images = tmp_path_factory.mktemp("odd"), digits(57)
    write_parquet(root / "2b.parquet", [], group=4)
    for index, size in enumerate(SIZES):
        start = sum(SIZES[:index])
        write_parquet(root / f"{index}.parquet", images[start : start + size], group=4)
    return open_source(str(root))


@given(cuts=CUTS)
def test_reading_in_two_parts_is_reading_at_once(source, cuts):
    in_parts(source, cuts)


def test_rows_say_their_file_and_place_in_it(source):
    rows = {row.row: row.source for row in source.read(0, 57)}
    assert rows[6] == "0.parquet#6"
    assert rows[7] == "1.parquet#0"
    assert rows[8] == "2.parquet#0"
    assert rows[56] == "3.parquet#18"


def test_only_overlapping_row_groups_and_wanted_columns_are_read(source, monkeypatch):
    asked = []
    iter_batches = pq.ParquetFile.iter_batches

    def spy(self, **options):
        asked.append((options["row_groups"], options["columns"]))
        return iter_batches(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert len(list(source.read(8 + 5, 8 + 9))) == 4
    assert asked == [([1], ["image"]), ([2], ["image"])]


def test_large_row_groups_are_streamed(tmp_path):
    images = [bytes([k % 256]) * 3 for k in range(300)]
    write_parquet(tmp_path / "a.parquet", images, group=300)
    source = open_source(str(tmp_path / "a.parquet"))
    assert [row.data for row in source.read(60, 200)] == images[60:200]


def test_ids_come_from_the_column_and_need_not_be_unique(tmp_path, images):
    write_parquet(tmp_path / "a.parquet", images[:4], name=["x", "x", None, "y"], number=[1, 2, 3, 4])
    path = str(tmp_path / "a.parquet")
    ids = [row.image_id for row in open_source(path, id_column="name").read(0, 4)]
    assert ids == ["x", "x", content_id(images[2]), "y"]
    assert [row.image_id for row in open_source(path, id_column="number").read(0, 4)] == list("1234")


def test_splits_are_told_by_names(tmp_path, images):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", images[:5])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", images[:3])
    with pytest.raises(DataError, match=r"several splits \(test, train\)"):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match="no split 'dev'; it has: test, train"):
        open_source(str(tmp_path), split="dev")
    assert open_source(str(tmp_path), split="test").num_rows == 3


def test_paths_are_read_relative_to_the_data_set(tmp_path, images):
    (tmp_path / "one.png").write_bytes(images[0])
    paths = ["one.png", str(tmp_path / "one.png"), "gone.png", "http://x/y.png", None, "."]
    table = pa.table({"image": pa.array([{"bytes": None, "path": path} for path in paths])})
    pq.write_table(table.slice(0, 3), tmp_path / "a.parquet")
    rows = list(open_source(str(tmp_path)).read(0, 3))
    assert [row.data for row in rows] == [images[0], images[0], None]
    assert rows[2].error == (
        "the file does not exist; the table holds its path and no bytes: datasets.Image() and save_to_disk put them in"
    )
    # Past the rows that are looked at when opening, a URL is a matter of its row.
    filler = pa.table({"image": pa.array([{"bytes": b"x", "path": "x"}] * 9)})
    typed = pa.table({"image": pa.array([{"bytes": None, "path": path} for path in paths], filler["image"].type)})
    pq.write_table(pa.concat_tables([filler, typed]), tmp_path / "a.parquet")
    errors = [row.error for row in open_source(str(tmp_path / "a.parquet")).read(12, 15)]
    assert errors == [
        "the value is a URL, which is not fetched; download first",
        "the value is null: neither bytes nor a path",
        "not a regular file; the table holds its path and no bytes: datasets.Image() and save_to_disk put them in",
    ]


def test_every_row_comes_whatever_is_in_it(tmp_path, images):
    broken = [images[0], b"", b"garbage", images[1]]
    column = pa.array([{"bytes": data, "path": None} for data in broken] + [None], type=values(images).type)
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    rows = list(open_source(str(tmp_path / "a.parquet")).read(0, 5))
    assert [row.data for row in rows] == [*broken, None]
    assert rows[1].image_id == rows[4].image_id == content_id(b"")
    assert rows[1].error
    assert rows[4].error
    assert rows[0].error is None


def test_text_that_is_not_utf_8_does_not_lose_a_batch(tmp_path, images):
    raw = pa.array([b"a", b"\xff", b"c"])
    names = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    write_parquet(tmp_path / "a.parquet", images[:3], name=names)
    rows = list(open_source(str(tmp_path / "a.parquet"), id_column="name").read(0, 3))
    assert [row.image_id for row in rows] == ["a", r"\xff", "c"]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_corrupt_row_group_costs_only_its_own_rows(tmp_path, broken):
    path = tmp_path / "a.parquet"
    images = digits(12)
    write_parquet(path, images, group=4)
    group = pq.ParquetFile(path).metadata.row_group(broken)
    start = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + group.column(0).total_compressed_size] = b"\xff" * group.column(0).total_compressed_size
    path.write_bytes(data)
    rows = list(open_source(str(path)).read(2, 12))
    assert [row.row for row in rows] == list(range(2, 12))
    assert [row.source for row in rows] == [f"a.parquet#{row}" for row in range(2, 12)]
    assert [row.row // 4 for row in rows if row.data is None] == [broken] * (2 if broken == 0 else 4)
    assert all("row group cannot be read" in (row.error or "") for row in rows if row.data is None)
    assert not any("\n" in (row.error or "") for row in rows)


def test_the_fingerprint_follows_names_sizes_and_rows(tmp_path, images):
    write_parquet(tmp_path / "a.parquet", images[:9])
    write_parquet(tmp_path / "b.parquet", images[9:20])
    seen = {open_source(str(tmp_path)).fingerprint}
    assert open_source(str(tmp_path)).fingerprint in seen
    write_parquet(tmp_path / "b.parquet", images[9:21])
    seen.add(open_source(str(tmp_path)).fingerprint)
    (tmp_path / "b.parquet").rename(tmp_path / "c.parquet")
    seen.add(open_source(str(tmp_path)).fingerprint)
    write_parquet(tmp_path / "d.parquet", images[:1])
    seen.add(open_source(str(tmp_path)).fingerprint)
    (tmp_path / "a.parquet").unlink()
    seen.add(open_source(str(tmp_path)).fingerprint)
    assert len(seen) == 5


def test_a_file_that_changed_or_went_since_opening_is_an_error(tmp_path, images):
    write_parquet(tmp_path / "a.parquet", images[:9])
    source = open_source(str(tmp_path))
    size = (tmp_path / "a.parquet").stat().st_size
    write_parquet(tmp_path / "a.parquet", images[:8])
    with pytest.raises(DataError, match=f"holds .* bytes, and {size} when .* it has changed"):
        list(source.read(0, 2))
    (file,) = source.listing
    size = (tmp_path / "a.parquet").stat().st_size
    with pytest.raises(DataError, match="holds 8 rows, and 9 when"):
        open_source(str(tmp_path), listing=Listing.build("parquet", [file._replace(size=size)]))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(DataError, match="does not exist any more"):
        list(source.read(0, 2))


def test_a_corrupt_footer_is_said(tmp_path, images):
    write_parquet(tmp_path / "a.parquet", images[:9])
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet, its footer"):
        open_source(str(tmp_path))


class Keys(KmsClient):
    """Keys that are stored as they are."""

    def __init__(self, config: KmsConnectionConfig) -> None:
        KmsClient.__init__(self)

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


@pytest.mark.parametrize("plain_footer", [False, True])
def test_an_encrypted_file_is_refused_and_python_lives_on(tmp_path, images, plain_footer):
    columns = {"column_keys": {"key": ["image.bytes"]}} if plain_footer else {"uniform_encryption": True}
    keys = CryptoFactory(Keys).file_encryption_properties(
        KmsConnectionConfig(), EncryptionConfiguration("key", plaintext_footer=plain_footer, **columns)
    )
    table = pa.table({"image": values(images)})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=keys) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"a\.parquet is encrypted, and keys are not taken: write it again without"):
        open_source(str(tmp_path))


def test_columns_that_folders_tell_are_refused_with_the_fix_which_works(tmp_path, images):
    for label in range(2):
        write_parquet(tmp_path / f"data/label={label}/0.parquet", images[label * 3 : label * 3 + 3])
    data = str(tmp_path / "data")
    assert [row.data for row in open_source(data).read(0, 6)] == images[:6]
    with pytest.raises(DataError, match=r"column 'label' .* is told by names of folders \(label=0\), which"):
        open_source(data, condition_column="label")
    pq.write_table(pq.read_table(data), tmp_path / "all.parquet")
    source = open_source(str(tmp_path / "all.parquet"), condition_column="label")
    assert [(row.condition, row.data) for row in source.read(0, 6)] == [(k // 3, images[k]) for k in range(6)]


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet cannot be read \(it is not a regular file\)"):
        open_source(str(tmp_path))


def test_no_rows_are_an_error(tmp_path):
    write_parquet(tmp_path / "a.parquet", [])
    with pytest.raises(DataError, match="empty data set"):
        open_source(str(tmp_path))


def test_files_must_agree_on_their_columns(tmp_path, images):
    write_parquet(tmp_path / "a.parquet", images[:2])
    pq.write_table(pa.table({"picture": values(images)}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"column 'image' holds nothing in b\.parquet"):
        open_source(str(tmp_path))
