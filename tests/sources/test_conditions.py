import os
import pickle

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from tests.support.samples import (
    CAPTIONS,
    CUTS,
    again,
    conditions,
    dataset,
    digits,
    in_parts,
    pairs,
    values,
    write_folder,
    write_parquet,
    write_tar,
)
from volgrowth.errors import DataError
from volgrowth.sources import open_source
from volgrowth.sources.base import Request
from volgrowth.sources.conditions import check_condition_column, class_names, conditions_of
from volgrowth.sources.readers.hub import HubSource

NUMBERS = [number % 10 if number % 7 else None for number in range(57)]
NOT_UTF_8 = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())
NOT_UTF_8_LISTS = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), NOT_UTF_8)
MIXED = [["one", "other"], [], None, [None, "x"], ["last"]]
LISTS = [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.large_string()), pa.list_(pa.string_view())]
CLASSES = datasets.ClassLabel(names=["zero", "one", "two"])


def table(tmp_path, column, images, **options):
    write_parquet(tmp_path / "a.parquet", images[: len(column)], told=column)
    return open_source(str(tmp_path / "a.parquet"), condition_column="told", **options)


def classes(images, numbers):
    return dataset(images, label=numbers).cast_column("label", CLASSES)


@pytest.mark.parametrize(
    "column",
    [
        *(pa.array(["a", None, ""], kind) for kind in (pa.string(), pa.large_string(), pa.string_view())),
        *(pa.array([3, None, 0], kind) for kind in (pa.int8(), pa.int64(), pa.uint8(), pa.uint64())),
        pa.array([-1, 1 << 62, None], pa.int64()),
        pa.array(["b", None, "b", "a"]).dictionary_encode(),
        pa.array(["b", None, "b"], pa.large_string()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_strings_and_integers_are_conditions(tmp_path, images, column):
    found = conditions(table(tmp_path, column, images))
    assert found == column.to_pylist()
    assert {type(value) for value in found} <= {int, str, type(None)}


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_of_several_captions_the_first_is_taken(tmp_path, images, kind):
    assert conditions(table(tmp_path, pa.array(MIXED, kind), images)) == ["one", None, None, None, "last"]


def test_lists_of_one_length_or_of_encoded_strings_are_lists(tmp_path, images):
    fixed = pa.array([["a", "b"], None, ["c", "d"]], pa.list_(pa.string(), 2))
    encoded = pa.ListArray.from_arrays(pa.array([0, 1, 1, 3]), pa.array(["a", "b", "c"]).dictionary_encode())
    assert conditions(table(tmp_path, fixed, images)) == ["a", None, "c"]
    assert conditions(table(tmp_path, encoded, images)) == ["a", None, "b"]


@pytest.mark.parametrize("column", [NOT_UTF_8, NOT_UTF_8_LISTS], ids=lambda column: str(column.type))
def test_text_that_is_not_utf_8_does_not_lose_a_batch(tmp_path, images, column):
    assert conditions(table(tmp_path, column, images)) == ["a", r"\xff", "c"]


def test_encoded_text_that_is_not_utf_8_is_lost_only_where_arrow_refuses_it(tmp_path, images):
    encoded = pa.DictionaryArray.from_arrays(pa.array([2, None, 1]), NOT_UTF_8)
    assert conditions_of(pa.chunked_array([encoded])) == ["c", None, r"\xff"]
    rows = list(table(tmp_path, encoded, images).read(0, 3))
    assert [(row.condition, row.data, row.error) for row in rows] == [
        (None, None, "the row group cannot be read: Invalid UTF8 payload")
    ] * 3


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True]),
        pa.array([1.0]),
        pa.array([b"a"]),
        pa.array([None]),
        pa.array([[1]]),
        pa.array([[["a"]]]),
        pa.array([{"raw": "a"}]),
        pa.array([["a"]], pa.list_view(pa.string())),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_of_another_type_is_not_a_condition(tmp_path, images, column):
    with pytest.raises(DataError) as caught:
        table(tmp_path, column, images, image_column="image")
    told = pq.read_schema(tmp_path / "a.parquet").field("told").type
    assert str(caught.value) == (
        f"column 'told' of {tmp_path}/a.parquet holds {told}, not conditions; a class is an integer or a string, a "
        "caption is a string or the first of a list of strings: name another as class_column or caption_column "
        "(--class-column, --caption-column)"
    )


def test_what_arrow_cannot_decode_is_refused():
    encoded = pa.field("told", pa.dictionary(pa.int32(), pa.string_view()))
    with pytest.raises(DataError, match=r"holds dictionary<values=string_view.*, not conditions"):
        check_condition_column(encoded, "x")


def test_a_column_that_is_not_there_is_answered_with_those_there_are(tmp_path, images):
    write_parquet(tmp_path / "a.parquet", images[:2], text=["a", "b"])
    dataset(images[:2], text=["a", "b"]).save_to_disk(str(tmp_path / "saved"))
    message = (
        r"has no column 'nope'; it has: image, text\. Pass one as class_column or caption_column "
        r"\(--class-column, --caption-column\)$"
    )
    for data in ("a.parquet", "saved"):
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path / data), condition_column="nope")
    with pytest.raises(DataError, match="has no column 'nope'"):
        HubSource(Request(str(tmp_path / "saved" / ".."), condition_column="nope"))


