"""Lists become data sets in an object store, whole or unfinished by name, and are undone there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.curation.conftest import ROWS, write_odd_folder
from tests.curation.test_applying import KINDS, WEIGHTS, digests, drops, edited, pictures
from tests.support.s3 import Bucket
from tests.support.samples import values
from volgrowth.audit.output.lock import LOCK, driving
from volgrowth.audit.output.result import Audit, open_audit
from volgrowth.cli import run_command
from volgrowth.curation import apply_list, stored, undo_list
from volgrowth.curation.kept import WEIGHT
from volgrowth.curation.receipts import RECEIPT
from volgrowth.curation.stored import UNFINISHED, StoreStage
from volgrowth.errors import DataError, OutputError
from volgrowth.sources import open_source
from volgrowth.storage import made_here
from volgrowth.storage.store import Store
from volgrowth.storage.urls import filesystem

APPLY_AND_DIE = """
import os, signal, sys
import pyarrow.parquet as pq
from volgrowth.audit.output.result import open_audit
from volgrowth.curation import apply_list, stored
class Dying(stored.StoreStage):
    def _upload(self, name, path, size):
        if self.begun.files:
            self.store.upload(name, path)  # and is not noted
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._upload(name, path, size)
stored.StoreStage, stored.NOTED_SECONDS = Dying, 0
apply_list(open_audit(sys.argv[1]), pq.read_table(sys.argv[2]), sys.argv[3])
"""


@pytest.fixture(params=KINDS)
def audit(request: pytest.FixtureRequest) -> Audit:
    return request.getfixturevalue(request.param)


def download(bucket: Bucket, prefix: str, folder: Path) -> Path:
    for key, data in bucket.objects().items():
        if key.startswith(f"{prefix}/"):
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder


def below(bucket: Bucket, prefix: str = "new") -> list[str]:
    return [key.removeprefix(f"{prefix}/") for key in bucket.objects() if key.startswith(f"{prefix}/")]


def test_a_store_gets_what_a_folder_gets(audit, bucket, tmp_path):
    before, table = digests(Path(audit.frozen.data.name).parent), edited(audit, drops(0), WEIGHTS)
    bucket.put("new-2/x", b"beside")  # names of other prefixes may begin alike
    here = apply_list(audit, table, str(tmp_path / "new"))
    there = apply_list(audit, table, f"{bucket.url}/new")
    assert (there.rows, there.actions, there.kind) == (here.rows, here.actions, here.kind)
    assert {*below(bucket)} == {*here.files, RECEIPT}
    copied = download(bucket, "new", tmp_path / "copied")
    assert there.files == {name: (*here.files[name],) for name in there.files}
    assert {name: size for name, (size, _) in there.files.items()} == {
        name: (copied / name).stat().st_size for name in there.files
    }
    assert list(there.tags) == list(there.files)
    if audit.frozen.data.kind in ("parquet", "webdataset"):
        assert pictures(f"{bucket.url}/new") == pictures(tmp_path / "new")
    elif audit.frozen.data.kind == "arrow":
        loaded = datasets.load_from_disk(str(copied))
        assert loaded[WEIGHT] == datasets.load_from_disk(str(tmp_path / "new"))[WEIGHT]
    undo_list(f"{bucket.url}/new")
    assert [*bucket.objects()] == ["new-2/x"]
    assert digests(Path(audit.frozen.data.name).parent) == before


def test_a_saved_data_set_is_written_a_shard_at_a_time(run, images, bucket, tmp_path, monkeypatch):
    from tests.support.samples import dataset

    monkeypatch.setattr("volgrowth.curation.tables.SHARD_BYTES", 2_000)
    both = datasets.DatasetDict({"train": dataset(images, number=list(range(ROWS))), "test": dataset(images[:3])})
    both.save_to_disk(str(tmp_path / "data"))
    audit = run(tmp_path / "data", tmp_path / "out", split="train")
    apply_list(audit, edited(audit, drops(0)), f"{bucket.url}/new")
    apply_list(audit, edited(audit, drops(0)), str(tmp_path / "new"))
    kept = [row for row in range(ROWS) if row not in drops(0)]
    for folder in (tmp_path / "new", download(bucket, "new", tmp_path / "copied")):
        assert len(list((folder / "train").glob("*.arrow"))) > 3
        loaded = datasets.load_from_disk(str(folder))
        assert {name: split["number"][:] for name, split in loaded.items()} == {"train": kept}


def test_the_command_applies_and_undoes(parquet, bucket, tmp_path, capsys):
    pq.write_table(edited(parquet, [3]), tmp_path / "list.parquet")
    new = f"{bucket.url}/deep/er/new"
    arguments = ["curate", parquet.store.root, "--list", str(tmp_path / "list.parquet"), "--apply", new]
    assert run_command(arguments) == 0
    assert f"{ROWS - 1} rows in {new}; volgrowth curate --undo {new} removes it" in capsys.readouterr().out
    assert run_command(arguments) == 2
    assert (
        "a curated data set is there: choose a new prefix, or `volgrowth curate --undo` it" in capsys.readouterr().err
    )
    assert run_command(["curate", "--undo", new]) == 0
    assert f"removed {new} ({ROWS - 1} rows, 2 files)" in capsys.readouterr().out
    assert bucket.objects() == {}


def test_places_that_are_refused_before_anything_is_written(parquet, run, images, bucket, tmp_path):
    table = edited(parquet, [3])
    bucket.put("full/deep/mine.txt", b"mine")
    bucket.put("object", b"mine")
    with pytest.raises(OutputError, match=r"the prefix holds 1 objects, such as 'deep/mine\.txt': expected an empty"):
        apply_list(parquet, table, f"{bucket.url}/full")
    with pytest.raises(OutputError, match="object is an object, and a prefix was expected"):
        apply_list(parquet, table, f"{bucket.url}/object")
    with pytest.raises(DataError, match=r"The specified bucket does not exist\): create no-such-bucket"):
        apply_list(parquet, table, "s3://no-such-bucket/new")
    assert sorted(bucket.objects()) == ["full/deep/mine.txt", "object"]
    url = bucket.upload(Path(parquet.frozen.data.name), "data")
    audit, before = run(url, tmp_path / "out", id_column="number"), bucket.objects()
    for within in (url, f"{url}/new", f"{url}/"):
        with pytest.raises(OutputError, match="is in the audited data set"):
            apply_list(audit, table, within)
    assert bucket.objects() == before
    assert apply_list(audit, edited(audit, [3]), f"{bucket.url}/data-new").rows == ROWS - 1  # beside it


def test_names_that_a_store_would_not_keep_are_refused(run, images, bucket, tmp_path):
    """Of a table; a folder of images with such names has its list written."""
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": values(images)}), tmp_path / "data/a.parquet")
    (tmp_path / "data/a.parquet").rename(os.fsdecode(os.fsencode(tmp_path / "data") + b"/\xe9.parquet"))
    audit = run(tmp_path / "data", tmp_path / "out")
    with pytest.raises(DataError, match=r"has a name that an object store would not keep: rename it"):
        apply_list(audit, edited(audit, [3]), f"{bucket.url}/new")
    assert bucket.objects() == {}
    assert apply_list(audit, edited(audit, [3]), str(tmp_path / "new")).rows == ROWS - 1
    write_odd_folder(tmp_path / "images", images)
    folder = run(tmp_path / "images", tmp_path / "out2")
    assert apply_list(folder, edited(folder, [3]), f"{bucket.url}/new").rows == ROWS - 1


@pytest.mark.parametrize("kind", ["denied", "broken"])
def test_what_was_written_when_the_store_fails_is_gone_on_with(parquet, proxy, bucket, kind):
    table, url = edited(parquet, [3]), f"{bucket.url}/new"
    proxy.fail(kind, path=r"new/\.")
    with pytest.raises(OutputError, match=r"cannot be written \(.*\): "):
        apply_list(parquet, table, url)
    assert bucket.objects() == {}
    proxy.heal()
    proxy.fail(kind, path=r"new/more/b\.parquet")
    with pytest.raises(OutputError, match=r"cannot be written \(.*\): "):
        apply_list(parquet, table, url)
    assert {*below(bucket)} == {"a.parquet", UNFINISHED}
    proxy.forget()
    with pytest.raises(OutputError, match="an unfinished data set of another list is there"):
        apply_list(parquet, edited(parquet, [4]), url)
    receipt = apply_list(parquet, table, url)
    assert not [request for request in proxy.requests if "PUT" in request and "a.parquet" in request]
    assert {*below(bucket)} == {"a.parquet", "more/b.parquet", RECEIPT}
    assert [len(pictures(url)), receipt.rows] == [ROWS - 1, ROWS - 1]
    undo_list(url)
    assert bucket.objects() == {}


def test_after_a_kill_the_same_command_goes_on_and_an_undo_removes(tars, bucket, tmp_path):
    table, url = edited(tars, [3]), f"{bucket.url}/new"
    pq.write_table(table, tmp_path / "list.parquet")
    for how in ("goes on", "is undone"):
        died = subprocess.run(
            [sys.executable, "-c", APPLY_AND_DIE, tars.store.root, tmp_path / "list.parquet", url], check=False
        )
        assert died.returncode == -signal.SIGKILL
        assert {*below(bucket)} == {LOCK, UNFINISHED, "00000.tar", "00001.tar"}
        assert [*json.loads(bucket.objects()[f"new/{UNFINISHED}"])["files"]] == ["00000.tar"]
        if how == "goes on":
            assert apply_list(open_audit(tars.store.root), table, url).rows == ROWS - 1
            assert {*below(bucket)} == {RECEIPT, "00000.tar", "00001.tar", "00002.tar"}
            assert len(pictures(url)) == ROWS - 1
        undo_list(url)
        assert bucket.objects() == {}


def test_after_an_interruption_nothing_is_taken_for_the_data_set(tars, bucket, monkeypatch):
    def interrupt(self: StoreStage, name: str, path: Path, size: int) -> str:
        if name == "00001.tar":
            raise KeyboardInterrupt
        return upload(self, name, path, size)

    table, url, upload = edited(tars, [3]), f"{bucket.url}/new", StoreStage._upload
    monkeypatch.setattr(StoreStage, "_upload", interrupt)
    with pytest.raises(KeyboardInterrupt):
        apply_list(tars, table, url)
    assert {*below(bucket)} == {UNFINISHED, "00000.tar"}
    with pytest.raises(DataError, match=r"new holds a part of a data set .* run it again, or remove the part by"):
        open_source(url)
    monkeypatch.setattr(StoreStage, "_upload", upload)
    bucket.put("new/strange", b"mine")
    with pytest.raises(OutputError, match="holds 'strange', which `volgrowth curate` did not write there"):
        apply_list(tars, table, url)
    with pytest.raises(OutputError, match="'strange' is not of its writing: nothing was removed"):
        undo_list(url)
    bucket.client.delete_object(Bucket=bucket.name, Key="new/strange")
    bucket.put("new/00000.tar", b"of somebody else")  # is not what was noted, so it is written again
    assert apply_list(tars, table, url).rows == ROWS - 1
    assert len(pictures(url)) == ROWS - 1


def test_notes_of_another_account_are_not_believed(tars, bucket, proxy, monkeypatch, tmp_path_factory):
    table, url = edited(tars, [3]), f"{bucket.url}/new"
    proxy.fail("denied", path=r"00001\.tar")
    with pytest.raises(OutputError, match="Access Denied"):
        apply_list(tars, table, url)
    proxy.forget()
    monkeypatch.setattr(made_here, "_remembered", set())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("another")))
    with pytest.raises(OutputError, match=f"its {UNFINISHED} may be forged: nothing was removed; add --trust-output"):
        undo_list(url)
    proxy.forget()
    apply_list(open_audit(tars.store.root, trust_output=True), table, url)
    assert [request for request in proxy.requests if "PUT" in request and "00000.tar" in request]
    assert {*below(bucket)} == {RECEIPT, "00000.tar", "00001.tar", "00002.tar"}


def test_after_an_error_of_the_data_set_nothing_is_left(run, images, bucket, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.table({"image": values(images)}), tmp_path / f"data/{name}.parquet", compression="none")
    column = pq.read_metadata(tmp_path / "data/b.parquet").row_group(0).column(0)
    content = bytearray((tmp_path / "data/b.parquet").read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    (tmp_path / "data/b.parquet").write_bytes(content)
    audit = run(tmp_path / "data", tmp_path / "out")
    with pytest.raises(DataError, match=r"row group 0 of .*b\.parquet cannot be read"):
        apply_list(audit, edited(audit, [3]), f"{bucket.url}/new")
    assert bucket.objects() == {}
    apply_list(audit, edited(audit, [3, *range(ROWS, 2 * ROWS)]), f"{bucket.url}/new")
    assert {*below(bucket)} == {"a.parquet", RECEIPT}


def test_a_disk_without_room_for_a_file_is_a_sentence(parquet, bucket, monkeypatch):
    def full(source: Any, stage: StoreStage, kept: Any) -> None:
        stage.expect(["a.parquet"])
        with stage.new_file("a.parquet"):
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(__import__("volgrowth.curation.applying", fromlist=["x"]).WRITERS, "parquet", full)
    with pytest.raises(
        OutputError, match=r"\(No space left on device\): set TMPDIR to a folder with room for the larg"
    ):
        apply_list(parquet, edited(parquet, [3]), f"{bucket.url}/new")
    assert bucket.objects() == {}


def test_a_second_command_is_kept_out_and_one_that_lost_its_lock_writes_nothing_more(parquet, bucket, monkeypatch):
    table, url = edited(parquet, [3]), f"{bucket.url}/new"
    with driving(Store(url)), pytest.raises(OutputError, match="is being written by another volgrowth"):
        apply_list(parquet, table, url)
    assert bucket.objects() == {}

    def lose(self: StoreStage, name: str, path: Path, size: int) -> str:
        bucket.put(f"new/{LOCK}", json.dumps({"id": "another"}).encode())
        return upload(self, name, path, size)

    upload = StoreStage._upload
    monkeypatch.setattr(StoreStage, "_upload", lose)
    with pytest.raises(OutputError, match="was taken over by another volgrowth"):
        apply_list(parquet, table, url)
    assert {*below(bucket)} == {LOCK, UNFINISHED}


def change(bucket: Bucket, name: str) -> None:
    if name == "missing":
        bucket.client.delete_object(Bucket=bucket.name, Key="new/a.parquet")
    else:
        key = {"changed": "new/a.parquet", "not of its writing": "new/deep/strange"}[name]
        size = len(bucket.objects().get(key, b"1"))
        bucket.put(key, b"x" * size)


@pytest.mark.parametrize("how", ["changed", "missing", "not of its writing"])
def test_nothing_is_removed_if_anything_is_not_as_it_was_written(parquet, bucket, how):
    url = f"{bucket.url}/new"
    apply_list(parquet, edited(parquet, [3]), url)
    change(bucket, how)
    before = bucket.objects()
    with pytest.raises(OutputError, match=f"is {how}: nothing was removed"):
        undo_list(url)
    assert bucket.objects() == before


@pytest.mark.parametrize("content", ["{", "[]", '{"files": 5}', "forged", None])
def test_what_has_no_receipt_of_this_account_is_not_removed(bucket, content, parquet):
    forged = {"audit": "x", "data": "d", "kind": "parquet", "rows": 1, "actions": {}}
    bucket.put("mine/photo.png", b"")
    if content is not None:
        nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        text = json.dumps({**forged, "files": {"photo.png": [0, nothing]}}) if content == "forged" else content
        bucket.put(f"mine/{RECEIPT}", text.encode())
    before = bucket.objects()
    with pytest.raises(OutputError, match="nothing was removed"):
        undo_list(f"{bucket.url}/mine")
    assert bucket.objects() == before


def test_an_undo_that_was_cut_off_is_gone_on_with(parquet, bucket, proxy, monkeypatch):
    url = f"{bucket.url}/new"
    apply_list(parquet, edited(parquet, [3]), url)
    monkeypatch.setattr(stored, "REMOVED_AT_ONCE", 1)
    proxy.fail("denied", method="DELETE", path=r"b\.parquet")
    with pytest.raises(OutputError, match="Access Denied"):
        undo_list(url)
    assert {*below(bucket)} == {"more/b.parquet", UNFINISHED}
    proxy.forget()
    undo_list(url)
    assert bucket.objects() == {}


def test_another_store_and_a_url_of_the_disk(parquet, tmp_path):
    """A store without conditions, whose client is not asynchronous."""
    for url in ("memory://curated/new", f"file://{tmp_path}/new"):
        assert apply_list(parquet, edited(parquet, [3]), url).rows == ROWS - 1
        assert len(pictures(url)) == ROWS - 1
        with pytest.raises(OutputError, match="undo"):
            apply_list(parquet, edited(parquet, [3]), url)
        undo_list(url)
        assert apply_list(parquet, edited(parquet, [4]), url).rows == ROWS - 1
        undo_list(url)
    assert os.listdir(tmp_path) == []
    apply_list(parquet, edited(parquet, [3]), "memory://curated/new")
    files, path = filesystem("memory://curated/new/a.parquet")
    files.pipe_file(path, bytes(files.size(path)))
    with pytest.raises(OutputError, match=r"'a\.parquet' is changed"):
        undo_list("memory://curated/new")
    files.rm("/curated", recursive=True)
