"""Lists become data sets, of every kind, and are undone."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.curation.conftest import ROWS
from tests.support.samples import dataset, pairs, values, write_folder, write_parquet, write_tar
from volgrowth.analysis.deciding import make_list
from volgrowth.analysis.policy import CurationPolicy
from volgrowth.audit.output.listings import write_listings
from volgrowth.audit.output.manifest import MANIFEST, SCORES_FOLDER, DataInfo
from volgrowth.audit.output.result import Audit, open_audit
from volgrowth.commands.curate import curate_audit
from volgrowth.curation import apply_list, undo_list
from volgrowth.curation.kept import WEIGHT
from volgrowth.curation.undoing import RECEIPT
from volgrowth.errors import DataError, OutputError, UsageError
from volgrowth.sources import open_source
from volgrowth.sources.base import Request
from volgrowth.sources.readers.hub import HubSource

KINDS = ("parquet", "saved", "tars", "folder")


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def edited(audit: Audit, drop: list[int], weights: dict[int, float] | None = None) -> pa.Table:
    """A list that says just this."""
    weights = weights or {}
    table = make_list(audit, CurationPolicy("top_k", 0)).to_pylist()
    for row in table:
        if row["row"] in drop:
            row.update(action="drop", weight=0.0)
        elif row["row"] in weights:
            row.update(action="downweight", weight=weights[row["row"]])
    return pa.Table.from_pylist(table, make_list(audit, CurationPolicy("top_k", 0)).schema)


def pictures(data: object, **options: Any) -> list[bytes | None]:
    source = open_source(str(data), **options)
    return [row.data for row in source.read(0, source.num_rows)]


def drops(seed: int) -> list[int]:
    """Some rows here and there, and long stretches: whole row groups, and a file."""
    random = np.random.default_rng(seed)
    return sorted(
        {*random.choice(ROWS, 12, replace=False).tolist(), *range(10, 20), *([*range(35, ROWS)] * (seed == 1))}
    )


@pytest.fixture(params=KINDS)
def audit(request: pytest.FixtureRequest) -> Audit:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("seed", [0, 1])
def test_exactly_the_kept_rows_are_there_and_the_source_is_as_it_was(audit, tmp_path, seed):
    data, drop = audit.frozen.data, drops(seed)
    before, all_pictures = digests(Path(data.name).parent), pictures(data.name)
    receipt = apply_list(audit, edited(audit, drop), str(tmp_path / "new"))
    expected = [picture for row, picture in enumerate(all_pictures) if row not in drop]
    assert receipt.rows == len(expected) == ROWS - len(drop)
    assert receipt.actions == {"keep": ROWS - len(drop), "drop": len(drop), "downweight": 0, "review": 0}
    if data.kind == "folder":
        names = (tmp_path / "new/files.txt").read_bytes().splitlines()
        found: list[bytes | None] = [Path(data.name, os.fsdecode(name)).read_bytes() for name in names]
    else:
        found = pictures(tmp_path / "new")
    assert found == expected
    assert digests(Path(data.name).parent) == before
    assert os.listdir(tmp_path) == ["new"]
    undo_list(str(tmp_path / "new"))
    assert os.listdir(tmp_path) == []
    assert digests(Path(data.name).parent) == before


def test_parquet_keeps_files_columns_and_types(parquet, tmp_path):
    drop = [0, 5, *range(20, 30), 36]
    apply_list(parquet, edited(parquet, drop), str(tmp_path / "new"))
    source = Path(parquet.frozen.data.name)
    for name, rows in (("a.parquet", range(35)), ("more/b.parquet", range(35, ROWS))):
        kept = [index for index, row in enumerate(rows) if row not in drop]
        assert pq.read_table(tmp_path / "new" / name).equals(pq.read_table(source / name).take(kept))
        assert pq.read_schema(tmp_path / "new" / name) == pq.read_schema(source / name)
    loaded = datasets.load_dataset(str(tmp_path / "new"), split="train")
    assert sorted(loaded["number"]) == [row for row in range(ROWS) if row not in drop]


def test_large_row_groups_are_written_in_parts(parquet, tmp_path, monkeypatch):
    monkeypatch.setattr("volgrowth.curation.tables.GROUP_BYTES", 1)
    monkeypatch.setattr("volgrowth.curation.tables.BATCH_ROWS", 4)
    drop = [*range(0, 8), 21]
    apply_list(parquet, edited(parquet, drop), str(tmp_path / "new"))
    written, source = pq.ParquetFile(tmp_path / "new/a.parquet"), Path(parquet.frozen.data.name, "a.parquet")
    sizes = [written.metadata.row_group(group).num_rows for group in range(written.num_row_groups)]
    assert sizes == [2, 4, 4, 2, 3, 4, 2, 4, 1]
    assert written.read().equals(pq.read_table(source).take([row for row in range(35) if row not in drop]))


def test_a_saved_data_set_keeps_its_columns_and_order(saved, tmp_path):
    drop = drops(0)
    apply_list(saved, edited(saved, drop), str(tmp_path / "new"))
    kept = [row for row in range(ROWS) if row not in drop]
    before, now = datasets.load_from_disk(saved.frozen.data.name), datasets.load_from_disk(str(tmp_path / "new"))
    assert now.features == before.features
    for column in ("number", "caption"):
        assert now[column] == before.select(kept)[column]


def test_of_several_splits_the_audited_one_is_written(run, images, tmp_path):
    both = datasets.DatasetDict({"train": dataset(images), "test": dataset(images[:3])})
    both.save_to_disk(str(tmp_path / "data"))
    audit = run(tmp_path / "data", tmp_path / "out", split="train")
    apply_list(audit, edited(audit, [0]), str(tmp_path / "new"))
    loaded = datasets.load_from_disk(str(tmp_path / "new"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": ROWS - 1}


def members(path: Path) -> list[tuple[str, bytes, bytes]]:
    """Name, headers and content of each member."""
    raw, found, end = path.read_bytes(), [], 0
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found.append((member.name, raw[end : member.offset_data], file.read()))
            end = tar.offset
    return found


def test_tars_keep_every_byte_of_their_samples(tars, tmp_path):
    drop = [0, 7, 8, *range(60, ROWS)]
    apply_list(tars, edited(tars, drop), str(tmp_path / "new"))
    source, row = Path(tars.frozen.data.name), 0
    assert sorted(os.listdir(tmp_path / "new")) == [RECEIPT, "00000.tar", "00001.tar"]  # nothing is left of the third
    for name in ("00000.tar", "00001.tar"):
        before = members(source / name)
        kept = [member for index, member in enumerate(before) if row + index // 2 not in drop]
        assert members(tmp_path / "new" / name) == kept
        row += len(before) // 2
    loaded = datasets.load_dataset("webdataset", data_files=str(tmp_path / "new/*.tar"), split="train")
    assert len(loaded) == ROWS - len(drop)
    assert loaded["__key__"][0] == "0001"


def test_what_stands_between_samples_in_a_tar(run, images, tmp_path):
    """A folder before all samples, a global header, links, and samples that share a key."""

    def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **more: Any) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for key, value in more.items():
            setattr(member, key, value)
        tar.addfile(member, io.BytesIO(data))

    path = tmp_path / "data" / "odd.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as tar:
        add(tar, "set", type=tarfile.DIRTYPE)
        for number, data in enumerate(images):
            add(tar, "set/key.png", data)
            if number == 4:
                add(tar, "set/other", type=tarfile.DIRTYPE)
    audit = run(tmp_path / "data", tmp_path / "out")
    apply_list(audit, edited(audit, [1, 5], {0: 0.25}), str(tmp_path / "new"))
    assert pictures(tmp_path / "new") == [data for row, data in enumerate(images) if row not in (1, 5)]
    with tarfile.open(tmp_path / "new/odd.tar") as tar:
        assert tar.pax_headers == {"comment": "all"}
        assert [member.name for member in tar.getmembers()[:3]] == ["set", "set/key.png", f"set/key.{WEIGHT}.json"]


def test_a_file_list_is_read_by_datasets(run, images, tmp_path):
    write_folder(tmp_path / "data", images)
    audit = run(tmp_path / "data", tmp_path / "out")
    apply_list(audit, edited(audit, drops(0)), str(tmp_path / "new"))
    names = (tmp_path / "new/files.txt").read_text().splitlines()
    loaded = datasets.load_dataset("imagefolder", data_files=[str(tmp_path / "data" / name) for name in names])
    found = loaded["train"].cast_column("image", datasets.Image(decode=False))["image"]
    expected = [row for row in range(ROWS) if row not in drops(0)]
    assert [Path(image["path"]).name for image in found] == [f"{row:04}.png" for row in expected]


WEIGHTS = {3: 0.25, 40: 1 / 3}


def test_weights_are_a_column(parquet, saved, tmp_path):
    for name, audit, load in (
        ("p", parquet, lambda path: datasets.load_dataset(path, split="train")),
        ("s", saved, datasets.load_from_disk),
    ):
        apply_list(audit, edited(audit, [2], WEIGHTS), str(tmp_path / name))
        loaded = load(str(tmp_path / name))
        ids = audit.findings["image_id"].to_pylist()
        expected = {int(image_id): WEIGHTS.get(row, 1.0) for row, image_id in enumerate(ids) if row != 2}
        assert dict(zip(loaded["number"], loaded[WEIGHT], strict=True)) == expected


def test_weights_in_parquet_written_by_datasets_are_in_its_features_too(run, images, tmp_path):
    (tmp_path / "data").mkdir()
    dataset(images, number=list(range(ROWS))).to_parquet(str(tmp_path / "data/a.parquet"))
    audit = run(tmp_path / "data", tmp_path / "out")
    apply_list(audit, edited(audit, [], WEIGHTS), str(tmp_path / "new"))
    features = json.loads(pq.read_schema(tmp_path / "new/a.parquet").metadata[b"huggingface"])["info"]["features"]
    assert features["image"]["_type"] == "Image"
    assert features[WEIGHT] == {"dtype": "float64", "_type": "Value"}
    loaded = datasets.load_dataset(str(tmp_path / "new"), split="train")
    assert loaded.features["image"] == datasets.Image()
    assert loaded[WEIGHT][40] == 1 / 3


def test_weights_are_members_and_lines(tars, folder, tmp_path):
    apply_list(tars, edited(tars, [2], WEIGHTS), str(tmp_path / "t"))
    loaded = datasets.load_dataset("webdataset", data_files=str(tmp_path / "t/0000[01].tar"), split="train")
    expected = [WEIGHTS.get(row, 1.0) for row in range(60) if row != 2]
    assert loaded[f"{WEIGHT}.json"] == expected
    assert len(pictures(tmp_path / "t")) == ROWS - 1
    apply_list(folder, edited(folder, [2], WEIGHTS), str(tmp_path / "f"))
    lines = (tmp_path / "f/weights.txt").read_text().splitlines()
    assert [float(line) for line in lines] == [WEIGHTS.get(row, 1.0) for row in range(ROWS) if row != 2]


def test_weights_that_are_there_already_are_not_replaced(run, images, tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": values(images), WEIGHT: [0.5] * ROWS}), tmp_path / "data/a.parquet")
    audit = run(tmp_path / "data", tmp_path / "out")
    with pytest.raises(DataError, match=f"a.parquet has {WEIGHT} already"):
        apply_list(audit, edited(audit, [], WEIGHTS), str(tmp_path / "new"))
    apply_list(audit, edited(audit, [3]), str(tmp_path / "new"))
    assert len(pq.read_table(tmp_path / "new")) == ROWS - 1


def test_weights_in_tars_that_are_there_already_are_not_replaced(run, tars, tmp_path):
    apply_list(tars, edited(tars, [], WEIGHTS), str(tmp_path / "data"))
    audit = run(tmp_path / "data", tmp_path / "out")
    with pytest.raises(DataError, match=f"sample 0000 of .*00000.tar has {WEIGHT} already"):
        apply_list(audit, edited(audit, [], WEIGHTS), str(tmp_path / "new"))
    assert apply_list(audit, edited(audit, [3]), str(tmp_path / "new")).rows == ROWS - 1


def test_row_numbers_select_what_is_kept(saved, parquet, tmp_path):
    drop = drops(0)
    receipt = apply_list(saved, edited(saved, drop, WEIGHTS), str(tmp_path / "new"), indices=True)
    chosen = datasets.Dataset.from_file(str(tmp_path / "new/indices.arrow"))
    kept = [row for row in range(ROWS) if row not in drop]
    assert receipt.rows == len(chosen) == len(kept)
    assert chosen["indices"] == kept
    assert chosen[WEIGHT] == [WEIGHTS.get(row, 1.0) for row in kept]
    before = datasets.load_from_disk(saved.frozen.data.name)
    assert before.select(chosen["indices"])["number"] == [before["number"][row] for row in kept]
    with pytest.raises(UsageError, match=r"--indices: .* of the kind parquet, .*leave --indices out"):
        apply_list(parquet, edited(parquet, drop), str(tmp_path / "other"), indices=True)


def test_of_the_hub_row_numbers_are_written(parquet, tmp_path):
    """The data set as `load_dataset` has it, which is how one of the hub is read."""
    shutil.copytree(parquet.store.root, tmp_path / "out")
    listing = HubSource(Request(parquet.frozen.data.name)).listing
    frozen = replace(parquet.frozen, data=DataInfo.of(parquet.frozen.data.name, None, listing))
    audit = Audit(replace_store(parquet, tmp_path / "out"), frozen.to_json())
    write_listings(audit.store, {SCORES_FOLDER: listing})
    audit.store.write_json(MANIFEST, frozen.to_json())
    audit = open_audit(str(tmp_path / "out"), trust_output=True)
    apply_list(audit, edited(audit, drops(1)), str(tmp_path / "new"))
    chosen = datasets.Dataset.from_file(str(tmp_path / "new/indices.arrow"))["indices"]
    loaded = datasets.load_dataset(parquet.frozen.data.name, split="train").select(chosen)
    assert loaded["number"] == [row for row in range(ROWS) if row not in drops(1)]


def replace_store(audit: Audit, folder: Path) -> Any:
    return type(audit.store)(str(folder))


def test_a_data_set_in_a_store_is_curated_here(run, images, bucket, tmp_path):
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": values(images)}), stream, row_group_size=10)
    bucket.put("data/a.parquet", stream.getvalue())
    write_tar(tmp_path / "a.tar", pairs(images))
    bucket.put("tars/a.tar", (tmp_path / "a.tar").read_bytes())
    for name in ("data", "tars"):
        audit = run(f"{bucket.url}/{name}", f"{bucket.url}/out-{name}")
        objects = bucket.objects()
        _, receipt = curate_audit(audit.store.url, CurationPolicy("top_k", 3), destination=str(tmp_path / name))
        assert receipt is not None
        assert receipt.rows < ROWS
        kept = pc.not_equal(
            pq.read_table(io.BytesIO(bucket.objects()[f"out-{name}/curation.parquet"]))["action"], "drop"
        )
        assert pictures(tmp_path / name) == [
            data for data, stays in zip(images, kept.to_pylist(), strict=True) if stays
        ]
        assert {**objects, f"out-{name}/curation.parquet": b""} == {
            **bucket.objects(),
            f"out-{name}/curation.parquet": b"",
        }


def test_a_data_set_that_changed_is_refused_and_nothing_is_left(audit, tmp_path):
    table = edited(audit, [3])
    files = [path for path in Path(audit.frozen.data.name).rglob("*") if path.is_file() and path.suffix != ".json"]
    content = max(files).read_bytes()
    try:
        max(files).write_bytes(content + b"more")
        with pytest.raises(DataError, match=r"has changed; restore it|is not what it was"):
            apply_list(audit, table, str(tmp_path / "new"))
        max(files).unlink()
        with pytest.raises(DataError, match=r"restore it|has changed|cannot be loaded"):
            apply_list(audit, table, str(tmp_path / "new"))
    finally:
        max(files).write_bytes(content)
    assert os.listdir(tmp_path) == []
    apply_list(audit, table, str(tmp_path / "new"))


def test_a_file_that_lost_rows_at_its_old_size_is_refused(run, images, tmp_path):
    write_tar(tmp_path / "data/a.tar", pairs(images))
    audit = run(tmp_path / "data", tmp_path / "out")
    size = (tmp_path / "data/a.tar").stat().st_size
    write_tar(tmp_path / "data/a.tar", pairs(images[:-1]))
    with open(tmp_path / "data/a.tar", "ab") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=f"holds less than {ROWS} samples, and {ROWS} when"):
        apply_list(audit, edited(audit, [3]), str(tmp_path / "new"))
    assert sorted(os.listdir(tmp_path)) == ["data", "out"]


def test_a_corrupt_row_group_must_be_dropped(run, images, tmp_path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data/a.parquet"
    pq.write_table(pa.table({"image": values(images)}), path, row_group_size=10, compression="none")
    column = pq.read_metadata(path).row_group(2).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    audit = run(tmp_path / "data", tmp_path / "out")
    assert audit.scores["status"].to_pylist().count("undecodable") == 10
    with pytest.raises(DataError, match=r"row group 2 of .*a\.parquet cannot be read .* drop the rows 20 to 29"):
        apply_list(audit, edited(audit, [3]), str(tmp_path / "new"))
    assert sorted(os.listdir(tmp_path)) == ["data", "out"]
    apply_list(audit, edited(audit, [3, *range(20, 30)]), str(tmp_path / "new"))
    assert len(pq.read_table(tmp_path / "new")) == ROWS - 11


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_images_in_files_beside_a_table_are_not_left_behind(run, images, tmp_path, kind):
    data = tmp_path / "data"
    data.mkdir()
    (data / "near.jpg").write_bytes(images[0])
    rows = [{"bytes": None, "path": "near.jpg"}, *({"bytes": image, "path": "gone.png"} for image in images)]
    if kind == "parquet":
        pq.write_table(pa.table({"image": rows}), data / "a.parquet")
    else:
        struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        features = datasets.Features({"image": struct})
        datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(str(data))
    audit = run(data, tmp_path / "out")
    with pytest.raises(DataError, match=r"images in files beside it, such as 'near\.jpg'"):
        apply_list(audit, edited(audit, [3]), str(tmp_path / "new"))
    apply_list(audit, edited(audit, [0]), str(tmp_path / "new"))
    assert pictures(tmp_path / "new") == images


def test_a_name_with_a_line_break_does_not_fit_into_a_file_list(run, images, tmp_path):
    write_folder(tmp_path / "data", images)
    (tmp_path / "data/line\nbreak.png").write_bytes(images[0])
    audit = run(tmp_path / "data", tmp_path / "out")
    with pytest.raises(DataError, match=f"has a line break in it, .* drop row {ROWS} in the list"):
        apply_list(audit, edited(audit, [3]), str(tmp_path / "new"))
    assert apply_list(audit, edited(audit, [ROWS]), str(tmp_path / "new")).rows == ROWS


def test_destinations_that_are_refused(parquet, tmp_path):
    table = edited(parquet, [3])
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("mine")
    for name in ("there", "link", "file"):
        with pytest.raises(OutputError, match=f"{name} exists: choose a new folder"):
            apply_list(parquet, table, str(tmp_path / name))
    with pytest.raises(OutputError, match="is in the audited data set"):
        apply_list(parquet, table, f"{parquet.frozen.data.name}/new")
    with pytest.raises(OutputError, match="cannot be written"):
        apply_list(parquet, table, str(tmp_path / "file/new"))
    with pytest.raises(UsageError, match="the list drops every row"):
        apply_list(parquet, edited(parquet, list(range(ROWS))), str(tmp_path / "new"))
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "there"]
    assert (tmp_path / "file").read_text() == "mine"


def test_an_undo_removes_only_what_was_written(parquet, tmp_path):
    new = tmp_path / "new"
    apply_list(parquet, edited(parquet, [3]), str(new))
    (new / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"'notes\.txt' is not of its writing: nothing was removed"):
        undo_list(str(new))
    (new / "notes.txt").unlink()
    content = (new / "a.parquet").read_bytes()
    (new / "a.parquet").write_bytes(content[:-1] + b"x")
    with pytest.raises(OutputError, match=r"'a\.parquet' is changed"):
        undo_list(str(new))
    (new / "a.parquet").unlink()
    with pytest.raises(OutputError, match=r"'a\.parquet' is missing"):
        undo_list(str(new))
    (new / "a.parquet").write_bytes(content)
    receipt = (new / RECEIPT).read_text()
    (new / RECEIPT).write_text("{")
    with pytest.raises(OutputError, match=r"cannot be read .* nothing was removed"):
        undo_list(str(new))
    (new / RECEIPT).write_text(receipt)
    undo_list(str(new))
    assert os.listdir(tmp_path) == []
    for nothing in (new, Path(parquet.frozen.data.name)):
        with pytest.raises(OutputError, match=f"holds no {RECEIPT}"):
            undo_list(str(nothing))


def test_what_was_opened_is_written_whatever_its_names_are(run, images, tmp_path):
    """Drafts that a pattern names, other endings of parquet, one image, images beside what is left aside, links."""
    root = tmp_path / "data"
    write_parquet(root / "_draft.parquet", images[:6])
    write_parquet(root / "x.pq", images[:6])
    write_folder(root / "pictures", images[:6])
    write_folder(root / "pictures" / "@eaDir", images[:6])
    (root / "pictures" / "link.png").symlink_to("0000.png")
    (root / "pictures" / "notes.txt").write_text("text")
    expected = {
        "_*.parquet": ["_draft.parquet"],
        "x.pq": ["x.pq"],
        "pictures": [f"000{row}.png" for row in range(6) if row != 2],
        "pictures/**/*.png": [f"000{row}.png" for row in range(6) if row != 2],
        "pictures/000[3-5].png": ["0003.png", "0004.png"],
    }
    for number, (data, names) in enumerate(expected.items()):
        audit = run(root / data, tmp_path / f"out{number}")
        receipt = apply_list(audit, edited(audit, [2]), str(tmp_path / f"curated{number}"))
        assert receipt.rows == audit.frozen.data.rows - 1
        written = tmp_path / f"curated{number}"
        if audit.frozen.data.kind == "folder":
            assert (written / "files.txt").read_text().splitlines() == names
        else:
            assert list(receipt.files) == names
            kept = [data for row, data in enumerate(images[:6]) if row != 2]
            assert [value["bytes"] for value in pq.read_table(written / names[0])["image"].to_pylist()] == kept
