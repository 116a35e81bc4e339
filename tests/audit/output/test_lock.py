import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import wait_for
from volgrowth.audit.output import lock as locking
from volgrowth.audit.output.lock import LOCK, Lock, driving
from volgrowth.errors import OutputError
from volgrowth.storage.store import Store

HOLD = """
import sys, time
from volgrowth.audit.output.lock import driving
from volgrowth.storage.store import Store
with driving(Store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def holder(store: Store) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, store.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_one_at_a_time_and_free_again_afterwards(store):
    for _ in range(2):
        with driving(store), pytest.raises(OutputError, match=rf"another volgrowth \(process {os.getpid()} on"):
            Lock(store).acquire()
        assert store.names() == []


def test_another_process_is_refused_while_it_lives_and_not_after(store):
    process = holder(store)
    with pytest.raises(OutputError, match=rf"process {process.pid} on .*: wait for it, end it, or choose"):
        Lock(store).acquire()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.exists(LOCK)
    with driving(store):
        pass
    assert store.names() == []


def test_a_process_id_that_was_given_out_again_is_no_driver(store):
    with driving(store) as lock:
        store.write_json(LOCK, {**lock.mine, "id": "other", "born": "long ago", "beat": 3})
        Lock(store).acquire()


@dataclass
class Clock:
    """A clock that only waiting moves. At each wait `meanwhile` is called with the number of waits so far."""

    waited: list[float] = field(default_factory=list)
    meanwhile: Callable[[int], object] = lambda count: None

    def monotonic(self) -> float:
        return sum(self.waited)

    def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.meanwhile(len(self.waited))


@pytest.fixture
def clock(monkeypatch):
    """The clock by which another driver's lock is watched."""
    monkeypatch.setattr(locking, "time", Clock())
    return locking.time


def test_a_driver_elsewhere_is_watched(store, clock):
    """For as long as it takes to show that it lives."""
    there = {"id": "other", "host": "elsewhere", "pid": 1, "born": "1", "boot": "another", "namespace": "pid:[1]"}
    store.write_json(LOCK, {**there, "beat": 0})
    with driving(store):
        assert sum(clock.waited) >= locking.WATCH_SECONDS
    store.write_json(LOCK, {**there, "beat": 0})
    clock.waited.clear()
    clock.meanwhile = lambda count: count == 3 and store.write_json(LOCK, {**there, "beat": 1})
    with pytest.raises(OutputError, match="process 1 on elsewhere"):
        Lock(store).acquire()
    assert len(clock.waited) == 3


def test_who_was_taken_for_dead_stops_and_leaves_the_lock_to_the_other(store, monkeypatch):
    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.1)
    with driving(store) as lock:
        lock.check()
        store.write_json(LOCK, {"id": "other", "host": "elsewhere", "pid": 1, "born": "1", "beat": 0})
        wait_for(lambda: lock._lost)
        with pytest.raises(OutputError, match="was taken over by another volgrowth"):
            lock.check()
    assert store.read_json(LOCK)["id"] == "other"


@pytest.mark.parametrize(
    "other",
    [{"boot": "another kernel"}, {"namespace": "pid:[4]"}, {"boot": None, "namespace": None}],
    ids=["a machine of the same name", "another container", "an older version"],
)
def test_a_driver_that_cannot_be_seen_is_taken_over_for_its_heartbeat_alone(store, clock, capsys, other):
    """Its process has a number that is free here, or that another program has."""
    there = {**Lock(store).mine, "id": "other", **other}
    store.write_json(LOCK, {**there, "beat": 0})
    clock.meanwhile = lambda count: store.write_json(LOCK, {**there, "beat": count})
    with pytest.raises(OutputError, match="is being written by another volgrowth"):
        Lock(store).acquire()
    clock.meanwhile = lambda count: None
    with driving(store):
        assert sum(clock.waited) >= locking.WATCH_SECONDS
    assert "watching for 30 seconds if another volgrowth (process" in capsys.readouterr().err


def test_a_process_that_waits_for_its_parent_alone_holds_no_lock(store):
    process = holder(store)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
    with driving(store):
        pass
    process.wait()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'{"id": 3, "pid": "x", "boot": []}'])
def test_a_damaged_lock_is_taken_over_if_nobody_writes_it_again(store, clock, capsys, content):
    store.write(LOCK, content)
    with driving(store) as lock:
        lock.confirm()
    assert sum(clock.waited) >= locking.WATCH_SECONDS
    assert "watching for 30 seconds" in capsys.readouterr().err


PUBLISHES = """
import os, sys, time
from volgrowth.audit.output import lock
from volgrowth.audit.output.lock import driving
from volgrowth.errors import OutputError
from volgrowth.storage.store import Store
name, folder = sys.argv[2:]
lock.WATCH_SECONDS = 1.5
if name == "second":  # in another container
    lock._seen_by = lambda: {"boot": "another", "namespace": "pid:[4]"}
with driving(Store(sys.argv[1])) as held:
    store = held.fenced()
    store.write("begun-" + name, b"")
    while not os.path.exists(os.path.join(folder, "publish-" + name)):
        time.sleep(0.01)
    try:
        for file in ("findings.parquet", "summary.json", "_SUCCESS"):
            store.write(file, name.encode())
        store.delete("old")
    except OutputError as error:
        print(error)
        sys.exit(2)
"""


def publisher(store: Store, name: str, folder: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PUBLISHES, store.url, name, str(folder)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: store.exists(f"begun-{name}"))
    return process


def test_a_driver_that_was_stopped_and_taken_over_writes_nothing_when_it_goes_on(tmp_path):
    """Two real processes: the first is stopped before its last phase, the second takes over and finishes."""
    store = Store(str(tmp_path / "out"))
    store.write("old", b"")
    first = publisher(store, "first", tmp_path)
    first.send_signal(signal.SIGSTOP)
    second = publisher(store, "second", tmp_path)
    (tmp_path / "publish-second").touch()
    assert second.wait() == 0
    store.write("old", b"")
    (tmp_path / "publish-first").touch()
    first.send_signal(signal.SIGCONT)
    said, _ = first.communicate()
    assert first.returncode == 2
    assert "was taken over by another volgrowth" in said
    assert [store.read(name) for name in ("findings.parquet", "summary.json", "_SUCCESS")] == [b"second"] * 3
    assert store.exists("old")
    assert not store.exists(LOCK)


def test_a_signal_at_the_moment_when_the_lock_is_taken_leaves_none(tmp_path):
    class Interrupted(Store):
        def create(self, name, data):
            super().create(name, data)
            raise KeyboardInterrupt

    store = Interrupted(str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt), driving(store):
        pass
    assert not store.exists(LOCK)


def test_a_driver_that_kept_its_lock_publishes(tmp_path):
    store = Store(str(tmp_path / "out"))
    (tmp_path / "publish-first").touch()
    assert publisher(store, "first", tmp_path).wait() == 0
    assert store.read("summary.json") == b"first"


def test_no_half_written_file_is_left_where_the_lock_is_lost(store):
    with driving(store) as lock:
        fenced = lock.fenced()
        fenced.write("summary.json", b"mine")
        store.write_json(LOCK, {"id": "other"})
        for publish in (lambda: fenced.write("summary.json", b"late"), lambda: fenced.delete("summary.json")):
            with pytest.raises(OutputError, match="was taken over by another volgrowth"):
                publish()
    assert store.read("summary.json") == b"mine"
    assert store.names() == [LOCK, "summary.json"]