@given(cuts=CUTS, group=st.integers(1, 60), captions=st.booleans())
def test_rows_keep_their_conditions_however_they_are_cut(tmp_path_factory, cuts, group, captions):
    path, images = tmp_path_factory.mktemp("cut") / "a.parquet", digits(57)
    write_parquet(path, images, group=group, text=CAPTIONS, label=NUMBERS)
    source = open_source(str(path), condition_column="text" if captions else "label")
    wanted = slice(cuts[0], cuts[2])
    rows = in_parts(source, cuts)
    assert [row.condition for row in rows] == (CAPTIONS if captions else NUMBERS)[wanted]
    assert [row.data for row in rows] == images[wanted]


@pytest.fixture
def kinds(tmp_path, images):
    """The same rows with conditions as parquet, saved, and as a tar: data, the condition's name."""
    write_parquet(tmp_path / "parts" / "0.parquet", images[:30], text=CAPTIONS[:30], other=[0] * 30)
    write_parquet(tmp_path / "parts" / "1.parquet", images[30:], text=CAPTIONS[30:], other=[0] * 27)
    dataset(images, text=CAPTIONS).save_to_disk(str(tmp_path / "saved"))
    members = pairs(images)
    told = {f"{row:04}.txt": text for row, text in enumerate(CAPTIONS)}
    write_tar(
        tmp_path / "tars" / "0.tar",
        [(name, (told.get(name) or "").encode() or data) for name, data in members if told.get(name, data)],
    )
    return {f"{tmp_path}/parts": "text", f"{tmp_path}/saved": "text", f"{tmp_path}/tars": ".TXT"}


def test_a_condition_changes_nothing_else(kinds):
    for data, column in kinds.items():
        plain, told = open_source(data), open_source(data, condition_column=column)
        assert told.listing.describe() == plain.listing.describe()
        assert list(told.listing) == list(plain.listing)
        assert conditions(told) == CAPTIONS
        assert conditions(plain) == [None] * 57
        for a, b in zip(told.read(0, 57), plain.read(0, 57), strict=True):
            assert (a.row, a.image_id, a.source, a.data, a.error) == (b.row, b.image_id, b.source, b.data, b.error)


def test_a_worker_reads_conditions_by_any_listing_of_the_data_set(kinds):
    for data, column in kinds.items():
        told = open_source(data, condition_column=column)
        expected = list(told.read(20, 40))
        for source in (told, open_source(data)):
            assert list(again(source, data, condition_column=column).read(20, 40)) == expected
        assert list(pickle.loads(pickle.dumps(told)).read(20, 40)) == expected


def test_only_the_columns_that_are_needed_are_read(tmp_path, images, monkeypatch):
    asked, iter_batches = [], pq.ParquetFile.iter_batches

    def spy(self, **options):
        asked.append(options["columns"])
        return iter_batches(self, **options)

    write_parquet(tmp_path / "a.parquet", images, text=CAPTIONS, name=CAPTIONS, other=[0] * 57)
    source = open_source(str(tmp_path), None, "image", "text", condition_column="text")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    (row,) = source.read(1, 2)
    assert asked == [["image", "text"]]
    assert row.image_id == row.condition == CAPTIONS[1]


def test_files_that_disagree_are_refused_when_opened_or_read(tmp_path, images):
    write_parquet(tmp_path / "a.parquet", images[:2], text=["a", "b"])
    for name, got in ("text", "int64"), ("other", "nothing"):
        pq.write_table(pa.table({"image": values(images[2:4]), name: [1, 2]}), tmp_path / "b.parquet")
        message = rf"column 'text' holds {got} in b\.parquet and string in a\.parquet"
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path), condition_column="text")
        source = again(open_source(str(tmp_path)), str(tmp_path), condition_column="text")
        assert [row.condition for row in source.read(0, 2)] == ["a", "b"]
        with pytest.raises(DataError, match=message):
            list(source.read(0, 4))


def test_a_row_group_that_is_lost_has_no_conditions(tmp_path, images):
    source = table(tmp_path, pa.array(CAPTIONS[:20]), images)
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    (tmp_path / "a.parquet").write_bytes(content)
    assert conditions(source) == [None] * 10 + CAPTIONS[10:20]


