import errno
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.s3 import Bucket, Proxy
from volgrowth.errors import OutputError
from volgrowth.storage import urls
from volgrowth.storage.sealing import arrow_file
from volgrowth.storage.store import Store

FILL_THE_DISK = """
import resource, signal, sys
from volgrowth.storage.store import Store
from volgrowth.errors import OutputError
store = Store(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, 64_000))
def write_open(name, data):
    with store.open_new(name) as file:
        file.write(data)
for publish in (store.write, store.create, write_open):
    for name in ("f", "new"):
        try:
            print(publish(name, bytes(100_000)))
        except OutputError as error:
            print(error)
"""
FAILURES = {
    "denied": r"cannot be written \(Access Denied\): renew .* AWS_ACCESS_KEY_ID",
    "expired": r"cannot be written \(The provided token has expired\): renew .* AWS_ACCESS_KEY_ID",
    "broken": r"cannot be written \(We encountered an internal error.*\): check the URL, and try again",
    "busy": r"cannot be written \(Please reduce your request rate\)",
    "cut": r"cannot be written \(Could not connect to the endpoint URL: .*\): check the endpoint",
}
CREATE = """
import pickle, sys, time
store = pickle.loads(bytes.fromhex(sys.argv[1]))
print(store.read("go").decode(), store.create("f", sys.argv[2].encode()))
"""


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty OUT of each kind; its names hold what URLs and globs give a meaning to."""
    if request.param == "folder":
        return Store(str(tmp_path / "out #1 50% [x] ü"))
    return Store(f"{request.getfixturevalue('bucket').url}/a b/out #1 50% [x] ü")


def test_files_come_back_whole_and_tables_with_their_footer(store: Store) -> None:
    assert store.names() == []
    store.write_json("a/b.json", {"x": 1})
    store.write_table("t.parquet", pa.table({"row": [1, 2]}), {"shard": "7"})
    assert store.read_json("a/b.json") == {"x": 1}
    assert store.read_table("t.parquet").column("row").to_pylist() == [1, 2]
    assert store.read_footer("t.parquet") == (2, {"shard": "7"})
    assert store.names() == ["a", "t.parquet"]
    assert store.names("a") == ["b.json"]
    assert store.names("nowhere") == []
    assert store.exists("t.parquet")
    assert not store.exists("a")
    store.delete("t.parquet")
    store.delete("t.parquet")
    assert not store.exists("t.parquet")


def test_a_table_in_pieces_is_published_whole_or_not_at_all(store: Store) -> None:
    """Larger than a part of an upload, so that a store gets it in several."""
    random, guarded = np.random.default_rng(0), list[str]()
    fenced = store.fenced(lambda: guarded.append("asked"))
    pieces = [pa.table({"noise": random.normal(size=400_000)}) for _ in range(6)]
    with fenced.table_writer("d/t.parquet", pieces[0].schema, {"a": "b"}) as writer:
        for piece in pieces:
            writer.write(piece)
        assert not store.exists("d/t.parquet")
        assert not guarded
    assert guarded == ["asked"]
    assert store.read_table("d/t.parquet").equals(pa.concat_tables(pieces))
    assert store.read_footer("d/t.parquet") == (2_400_000, {"a": "b"})
    with pytest.raises(ValueError, match="schema"), store.table_writer("d/t.parquet", pieces[0].schema, {}) as writer:
        writer.write(pa.table({"other": [1]}))
    assert store.read_footer("d/t.parquet") == (2_400_000, {"a": "b"})
    with pytest.raises(OutputError, match="lost"), store.fenced(_lost).open_new("d/other") as file:
        file.write(b"half")
    assert store.names("d") == ["t.parquet"]


def _lost() -> None:
    raise OutputError("the lock is lost")


def test_names_that_urls_and_globs_give_a_meaning_to(store: Store) -> None:
    names = ["a b", "50%", "%20", "x#y", "q?v=1", "[ab]*", "ü+&=", "~t"]
    for name in names:
        store.write(name, name.encode())
    assert store.names() == sorted(names)
    assert [store.read(name).decode() for name in names] == names
    store.delete("[ab]*")
    assert store.names() == sorted(set(names) - {"[ab]*"})


def test_when_a_file_was_written(store: Store) -> None:
    assert store.modified("f") is None
    before = time.time()
    store.write("f", b"")
    assert store.modified("f") == pytest.approx(before, abs=60)


def test_what_another_process_writes_is_seen_at_once(store: Store) -> None:
    other = Store(store.url)
    for k in range(3):
        assert store.names("d") == [str(i) for i in range(k)]
        assert not store.exists(f"d/{k}")
        other.write(f"d/{k}", b"")
        assert store.exists(f"d/{k}")


def test_a_reader_never_sees_half_a_file(store: Store) -> None:
    """Readers race a writer that replaces one file by files of other lengths."""
    versions = [bytes([k]) * (1 + 300_000 * k) for k in range(5)]
    store.write("f", versions[0])
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(store.read("f"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20 if store.local else 4):
        for version in versions:
            store.write("f", version)
    stop.set()
    reader.join()
    assert seen <= set(versions)
    assert len(seen) > 1
    assert [name for name in store.names() if not name.startswith(".")] == ["f"]


def test_many_threads_share_a_store(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda k: store.write_table(f"{k}", pa.table({"row": [k]}), {"k": str(k)}), range(32)))
        assert list(pool.map(lambda k: store.read_footer(f"{k}"), range(32))) == [(1, {"k": str(k)}) for k in range(32)]


def test_a_store_travels_to_other_processes(store: Store) -> None:
    """Two at once create one file, from a pickled store: one of them does."""
    store.write("go", b"there")
    arguments = [sys.executable, "-c", CREATE, pickle.dumps(store).hex()]
    running = {
        name: subprocess.Popen([*arguments, name], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        for name in ("one", "two")
    }
    said = {name: process.communicate()[0].split() for name, process in running.items()}
    winner = store.read("f").decode()
    assert said == {name: ["there", str(name == winner)] for name in ("one", "two")}


def test_only_the_first_creates_a_file(store: Store) -> None:
    assert store.create("d/f", b"first")
    assert not store.create("d/f", b"second")
    assert store.read("d/f") == b"first"
    assert store.names("d") == ["f"]


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_of_many_at_once_one_creates_a_file(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "s3":
        request.getfixturevalue("proxy")  # which gives moto the one step that S3 does it in
    url = str(tmp_path) if kind == "folder" else request.getfixturevalue("bucket").url
    for k in range(3):
        barrier = threading.Barrier(8)

        def create(writer: int, name: str = f"f{k}", barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return Store(url).create(name, str(writer).encode())

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(create, range(8)))
        assert sum(won) == 1
        assert Store(url).read(f"f{k}") == str(won.index(True)).encode()


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", link)
    store = Store(str(tmp_path))
    assert store.create("f", b"first")
    assert not store.create("f", b"second")
    assert (store.read("f"), store.names()) == (b"first", ["f"])


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    """The kernel refuses the 64,001st byte of a file, in a process of its own."""
    store = Store(str(tmp_path / "out"))
    store.write("f", b"before")
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    said = done.stdout.splitlines()
    assert len(said) == 6
    for line in said:
        assert (
            line
            == f"output {store.url} cannot be written (File too large): choose a place with room that you may "
            + ("write to")
        )
    assert store.read("f") == b"before"
    assert store.names() == ["f"]


def test_places_that_cannot_be_written_or_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written .*choose a place"):
        Store(str(tmp_path / "file" / "out")).write("f", b"")
    with pytest.raises(OutputError, match="expected a folder or a URL"):
        Store("nonsense://x")
    with pytest.raises(OutputError, match="names no bucket: expected a URL"):
        Store("s3://")
    Store(str(tmp_path)).write("j.json", b"no json")
    with pytest.raises(OutputError, match="it is no JSON"):
        Store(str(tmp_path)).read_json("j.json")


def test_parquet_files_are_readable_by_anyone(tmp_path: Path) -> None:
    Store(str(tmp_path)).write_table("t.parquet", pa.table({"row": [3]}), {"k": "v"})
    assert pq.read_table(BytesIO((tmp_path / "t.parquet").read_bytes())).to_pylist() == [{"row": 3}]


def test_what_cannot_be_read_is_said_in_a_sentence(store: Store) -> None:
    store.write("t.parquet", b"PAR1 and nothing else")
    for read in (store.read_table, store.read_footer):
        with pytest.raises(OutputError, match=r"t.parquet is damaged \(its end is missing\)"):
            read("t.parquet")
        with pytest.raises(OutputError, match=r"missing.parquet cannot be read"):
            read("missing.parquet")


def test_an_object_that_stands_for_a_folder_is_not_in_it(bucket: Bucket) -> None:
    for key in ("out/", "out/scores/", "out/scores/part"):
        bucket.put(key, b"")
    store = Store(f"{bucket.url}/out/")
    assert (store.names(), store.names("scores")) == (["scores"], ["part"])
    assert store.path("report.html") == f"{bucket.url}/out/report.html"


def test_credentials_that_were_renewed_are_used(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(bucket.url).write("f", b"")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(OutputError, match=r"cannot be written \(Unable to locate credentials\): renew.*AWS_PROFILE"):
        Store(bucket.url).write("f", b"")
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    Store(bucket.url).write("f", b"")


def test_a_bucket_that_is_missing(bucket: Bucket) -> None:
    store = Store("s3://no-such-bucket/out")
    for use in (store.names, partial(store.exists, "f"), partial(store.read, "f"), partial(store.write, "f", b"")):
        with pytest.raises(OutputError, match=r"\(The specified bucket does not exist\): create no-such-bucket, or"):
            use()
    with pytest.raises(OutputError, match="The specified bucket does not exist"):
        store.create("f", b"")
    with pytest.raises(OutputError, match=r"cannot be written \(Invalid bucket name .*\.\.\.\): check the URL"):
        Store("s3://No_Bucket!/out").write("f", b"")


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_write_that_fails_for_good_leaves_what_was_there(
    kind: str, large: bool, bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs still tries some of them five times
    store = in_parts(Store(bucket.url), monkeypatch) if large else Store(bucket.url)
    store.write("old", b"whole" * 40_000)
    before = bucket.objects()
    # of a large one the third part of four, with the second to come
    proxy.fail(kind, path="partNumber=3" if large else "")
    for name in ("old", "new"):
        with pytest.raises(OutputError, match=FAILURES[kind]):
            store.write(name, bytes(350_000))
        with pytest.raises(OutputError, match=FAILURES[kind]), store.open_new(name) as file:
            file.write(bytes(350_000))
    assert bucket.objects() == before
    assert bucket.open_uploads() == 0
    if not large:
        with pytest.raises(OutputError, match=FAILURES[kind]):
            store.create("new", bytes(350_000))
        assert bucket.objects() == before
    proxy.heal()
    store.write("new", b"x" * 350_000)
    assert bucket.objects() == {**before, "new": b"x" * 350_000}


def in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Uploads in parts begin at 200 kB, not at 100 MiB."""
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    monkeypatch.setattr(store.files, "pipe_file", partial(store.files.pipe_file, chunksize=100_000))
    monkeypatch.setattr("volgrowth.storage.uploads.PART_BYTES", 100_000)
    return store


