"""Tables beside images: which of them describe which image, and that a changed one is noticed."""

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import digits, values, write_folder
from volgrowth.errors import DataError
from volgrowth.sources import Listing, Source, content_id, open_source
from volgrowth.sources.base import Request
from volgrowth.sources.readers.folder import FolderSource
from volgrowth.sources.readers.folder_metadata import is_table
from volgrowth.storage.places import Found, LocalPlace

IMAGES = digits(4)
NAMES = [f"{number:04}.png" for number in range(4)]
CAPTIONS = ["a zero, or\ntwo", "é 1", None, "3"]
CLASSES = [7, 0, None, -2]
IDS = ["x", None, "007", "x"]


def write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_jsonl(path: Path, columns: dict[str, list[Any]]) -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    pq.write_table(pa.table(columns), path)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_table}


def opened(folder: Path, listing: Listing | None = None, split: str | None = None, **columns: str) -> FolderSource:
    request = Request(str(folder), split, columns.get("image_column"), columns.get("id"), columns.get("condition"))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [Found(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
    images = [file for file in found if file.name.endswith((".png", ".PNG"))]
    tables = [file for file in found if is_table(file.name)]
    return FolderSource(LocalPlace(folder), request, images, listing, tables)


def read(source: FolderSource) -> list[tuple[str, Any]]:
    return [(row.image_id, row.condition) for row in source.read(0, source.num_rows)]


def stored(source: Source) -> Listing:
    chunks = list(source.listing.chunks())
    return Listing.stored(source.listing.describe(), chunks.__getitem__)


@pytest.mark.parametrize("ending", WRITERS)
def test_columns_of_metadata_are_conditions_and_ids(tmp_path, ending):
    write_folder(tmp_path, IMAGES)
    order = [2, 0, 3, 1]
    columns: dict[str, list[Any]] = {"file_name": NAMES, "text": CAPTIONS, "label": CLASSES, "id": IDS}
    WRITERS[ending](tmp_path / f"metadata.{ending}", {n: [c[k] for k in order] for n, c in columns.items()})
    hashes = [content_id(data) for data in IMAGES]
    ids = [name or hashes[row] for row, name in enumerate(IDS)]
    told = opened(tmp_path, condition="text", id="id")
    assert read(told) == list(zip(ids, CAPTIONS, strict=True))
    assert [row.data for row in told.read(0, 4)] == IMAGES
    assert read(opened(tmp_path, condition="label")) == list(zip(hashes, CLASSES, strict=True))
    assert told.left_aside == ()
    assert told.opened.said == "4 rows of 4 image files; ids from column id, conditions from column text"
    again = opened(tmp_path, stored(told), condition="text", id="id")
    assert list(again.read(1, 4)) == list(told.read(1, 4))
    assert list(pickle.loads(pickle.dumps(told)).read(1, 4)) == list(told.read(1, 4))


def test_without_columns_metadata_change_nothing(tmp_path):
    write_folder(tmp_path, IMAGES)
    before = opened(tmp_path)
    write_csv(tmp_path / "metadata.csv", {"file_name": NAMES, "text": CAPTIONS})
    assert opened(tmp_path).listing.describe() == before.listing.describe()


@pytest.mark.parametrize("ending", WRITERS)
def test_a_changed_table_is_a_changed_data_set(tmp_path, ending):
    write_folder(tmp_path, IMAGES)
    table = tmp_path / f"metadata.{ending}"
    WRITERS[ending](table, {"file_name": NAMES, "text": ["a", "b", "c", "d"]})
    before = opened(tmp_path, condition="text")
    size = table.stat().st_size
    WRITERS[ending](table, {"file_name": NAMES, "text": ["a", "b", "c", "e"]})
    assert table.stat().st_size == size
    assert opened(tmp_path, condition="text").fingerprint != before.fingerprint
    with pytest.raises(DataError, match=r"metadata\..* holds content of sha256 .*: it has changed"):
        opened(tmp_path, stored(before), condition="text")
    table.unlink()
    with pytest.raises(DataError, match="does not exist any more"):
        opened(tmp_path, stored(before), condition="text")


def test_files_are_named_from_the_folder_of_the_table_and_splits_are_folders(tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / split / "a", IMAGES[:2])
        names = ["a/0000.png", "./a/0001.png"]
        write_jsonl(tmp_path / split / "metadata.jsonl", {"file_name": names, "text": [split, f"{split} 1"]})
    both = ["test", "test 1", "train", "train 1"]
    assert [told for _, told in read(opened(tmp_path, condition="text"))] == both
    train = opened(tmp_path, split="train", condition="text")
    assert [told for _, told in read(train)] == both[2:]
    assert train.left_aside == ()


def test_the_tables_of_img2dataset_name_files_by_their_keys(tmp_path):
    for part in ("00000", "00001"):
        (tmp_path / part).mkdir()
        keys = [f"{part}000{number}" for number in range(3)]
        for key, data in zip(keys[:2], IMAGES, strict=False):
            (tmp_path / part / f"{key}.png").write_bytes(data)
            (tmp_path / part / f"{key}.json").write_text("{}")
        status = ["success", "success", "failed_to_download"]
        texts = [f"{part} first", None, "gone"]
        write_table(tmp_path / f"{part}.parquet", {"key": keys, "caption": texts, "status": status, "url": keys})
    source = opened(tmp_path, condition="caption", id="url")
    assert read(source) == [
        ("000000000", "00000 first"),
        ("000000001", None),
        ("000010000", "00001 first"),
        ("000010001", None),
    ]
    (aside,) = source.left_aside
    assert str(aside) == ("2 metadata rows (they name no image of the data set, such as 00000/000000002)")


def test_images_and_rows_that_do_not_meet_are_counted(tmp_path):
    write_folder(tmp_path, IMAGES)
    write_csv(tmp_path / "metadata.csv", {"file_name": [NAMES[0], NAMES[3], "gone.png", ""], "text": list("abcd")})
    source = opened(tmp_path, condition="text")
    assert [told for _, told in read(source)] == ["a", None, None, "b"]
    assert [str(aside) for aside in source.left_aside] == [
        "2 missing metadata rows (these images are rows without a condition or an id of their own, such as 0001.png)",
        "1 metadata row (they name no image of the data set, such as gone.png)",
    ]
    assert opened(tmp_path, stored(source), condition="text").left_aside == ()


def test_tables_without_the_columns_are_left_aside(tmp_path):
    write_folder(tmp_path, IMAGES)
    write_csv(tmp_path / "metadata.csv", {"file_name": NAMES, "text": CAPTIONS})
    write_csv(tmp_path / "sizes.csv", {"file_name": NAMES, "width": CLASSES})
    write_table(tmp_path / "embeddings.parquet", {"vector": [[0.1]] * 4, "text": CAPTIONS})
    write_table(tmp_path / "more.parquet", {"image": values(IMAGES), "file_name": NAMES, "text": CAPTIONS})
    source = opened(tmp_path, condition="text")
    assert [told for _, told in read(source)] == CAPTIONS
    assert [str(aside) for aside in source.left_aside] == [
        "2 tables (tables without a column file_name or key, which would tell the image of each row, such as "
        "embeddings.parquet)",
        "1 table (tables without a column text, such as sizes.csv)",
    ]
    with pytest.raises(DataError) as caught:
        opened(tmp_path, condition="label")
    assert str(caught.value) == (
        f"{tmp_path} holds images, and no table beside them has the column label and a column file_name (in "
        "metadata.csv, metadata.jsonl or metadata.parquet) or key (in the parquet files of img2dataset); the tables "
        "that tell the image of each row have: file_name, text, width"
    )


def test_numbers_in_csv_are_classes_only_where_all_are_numbers(tmp_path):
    write_folder(tmp_path, IMAGES)
    for told, found in ((["1", "02", "", "3"], ["1", "02", None, "3"]), (["1", "-2", "", "30"], [1, -2, None, 30])):
        write_csv(tmp_path / "metadata.csv", {"file_name": NAMES, "label": told})
        assert [condition for _, condition in read(opened(tmp_path, condition="label"))] == found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metadata.csv",
            "file_name,text\n0000.png,a\n./0000.png,b\n",
            r"has a row for 0000\.png, which has another row",
        ),
        ("metadata.jsonl", '{"file_name": "0000.png", "text": 1.5}\n', r"line 1 of .* has '1\.5' as text: a class is"),
        (
            "metadata.jsonl",
            '{"file_name": "a", "text": "b"}\n[1]\n',
            r"line 2 of .* holds list, expected a JSON object",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a", "text": "b"}\n{\n',
            r"metadata\.jsonl cannot be read as jsonl \(Expecting",
        ),
        ("metadata.parquet", "no parquet", r"metadata\.parquet cannot be read as parquet"),
        ("metadata.csv", "", "no table beside them has the column text"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, name, content, message):
    write_folder(tmp_path, IMAGES)
    (tmp_path / name).write_text(content)
    assert opened(tmp_path).num_rows == 4
    with pytest.raises(DataError, match=message):
        opened(tmp_path, condition="text")


def test_two_tables_do_not_describe_one_image(tmp_path):
    write_folder(tmp_path, IMAGES)
    for ending, write in WRITERS.items():
        write(tmp_path / f"metadata.{ending}", {"file_name": NAMES, "text": CAPTIONS})
    with pytest.raises(DataError, match=r"which has another row in it or in another table: leave one row"):
        opened(tmp_path, condition="text")


def test_odd_names_and_values_are_found(tmp_path):
    odd = ["a b.png", "é.png", "x.tar.png", "sub\\0.png"]
    for name, data in zip(odd, IMAGES, strict=True):
        path = tmp_path / name.replace("\\", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    table = pa.table({"file_name": pa.array(odd).dictionary_encode(), "label": pa.array([1, 2, 3, 1 << 63], "uint64")})
    pq.write_table(table, tmp_path / "metadata.parquet")
    source = opened(tmp_path, condition="label")
    assert [(row.source, row.condition) for row in source.read(0, 4)] == [
        ("a b.png", 1),
        ("sub/0.png", str(1 << 63)),
        ("x.tar.png", 3),
        ("é.png", 2),
    ]


def test_a_folder_opens_with_its_tables_by_its_name_alone(tmp_path):
    write_folder(tmp_path, IMAGES)
    write_csv(tmp_path / "metadata.csv", {"file_name": NAMES, "text": CAPTIONS})
    write_table(tmp_path / "sizes.parquet", {"width": CLASSES})
    plain = open_source(str(tmp_path))
    assert {(aside.kind, aside.count) for aside in plain.left_aside} == {(".csv file", 1), ("parquet file", 1)}
    told = open_source(str(tmp_path), condition_column="text")
    assert [row.condition for row in told.read(0, 4)] == CAPTIONS
    (aside,) = told.left_aside
    assert (aside.kind, aside.count, aside.example) == ("table", 1, "sizes.parquet")
    again = open_source(str(tmp_path), condition_column="text", listing=stored(told))
    assert list(again.read(0, 4)) == list(told.read(0, 4))


def test_the_tables_of_a_store_are_read_as_those_of_a_folder(bucket, tmp_path):
    write_folder(tmp_path / "a", IMAGES)
    for ending, number in zip(WRITERS, range(3), strict=True):
        WRITERS[ending](tmp_path / f"a/{ending}.{ending}", {"file_name": [NAMES[number]], "text": [f"in {ending}"]})
    url = bucket.upload(tmp_path / "a", "x")
    source = open_source(url, condition_column="text")
    assert [row.condition for row in source.read(0, 4)] == ["in csv", "in jsonl", "in parquet", None]
    again = open_source(url, condition_column="text", listing=stored(source))
    assert list(again.read(0, 4)) == list(source.read(0, 4))
