"""Folders as people have them: what is opened, what is left aside, and what is refused with the fix."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.samples import IMAGE, dataset, write_parquet, write_tar
from volgrowth.errors import DataError
from volgrowth.sources import open_source

REVISIONS = ("a" * 40, "b" * 40)


def fill(folder: Path, images: list[bytes], *names: str) -> Path:
    """Write files by their names: tables and tars with an image, notes without, images, and anything else as text."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "notes" in name and name.endswith(".parquet"):
            pq.write_table(pa.table({"url": ["http://x/y.png"], "embedding": [[0.5, 1.0]]}), path)
        elif name.endswith((".parquet", ".pq", ".parq", ".PARQUET")):
            write_parquet(path, images[number : number + 1])
        elif name.endswith(".tar"):
            write_tar(path, [(f"{row}.png", data) for row, data in enumerate(images[:2])])
        elif "png" in name or "jpg" in name or "noending" in name:
            path.write_bytes(images[number])
        else:
            path.write_text("text")
    return folder


def opened(data: Any, **options: Any) -> tuple[str, list[str], list[tuple[str, int, str]]]:
    """Kind, names of the files, and what was left aside."""
    source = open_source(str(data), **options)
    return (
        source.kind,
        [file.name for file in source.listing],
        [(each.kind, each.count, each.example) for each in source.left_aside],
    )


