import threading
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from volgrowth.audit.store import Store
from volgrowth.errors import OutputError


def test_files_come_back_whole_and_tables_with_their_footer(tmp_path):
    store = Store(str(tmp_path / "out"))
    store.write_json("a/b.json", {"x": 1})
    store.write_table("t.parquet", pa.table({"row": [1, 2]}), {"shard": "7"})
    assert store.read_json("a/b.json") == {"x": 1}
    assert store.read_table("t.parquet").column("row").to_pylist() == [1, 2]
    assert store.read_footer("t.parquet") == (2, {"shard": "7"})
    assert store.names() == ["a", "t.parquet"]
    assert store.names("nowhere") == []
    assert store.exists("t.parquet")
    assert not store.exists("a")


def test_a_reader_never_sees_half_a_file(tmp_path):
    """Readers race a writer that replaces one file by files of other lengths."""
    store = Store(str(tmp_path))
    versions = [bytes([k]) * (1 + 300_000 * k) for k in range(5)]
    store.write("f", versions[0])
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(store.read("f"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for version in versions:
            store.write("f", version)
    stop.set()
    reader.join()
    assert seen <= set(versions)
    assert len(seen) > 1
    assert [name for name in store.names() if not name.startswith(".")] == ["f"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write("f", b"before")

    class Full:
        """A file system whose disk fills up half-way."""

        def __getattr__(self, name):
            return getattr(files, name)

        def open_output_stream(self, path):
            stream = files.open_output_stream(path)

            class Stream:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    stream.close()

                def write(self, data):
                    stream.write(data[: len(data) // 2])
                    raise OSError(28, "No space left on device")

            return Stream()

    files = store.files
    monkeypatch.setattr(store, "files", Full())
    with pytest.raises(OutputError, match="No space left"):
        store.write("f", b"after that")
    monkeypatch.undo()
    assert store.read("f") == b"before"
    assert store.names() == ["f"]


def test_places_that_cannot_be_written_or_opened(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written .*choose a place"):
        Store(str(tmp_path / "file" / "out")).write("f", b"")
    with pytest.raises(OutputError, match="expected a folder or a URL"):
        Store("nonsense://x")
    Store(str(tmp_path)).write("j.json", b"no json")
    with pytest.raises(OutputError, match="not written by volgrowth"):
        Store(str(tmp_path)).read_json("j.json")


def test_parquet_files_are_readable_by_anyone(tmp_path):
    Store(str(tmp_path)).write_table("t.parquet", pa.table({"row": [3]}), {"k": "v"})
    assert pq.read_table(BytesIO((tmp_path / "t.parquet").read_bytes())).to_pylist() == [{"row": 3}]


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path):
    store = Store(str(tmp_path))
    store.write("t.parquet", b"PAR1 and nothing else")
    for read in (store.read_table, store.read_footer):
        with pytest.raises(OutputError, match=r"t.parquet cannot be read"):
            read("t.parquet")
        with pytest.raises(OutputError, match=r"missing.parquet cannot be read"):
            read("missing.parquet")