def test_names_of_classes_are_told_before_reading(tmp_path, images):
    data = classes(images[:6], [0, 1, 2, None, 1, -1])
    (tmp_path / "parts").mkdir()
    data.to_parquet(str(tmp_path / "parts" / "0.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    parts, saved = str(tmp_path / "parts"), str(tmp_path / "saved")
    for source in (
        open_source(parts, condition_column="label"),
        again(open_source(parts), parts, condition_column="label"),
        open_source(saved, condition_column="label"),
        HubSource(Request(parts, condition_column="label")),
    ):
        assert source.condition_names == ("zero", "one", "two")
        assert conditions(source) == [0, 1, 2, None, 1, -1]
    assert open_source(parts).condition_names is None


def test_only_a_class_label_has_names(tmp_path, images):
    assert table(tmp_path, pa.array([1, 2]), images).condition_names is None
    for feature in ('"a"', '{"_type": "Value", "names": ["a"]}', '{"_type": "ClassLabel"}', "null"):
        schema = pa.schema(
            [("label", pa.int64())], {"huggingface": f'{{"info": {{"features": {{"label": {feature}}}}}}}'}
        )
        assert class_names(schema, "label") is None


def test_one_number_is_not_two_classes(tmp_path, images):
    classes(images[:3], [0, 1, 2]).to_parquet(str(tmp_path / "a.parquet"))
    other = dataset(images[:3], label=[0, 1, 2]).cast_column("label", datasets.ClassLabel(names=["one", "zero", "two"]))
    other.to_parquet(str(tmp_path / "b.parquet"))
    assert open_source(str(tmp_path)).num_rows == 6
    message = r"'label' names its classes differently in b\.parquet and a\.parquet: the same number would mean two"
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path), condition_column="label")
    write_parquet(tmp_path / "b.parquet", images[:3], label=[0, 1, 2])
    assert conditions(open_source(str(tmp_path), condition_column="label")) == [0, 1, 2] * 2


def test_a_shuffled_data_set_keeps_its_conditions(tmp_path, images):
    mixed = dataset(images, text=CAPTIONS, several=[[str(n), "x"] for n in range(57)]).shuffle(seed=3)
    mixed.save_to_disk(str(tmp_path / "mixed"), num_shards=2)
    assert conditions(open_source(str(tmp_path / "mixed"), condition_column="text")) == list(mixed["text"])
    rows = list(open_source(str(tmp_path / "mixed"), condition_column="several").read(0, 57))
    assert [row.data for row in rows] == [images[int(row.condition or "")] for row in rows]


def test_a_folder_of_images_has_no_conditions_and_what_the_error_advises_works(tmp_path, images):
    for name in ("cats", "dogs"):
        write_folder(tmp_path / "data" / name, images[:2])
    data = str(tmp_path / "data")
    for listing in (None, open_source(data).listing):
        with pytest.raises(DataError) as caught:
            open_source(data, listing=listing, condition_column="label")
        assert str(caught.value) == (
            f"{data} holds no table, so class_column or caption_column 'label' has no meaning there: expected a folder "
            "with parquet files, tars, or one written by save_to_disk, or leave class_column or caption_column out for "
            "a folder of images; a table metadata.csv or metadata.jsonl beside the images, with their names in the "
            "column file_name, would give it, and datasets.load_dataset('imagefolder', data_dir=...) takes class "
            "folders into the column label, which save_to_disk writes"
        )
    datasets.load_dataset("imagefolder", data_dir=data).save_to_disk(str(tmp_path / "saved"))
    source = open_source(str(tmp_path / "saved"), condition_column="label")
    assert source.condition_names == ("cats", "dogs")
    assert [(row.condition, row.data) for row in source.read(0, 4)] == [(n // 2, images[n % 2]) for n in range(4)]


def test_of_an_object_only_the_columns_that_are_needed_are_fetched(bucket, monkeypatch):
    images = [os.urandom(20_000) for _ in range(20)]
    columns = {"image": images, "text": CAPTIONS[:20], "other": [os.urandom(20_000) for _ in range(20)]}
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), stream, row_group_size=10, use_dictionary=False, compression=None)
    bucket.put("x/a.parquet", stream.getvalue().to_pybytes())
    url, fetched, fetch = f"{bucket.url}/x", [], s3fs.S3File._fetch_range

    def watched(self, *span):
        fetched.append(span)
        return fetch(self, *span)

    source = again(open_source(url, image_column="image"), url, image_column="image", condition_column="text")
    monkeypatch.setattr(s3fs.S3File, "_fetch_range", watched)
    rows = list(source.read(12, 18))
    assert [(row.condition, row.data) for row in rows] == list(zip(CAPTIONS[12:18], images[12:18], strict=True))
    assert sum(stop - start for start, stop in fetched) < 10 * 20_000 + (1 << 17)