# files, the kind they are opened as, the files with rows, and what is left aside
RIGHT: dict[str, tuple[list[str], str, list[str], list[tuple[str, int, str]]]] = {
    "images with captions": (
        ["a.png", "a.txt", "b.PNG", "b.txt"],
        "folder",
        ["a.png", "b.PNG"],
        [(".txt file", 2, "a.txt")],
    ),
    "images as img2dataset leaves them": (
        ["00000.notes.parquet", "00000/0.jpg", "00000/0.json", "00001.notes.parquet", "00001/1.jpg"],
        "folder",
        ["00000/0.jpg", "00001/1.jpg"],
        [("parquet file", 2, "00000.notes.parquet"), (".json file", 1, "00000/0.json")],
    ),
    "tars as img2dataset leaves them": (
        ["0.tar", "0.parquet", "0_stats.json"],
        "webdataset",
        ["0.tar"],
        [("parquet file", 1, "0.parquet"), (".json file", 1, "0_stats.json")],
    ),
    "tars beside an index": (
        ["0.tar", "notes.parquet"],
        "webdataset",
        ["0.tar"],
        [("parquet file", 1, "notes.parquet")],
    ),
    "a packed tar beside images": (["a.png", "x.tar.gz"], "folder", ["a.png"], [("packed tar file", 1, "x.tar.gz")]),
    "other endings of parquet": (["a.pq", "b.parq", "c.PARQUET"], "parquet", ["a.pq", "b.parq", "c.PARQUET"], []),
    "names made from URLs": (
        ["a.jpg?width=64", "b.txt?x=1.png", "what?.png"],
        "folder",
        ["a.jpg?width=64", "b.txt?x=1.png", "what?.png"],
        [],
    ),
    "names without an ending": (
        ["a.png", "noending", "0123.noending"],
        "folder",
        ["a.png"],
        [(".noending file", 1, "0123.noending"), ("extensionless file", 1, "noending")],
    ),
    "a file server's thumbnails and bin": (
        ["a.png", "@eaDir/a.png/SYNOPHOTO_THUMB.jpg", "#recycle/b.png", "__MACOSX/a.png", "_mine/c.png", ".x.png"],
        "folder",
        ["_mine/c.png", "a.png"],
        [("hidden image file", 4, "#recycle/b.png")],
    ),
    "what Spark leaves": (
        ["part-0.parquet", "_SUCCESS", "_temporary/0/part-1.parquet", ".part-0.parquet.crc", "_metadata.parquet"],
        "parquet",
        ["part-0.parquet"],
        [
            ("parquet file", 2, "_metadata.parquet"),
            ("extensionless file", 1, "_SUCCESS"),
            ("hidden file", 1, ".part-0.parquet.crc"),
        ],
    ),
    "a folder of a notebook": (
        ["a.tar", ".ipynb_checkpoints/a.tar", "_old/a.tar"],
        "webdataset",
        ["a.tar"],
        [("hidden tar file", 1, ".ipynb_checkpoints/a.tar"), ("tar file", 1, "_old/a.tar")],
    ),
    "one snapshot of the hub": (
        [f"snapshots/{REVISIONS[0]}/a.png", "blobs/0123", "refs/main"],
        "folder",
        [f"snapshots/{REVISIONS[0]}/a.png"],
        [("extensionless file", 2, "blobs/0123")],
    ),
    "snapshots that are not of the hub": (
        ["snapshots/20240101/a.png", "snapshots/20240102/a.png"],
        "folder",
        ["snapshots/20240101/a.png", "snapshots/20240102/a.png"],
        [],
    ),
    "images beside a Delta table's log": (
        ["a.png", "_delta_log/0.json"],
        "folder",
        ["a.png"],
        [(".json file", 1, "_delta_log/0.json")],
    ),
    "train alone": (["train/a.png", "b.png"], "folder", ["b.png", "train/a.png"], []),
    "classes that begin like splits": (
        ["testing_gear/a.png", "trains/b.png"],
        "folder",
        ["testing_gear/a.png", "trains/b.png"],
        [],
    ),
}
WRONG: dict[str, tuple[list[str], str]] = {
    "a stray tar": (
        ["a.png", "b.png", "backup.tar"],
        r"than one kind, 1 tar file \(backup\.tar\) and 2 image files, .* data_kind=webdataset or data_kind=folder",
    ),
    "tables with images beside images": (
        ["a.png", "x.parquet"],
        r"1 parquet file \(x\.parquet\) and 1 image file \(a\.png\), .* data_kind=parquet or data_kind=folder",
    ),
    "tables with images beside tars": (["0.tar", "x.parquet"], r"data_kind=parquet or data_kind=webdataset"),
    "notes beside both": (["0.tar", "a.png", "notes.parquet"], r"data_kind=webdataset or data_kind=folder"),
    "Delta": (
        ["a.parquet", "_delta_log/00.json"],
        r"is a table of Delta \(it has _delta_log/00\.json\), .* present rows as",
    ),
    "Iceberg": (["data/a.parquet", "metadata/v1.metadata.json"], r"is a table of Iceberg"),
    "Hudi": (["a.parquet", ".hoodie/hoodie.properties"], r"is a table of Hudi"),
    "two snapshots of the hub": (
        [f"snapshots/{revision}/a.png" for revision in REVISIONS],
        r"hub with 2 snapshots \(snapshots/a+, snapshots/b+\), .* name one of them; refs/main",
    ),
    "splits": (["Train/a.png", "val/b.png"], r"several splits \(Train, val\): .*--split"),
    "nothing that is read": (
        ["a.csv", "b.csv", "x.npz", "y.zip", "z.lmdb", ".hidden.png"],
        r"holds no images: it holds 2 \.csv files, 1 \.lmdb file, 1 \.npz file, 1 \.zip file, 1 hidden image file;",
    ),
    "images without endings": (
        ["noending", "txt"],
        r"2 extensionless files \(which are PNG images by the first bytes of noending",
    ),
    "only drafts": (["_temporary/a.parquet"], r"it holds 1 parquet file; expected"),
    "only packed": (["x.tar.gz"], r"is packed with compression"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_folder_as_people_have_it_is_opened(tmp_path, images, case):
    names, *expected = RIGHT[case]
    assert opened(fill(tmp_path, images, *names)) == tuple(expected)


@pytest.mark.parametrize("case", WRONG)
def test_what_could_be_several_data_sets_or_none_is_refused(tmp_path, images, case):
    names, message = WRONG[case]
    with pytest.raises(DataError, match=message) as caught:
        open_source(str(fill(tmp_path, images, *names)))
    assert "\n" not in str(caught.value)


def test_a_store_decides_as_a_disk_does(bucket, images, tmp_path):
    for number, (names, *_) in enumerate((*RIGHT.values(), *WRONG.values())):
        fill(tmp_path / str(number), images, *names)
    url = bucket.upload(tmp_path, "x")
    for number, (_, *expected) in enumerate(RIGHT.values()):
        assert opened(f"{url}/{number}") == tuple(expected)
    for number, (_, message) in enumerate(WRONG.values(), len(RIGHT)):
        with pytest.raises(DataError, match=message):
            open_source(f"{url}/{number}")


def test_files_of_a_managed_table_are_refused_by_their_names_too(tmp_path, images, bucket):
    fill(tmp_path, images, "a.parquet", "_delta_log/0.json", "b.png")
    for root in (tmp_path, bucket.upload(tmp_path, "x")):
        for name in ("a.parquet", "*.parquet"):
            with pytest.raises(DataError, match="is a table of Delta"):
                open_source(f"{root}/{name}")
        assert opened(f"{root}/*.png")[1] == ["b.png"]


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(DataError, match="holds no images: it holds nothing; expected"):
        open_source(str(tmp_path))


def test_the_setting_says_which_kind_is_meant(tmp_path, images):
    fill(tmp_path, images, "a.png", "backup.tar", "x.parquet")
    for kind, file in (("folder", "a.png"), ("webdataset", "backup.tar"), ("parquet", "x.parquet")):
        got, names, aside = opened(tmp_path, kind=kind)
        assert (got, names) == (kind, [file])
        assert sum(count for _, count, _ in aside) == 2
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(
        DataError, match=r"holds no parquet files: it holds 1 tar file \(backup\.tar\) and 1 image file"
    ):
        open_source(str(tmp_path), kind="parquet")
    with pytest.raises(DataError, match=r"backup\.tar is a tar file, and data_kind was folder"):
        open_source(f"{tmp_path}/backup.tar", kind="folder")
    assert opened(tmp_path / "backup.tar", kind="webdataset")[0] == "webdataset"
    with pytest.raises(DataError, match=r"org/name is not here, and .* hub has no data_kind \(got folder\)"):
        open_source("org/name", kind="folder")


def test_a_named_image_column_tells_that_image_files_are_not_meant(tmp_path, images):
    fill(tmp_path, images, "a.png", "x.parquet")
    kind, _, aside = opened(tmp_path, image_column="image")
    assert (kind, aside) == ("parquet", [("image file", 1, "a.png")])


def test_a_table_that_leads_to_images_by_paths_is_the_data_set(tmp_path, images):
    fill(tmp_path, images, "a.png", "b.png")
    paths = pa.array([{"bytes": None, "path": "b.png"}, {"bytes": None, "path": "a.png"}], IMAGE)
    pq.write_table(pa.table({"image": paths}), tmp_path / "t.parquet")
    source = open_source(str(tmp_path))
    assert [row.data for row in source.read(0, 2)] == [images[1], images[0]]
    assert [each.kind for each in source.left_aside] == ["image file"]
    pq.write_table(pa.table({"image": paths.field("path")}), tmp_path / "t.parquet")
    assert open_source(str(tmp_path)).kind == "folder"


@pytest.mark.parametrize("where", ["disk", "store"])
def test_patterns_stand_for_images_tars_and_tables(tmp_path, images, bucket, where):
    fill(tmp_path, images, "train/a/0.png", "train/b/1.png", "train/b/1.txt", "test/2.png", "t.tar", "_x.parquet")
    fill(tmp_path, images, "train/.hid/3.png", "train/@eaDir/4.png", "_y/z.parquet")
    root = bucket.upload(tmp_path, "x") if where == "store" else str(tmp_path)
    assert opened(f"{root}/train/**/*.png") == (
        "folder",
        ["a/0.png", "b/1.png"],
        [("hidden image file", 2, ".hid/3.png")],
    )
    assert opened(f"{root}/train/**/*")[1:] == (
        ["a/0.png", "b/1.png"],
        [("hidden image file", 2, ".hid/3.png"), (".txt file", 1, "b/1.txt")],
    )
    assert opened(f"{root}/{{train/b,test}}/*.png")[1] == ["test/2.png", "train/b/1.png"]
    assert opened(f"{root}/train/[ab]/?.png")[1] == ["a/0.png", "b/1.png"]
    with pytest.raises(DataError, match="more than one kind, 1 tar file"):
        open_source(f"{root}/**/*")
    assert opened(f"{root}/**/*", kind="webdataset")[1] == ["t.tar"]
    with pytest.raises(DataError, match=r"holds no images: it holds .*2 folders"):
        open_source(f"{root}/tr*n/[ab]")
    # drafts are data where they are named
    with pytest.raises(DataError, match="holds no images"):
        open_source(f"{root}/*.parquet")
    assert opened(f"{root}/_*.parquet")[1] == ["_x.parquet"]
    assert opened(f"{root}/_x.parquet")[1] == ["_x.parquet"]
    assert opened(f"{root}/_y")[1] == ["z.parquet"]


def test_one_image_is_a_data_set_of_one_row(tmp_path, images):
    fill(tmp_path, images, "a.png", "b.png", "list.jsonl")
    source = open_source(f"{tmp_path}/b.png")
    assert [(row.source, row.data) for row in source.read(0, 1)] == [("b.png", images[1])]
    for name in ("list.jsonl", "noending"):
        fill(tmp_path, images, name)
        with pytest.raises(DataError, match="is a file, and neither parquet nor tar nor an image"):
            open_source(f"{tmp_path}/{name}")


def test_a_file_counts_once_whatever_leads_to_it(tmp_path, images):
    data = fill(tmp_path / "data", images, "d/a.png", "d/b.png", "e/c.png", "z.txt")
    outside = fill(tmp_path / "outside", images, "x.png", "deep/y.png")
    (data / "0.png").symlink_to(data / "d/a.png")  # the file itself goes before a link to it
    os.link(data / "e/c.png", data / "e/hard.png")
    (data / "more").symlink_to(outside)
    (data / "deep").symlink_to(outside / "deep")  # walked before `more`, by its name
    (data / "again").symlink_to(data / "d")
    (data / "up").symlink_to(tmp_path)
    (data / "one.png").symlink_to(outside / "x.png")
    (data / "loop").symlink_to(data / "loop")
    (data / "gone.png").symlink_to(tmp_path / "nothing")
    kind, names, aside = opened(data)
    assert names == ["d/a.png", "d/b.png", "deep/y.png", "e/c.png", "gone.png", "more/x.png"]
    assert ("link", 6, "0.png") in aside
    assert kind == "folder"


def test_links_that_lead_in_circles_end(tmp_path, images):
    """Each of ten folders links to all of them: there are more paths than could be walked."""
    fill(tmp_path, images, *(f"{folder}/{folder}.png" for folder in range(10)))
    for folder in range(10):
        for other in range(10):
            (tmp_path / f"{folder}/to-{other}").symlink_to(tmp_path / str(other))
    for data in (tmp_path, f"{tmp_path}/**/*.png"):
        assert opened(data)[1] == [f"{folder}/{folder}.png" for folder in range(10)]
    assert opened(tmp_path)[2] == [("link", 100, "0/to-0")]


def test_a_snapshot_of_the_hub_is_its_links(tmp_path, images):
    """The cache holds each file once, under its hash, and links to it."""
    blobs = fill(tmp_path / "blobs", images, "noending0", "noending1")
    for revision, count in zip(REVISIONS, (2, 1), strict=True):
        (tmp_path / "snapshots" / revision).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "snapshots" / revision / f"{number}.png").symlink_to(blobs / f"noending{number}")
    assert opened(tmp_path / "snapshots" / REVISIONS[0])[1:] == (["0.png", "1.png"], [])
    with pytest.raises(DataError, match="2 snapshots"):
        open_source(str(tmp_path))


def test_names_of_any_bytes_are_said_in_one_line(tmp_path, images):
    fill(tmp_path, images, "a.png", "new\nline.txt", "new\nline.png")
    source = open_source(str(tmp_path))
    assert source.num_rows == 2
    assert "\n" not in "".join(source.opened.lines())


def test_what_save_to_disk_wrote_is_told_from_the_state_of_a_trainer(tmp_path, images):
    fill(tmp_path / "trained", images, "a.png")
    (tmp_path / "trained" / "state.json").write_text('{"epoch": 3}')
    assert opened(tmp_path / "trained")[::2] == ("folder", [(".json file", 1, "state.json")])
    dataset(images[:3]).save_to_disk(str(tmp_path / "saved"))
    fill(tmp_path / "saved", images, "a.png")
    assert opened(tmp_path / "saved")[::2] == ("arrow", [("image file", 1, "a.png")])
    assert opened(tmp_path / "saved", kind="folder")[0] == "folder"