@pytest.mark.parametrize("kind", ["cut", "lost", "broken", "busy", "slow"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_write_outlives_a_moment_of_trouble(
    kind: str, large: bool, bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = in_parts(Store(bucket.url), monkeypatch) if large else Store(bucket.url)
    fault = proxy.fail(kind, path="partNumber=2" if large else "", times=2, seconds=0.5)
    store.write("f", bytes(range(250)) * 1400)
    assert fault.hits >= (1 if kind == "slow" else 3)
    assert bucket.objects() == {"f": bytes(range(250)) * 1400}
    assert bucket.open_uploads() == 0


def test_an_upload_whose_end_is_refused_is_seen_by_nobody(
    bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = in_parts(Store(bucket.url), monkeypatch)
    proxy.fail("denied", method="POST", path="uploadId=")
    with pytest.raises(OutputError, match="Access Denied"):
        store.write("f", bytes(350_000))
    assert (bucket.objects(), bucket.open_uploads()) == ({}, 0)


def test_who_created_a_file_knows_it_when_the_answer_is_lost(bucket: Bucket, proxy: Proxy) -> None:
    proxy.fail("lost", times=1)
    store = Store(bucket.url)
    assert store.create("f", b"mine")
    assert not store.create("f", b"theirs")


def test_a_store_that_knows_no_conditions(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(bucket.url)
    pipe_file = store.files.pipe_file

    def unconditional(path: str, data: bytes, **options: object) -> None:
        if "mode" in options:
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        pipe_file(path, data)

    monkeypatch.setattr(store.files, "pipe_file", unconditional)
    assert store.create("f", b"mine")
    assert not store.create("f", b"theirs")
    assert store.read("f") == b"mine"


@pytest.mark.parametrize("kind", ["denied", "expired"])
def test_reading_without_the_right_to(kind: str, bucket: Bucket, proxy: Proxy) -> None:
    store = Store(bucket.url)
    store.write("f", b"")
    proxy.fail(kind, method=".*")
    uses = [partial(use, "f") for use in (store.read, store.exists, store.names, store.read_footer, store.modified)]
    for use in uses:
        with pytest.raises(OutputError, match=r"cannot be read \(.*\): renew the credentials .* AWS_ACCESS_KEY_ID"):
            use()


@pytest.mark.parametrize("kind", ["lost", "torn", "broken", "busy"])
def test_a_read_that_breaks_off_is_taken_up_again(kind: str, bucket: Bucket, proxy: Proxy) -> None:
    store = Store(bucket.url)
    store.write("f", bytes(300_000))
    store.write_table("t", pa.table({"row": range(100_000)}), {"k": "v"})
    for read in (partial(store.read, "f"), partial(store.read_footer, "t")):
        proxy.fail(kind, method="GET", times=2)
        assert read() in (bytes(300_000), (100_000, {"k": "v"}))


def test_half_an_answer_is_no_file(bucket: Bucket, proxy: Proxy) -> None:
    store = Store(bucket.url)
    store.write("f", bytes(300_000))
    proxy.fail("torn", method="GET")
    with pytest.raises(OutputError, match=r"/f cannot be read"):
        store.read("f")


def test_other_stores_go_the_same_way() -> None:
    """One that has no conditional writes, no tags and no clock of its own."""
    store = Store("memory://bucket/out")
    assert store.names() == []
    store.write_table("a/t", pa.table({"row": [1]}), {"k": "v"})
    assert (store.names(), store.names("a"), store.read_footer("a/t")) == (["a"], ["t"], (1, {"k": "v"}))
    assert store.create("lock", b"mine")
    assert not store.create("lock", b"theirs")
    assert store.modified("lock") == pytest.approx(time.time(), abs=60)
    store.delete("lock")
    assert not store.exists("lock")


def test_an_endpoint_that_nobody_listens_at(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said = r'\(Could not connect to the endpoint URL: "http://127.0.0.1:9/.*"\): check the endpoint .*AWS_ENDPOINT_URL'
    with pytest.raises(OutputError, match=said):
        Store(bucket.url).write("f", b"")
    with pytest.raises(OutputError, match=said):
        Store(bucket.url).exists("f")


@pytest.mark.timeout(60)
def test_an_endpoint_that_does_not_answer(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets to it vanish: a queue of connections that is full. Each attempt to connect takes a fifth of its time."""
    monkeypatch.setitem(urls._S3["config_kwargs"], "connect_timeout", 1)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        queue = [socket.socket() for _ in range(4)]
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(OutputError, match=r"\(Connect timeout on endpoint URL: .*\): check the endpoint"):
            Store(bucket.url).exists("f")
        for waiting in queue:
            waiting.close()


def test_arrow_reads_from_memory_of_its_own() -> None:
    """A thread of Arrow that lets go of Python's memory while the interpreter ends aborts the process."""
    data = bytearray(b"some bytes")
    file = arrow_file(data)
    data.append(0)  # raises BufferError while anybody holds a view of it
    assert file.read() == b"some bytes"


READ_AND_END = """
import sys
from volgrowth.storage.store import Store
table = Store(sys.argv[1]).read_table("table.parquet")
"""


@pytest.mark.slow
def test_a_process_that_ends_right_after_a_read_ends_well(tmp_path: Path) -> None:
    """Of processes that read from a `BytesIO` and ended at once about one in a hundred aborted."""
    Store(str(tmp_path)).write_table("table.parquet", pa.table({str(n): list(range(5000)) for n in range(20)}), {})

    def run(_: int) -> int:
        return subprocess.run([sys.executable, "-c", READ_AND_END, str(tmp_path)], check=False).returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(24))) == [0] * 24


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    store = Store(str(tmp_path))
    os.mkfifo(tmp_path / "a.json")
    for read in (store.read_json, store.read, store.read_table, store.read_footer):
        with pytest.raises(OutputError, match=r"a\.json is a pipe or a device, which is not read"):
            read("a.json")
    assert not store.exists("a.json")
    store.write("a.json", b"{}")
    assert store.read_json("a.json") == {}
