"""A data set whose files keep their names and sizes and hold other images is not the one that was scored."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import volgrowth as vg
from tests.support.samples import dataset, write_tar
from volgrowth.audit.output import unchanged
from volgrowth.audit.output.unchanged import check_unchanged, expected_hashes
from volgrowth.cli import run_command
from volgrowth.errors import DataError
from volgrowth.sources import bytes_hash, content_id, encode_png, open_source
from volgrowth.storage.store import Store

ROWS = 90
LATER = (1_900_000_000, 1_900_000_000)


def padded(pixels: np.ndarray, size: int = 400) -> bytes:
    """A PNG of a fixed size, so that another image can take its place: a PNG ends before what follows it."""
    data = encode_png(pixels)
    return data + bytes(size - len(data))


@pytest.fixture(scope="module")
def images(digits: np.ndarray) -> list[bytes]:
    return [padded(image) for image in digits[:ROWS]]


@pytest.fixture(scope="module")
def others(digits: np.ndarray) -> list[bytes]:
    return [padded(image) for image in digits[500 : 500 + ROWS]]


def write_folder(path: Path, images: list[bytes]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for row, data in enumerate(images):
        (path / f"{row:03}.png").write_bytes(data)


def write_parquet(path: Path, images: list[bytes]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for part in range(3):
        some = images[part * 30 : part * 30 + 30]
        table = pa.table({"image": some, "name": [f"n{row}" for row in range(len(some))]})
        pq.write_table(table, path / f"{part}.parquet", row_group_size=10, compression="none")


def write_tars(path: Path, images: list[bytes]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    write_tar(path / "0.tar", [(f"{row:03}.png", data) for row, data in enumerate(images)])


WRITERS: dict[str, Callable[[Path, list[bytes]], None]] = {
    "folder": write_folder,
    "parquet": write_parquet,
    "tars": write_tars,
}


@pytest.fixture(params=WRITERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Callable[..., int]:
    """Audit `data`, and return the exit code; the last fragment is missing, as if the audit had been interrupted."""

    def run(**more: Any) -> int:
        given = {"data": tmp_path / "data", "output": tmp_path / "out", **more}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if name != "data"]
        preset = ["--set", "measure.preset=paper", "--engine", "local", "--shard-size", "30"]
        return run_command(["audit", str(tiny_model), str(given["data"]), *options, *preset])

    return run


def interrupted(out: Path) -> None:
    (out / "_SUCCESS").unlink()
    (out / "scores/part-00002.parquet").unlink()


def test_a_data_set_that_changed_at_its_size_is_neither_resumed_nor_copied(kind, run, images, others, tmp_path, capsys):
    WRITERS[kind](tmp_path / "data", images)
    assert run() == 0
    before = {path.name: path.stat().st_size for path in (tmp_path / "data").iterdir()}
    half = [other if row % 2 else image for row, (image, other) in enumerate(zip(images, others, strict=True))]
    WRITERS[kind](tmp_path / "data", half)
    assert {path.name: path.stat().st_size for path in (tmp_path / "data").iterdir()} == before
    capsys.readouterr()
    out = str(tmp_path / "out")
    assert run_command(["curate", out, "--top-k", "1", "--apply", str(tmp_path / "curated")]) == 2
    assert "the data set changed since it was audited: row" in capsys.readouterr().err
    assert not (tmp_path / "curated").exists()
    assert run() == 2  # asked again when finished
    interrupted(tmp_path / "out")
    assert run() == 2
    said = capsys.readouterr().err
    assert "hold another image than was scored" in said
    assert not (tmp_path / "out/scores/part-00002.parquet").exists()
    WRITERS[kind](tmp_path / "data", images)  # restored, at another time
    assert run() == 0


def test_a_copy_of_the_data_set_with_other_times_is_the_same(kind, run, images, tmp_path):
    WRITERS[kind](tmp_path / "data", images)
    assert run() == 0
    interrupted(tmp_path / "out")
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "data", copy_function=shutil.copyfile)
    for path in (tmp_path / "data").iterdir():
        os.utime(path, LATER)
    assert run() == 0
    assert run_command(["curate", str(tmp_path / "out"), "--top-k", "1", "--apply", str(tmp_path / "curated")]) == 0


def test_files_that_were_replaced_with_their_times_are_found_by_the_sample(run, images, others, tmp_path):
    write_folder(tmp_path / "data", images)
    assert run() == 0
    for row, data in enumerate(others):
        path = tmp_path / f"data/{row:03}.png"
        facts = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert run() == 2


def test_one_changed_file_among_many_is_found_by_its_time(run, images, others, tmp_path, capsys):
    write_folder(tmp_path / "data", images)
    assert run() == 0
    (tmp_path / "data/017.png").write_bytes(others[17])
    assert run() == 2
    assert "row 17 (017.png)" in capsys.readouterr().err


def test_a_report_shows_no_picture_of_an_image_that_was_not_scored(run, images, others, tmp_path, capsys):
    write_folder(tmp_path / "data", images)
    assert run() == 0
    assert run_command(["report", str(tmp_path / "out")]) == 0
    assert "shows no pictures" not in capsys.readouterr().err
    write_folder(tmp_path / "data", others)
    assert run_command(["report", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "the report shows no pictures: row" in said
    assert "holds another image than was scored" in said


def test_a_held_out_set_is_compared_as_well(run, images, others, digits, tmp_path, capsys):
    write_folder(tmp_path / "data", images)
    write_folder(tmp_path / "held", [padded(image) for image in digits[200:310]])
    assert run(holdout=tmp_path / "held") == 0
    write_folder(tmp_path / "held", others)
    assert run(holdout=tmp_path / "held") == 2
    assert "the data set changed since it was audited" in capsys.readouterr().err


def test_ids_of_the_user_hide_no_change(run, images, others, tmp_path, capsys):
    write_parquet(tmp_path / "data", images)
    assert run(id_column="name") == 0
    write_parquet(tmp_path / "data", others)
    assert run(id_column="name") == 2
    assert run_command(["curate", str(tmp_path / "out"), "--top-k", "1", "--apply", str(tmp_path / "curated")]) == 2


def test_a_saved_data_set_is_compared(run, images, others, tmp_path):
    dataset(images).save_to_disk(tmp_path / "data")
    assert run() == 0
    assert run() == 0
    shutil.rmtree(tmp_path / "data")
    dataset(others).save_to_disk(tmp_path / "data")
    assert run() == 2


def test_what_is_compared_is_bounded_and_that_is_said(run, images, tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "data", images)
    assert run() == 0
    for path in (tmp_path / "data").iterdir():
        os.utime(path, LATER)
    monkeypatch.setattr(unchanged, "FILES", 5)
    audit, compared = vg.open_audit(str(tmp_path / "out")), list[int]()

    def check_rows(source, parts):
        compared.extend(row for part in parts for row in part)

    monkeypatch.setattr(unchanged, "check_rows", check_rows)
    check_unchanged(Store(str(tmp_path / "out")), audit.frozen)
    assert 0 < len(compared) <= unchanged.ROWS + 3 + 5 * unchanged.ROWS_A_FILE
    assert "90 files of" in capsys.readouterr().err


def test_old_scores_are_compared_by_ids_that_are_hashes():
    data = b"an image"
    name = content_id(data)
    old = pa.table({"row": [0, 1, 2], "image_id": [name, content_id(b""), None]})
    assert expected_hashes(old, None) == {0: bytes_hash(data)}
    assert expected_hashes(old, "id") == {}
    new = old.append_column("bytes_hash", pa.array([bytes_hash(data), bytes_hash(b""), None], pa.uint64()))
    assert expected_hashes(new, "id") == {0: bytes_hash(data)}


def test_a_row_that_is_gone_is_named(images, tmp_path):
    write_parquet(tmp_path / "data", images)
    source = open_source(str(tmp_path / "data"))
    expected = {row: bytes_hash(images[row]) for row in (0, 40, 89)}
    unchanged.check_rows(source, [expected])
    with pytest.raises(DataError, match=r"row 40 \(1.parquet#10\) of 3 rows that were compared"):
        unchanged.check_rows(source, [{**expected, 40: 1}])
