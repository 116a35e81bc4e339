"""The lock that keeps a second driver from an output folder, and that a dead driver does not hold.

The lock is a file that names its driver and is rewritten every few seconds. On the same machine a lock whose process
is gone is taken over at once. The process of a driver on another machine cannot be seen: its file is watched, and the
lock is taken over if the file has not changed for a while; clocks are not compared. A driver that finds the lock of
another in its place stops.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from volgrowth.errors import OutputError
from volgrowth.storage.store import Store

LOCK = ".driver.json"
BEAT_SECONDS = 10.0
WATCH_SECONDS = 3 * BEAT_SECONDS


@contextmanager
def driving(store: Store) -> Iterator["Lock"]:
    """Be the only driver on an output folder.

    Raises:
        OutputError: another driver is at work.
    """
    lock = Lock(store)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


class Lock:
    """The lock file, and the thread that rewrites it."""

    def __init__(self, store: Store):
        self.store = store
        self.mine = {"id": uuid.uuid4().hex, "host": platform.node(), "pid": os.getpid(), "born": _born(os.getpid())}
        self._beat, self._lost = 0, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="volgrowth-lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock, or take over that of a dead driver.

        Raises:
            OutputError: another driver is at work.
        """
        if not self.store.create(LOCK, self._content()):
            there = self._read()
            if there and self._alive(there):
                raise OutputError(
                    f"output {self.store.url} is being written by another volgrowth (process {there['pid']} on "
                    f"{there['host']}): wait for it, end it, or choose another output"
                )
            self.store.write(LOCK, self._content())
        self._thread.start()

    def check(self) -> None:
        """Check that no other driver took over because it thought this one dead.

        Raises:
            OutputError: another driver took over.
        """
        if self._lost:
            raise OutputError(
                f"output {self.store.url} was taken over by another volgrowth while this one was not answering: "
                f"nothing is lost, the other one goes on"
            )

    def release(self) -> None:
        """Give up the lock, unless another driver has it."""
        self._stop.set()
        self._thread.join()
        with suppress(OutputError):
            if self._is_mine(self._read()):
                self.store.delete(LOCK)

    def _keep(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with suppress(OutputError):  # a store that is away for a moment; shards have their own attempts
                if not self._is_mine(self._read()):
                    self._lost = True
                    return
                self._beat += 1
                self.store.write(LOCK, self._content())

    def _is_mine(self, there: dict[str, Any] | None) -> bool:
        return there is not None and there.get("id") == self.mine["id"]

    def _content(self) -> bytes:
        return json.dumps({**self.mine, "beat": self._beat}).encode()

    def _read(self) -> dict[str, Any] | None:
        return self.store.read_json(LOCK) if self.store.exists(LOCK) else None

    def _alive(self, there: dict[str, Any]) -> bool:
        if there["host"] == self.mine["host"]:
            return _born(there["pid"]) == there["born"]
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1)
            now = self._read()
            if now != there:
                return now is not None
        return False


def _born(pid: int) -> str | None:
    """Return when a process of this machine started, in the kernel's ticks, or None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:  # a system without /proc says only that the process exists
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
