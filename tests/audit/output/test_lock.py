import os
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

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


def test_a_driver_elsewhere_is_watched(store, monkeypatch):
    """For as long as it takes to show that it lives, by a clock that only waiting moves."""
    clock, waited = [0.0], []
    there = {"id": "other", "host": "elsewhere", "pid": 1, "born": "1"}

    def wait(seconds, beat=None):
        clock[0] += seconds
        waited.append(seconds)
        if len(waited) == beat:
            store.write_json(LOCK, {**there, "beat": 1})

    monkeypatch.setattr(locking, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=wait))
    store.write_json(LOCK, {**there, "beat": 0})
    with driving(store):
        assert sum(waited) >= locking.WATCH_SECONDS
    store.write_json(LOCK, {**there, "beat": 0})
    waited.clear()
    monkeypatch.setattr(locking.time, "sleep", partial(wait, beat=3))
    with pytest.raises(OutputError, match="process 1 on elsewhere"):
        Lock(store).acquire()
    assert len(waited) == 3


def test_who_was_taken_for_dead_stops_and_leaves_the_lock_to_the_other(store, monkeypatch):
    monkeypatch.setattr(locking, "BEAT_SECONDS", 0.1)
    with driving(store) as lock:
        lock.check()
        store.write_json(LOCK, {"id": "other", "host": "elsewhere", "pid": 1, "born": "1", "beat": 0})
        wait_for(lambda: lock._lost)
        with pytest.raises(OutputError, match="was taken over by another volgrowth"):
            lock.check()
    assert store.read_json(LOCK)["id"] == "other"
