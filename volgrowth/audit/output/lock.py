"""The lock that keeps a second driver from an output folder, and that a dead driver does not hold.

The lock is a file that names its driver and is rewritten every few seconds: its heartbeat. A driver that runs under the
same kernel (by its boot id) and in the same namespace of processes can be seen: if its process is gone, its lock is
taken over at once. Any other driver cannot be seen, such as one in another container or on a machine of the same name:
its file is watched, and the lock is taken over if the file does not change for a while; clocks are not compared.

A driver that was taken for dead must not go on writing. It asks for the lock just before each file that it publishes
(`Lock.fenced`), and stops if another driver has it.
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

from volgrowth.errors import DamagedError, OutputError
from volgrowth.guard import tell_guard
from volgrowth.plain import print_plain
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
    try:
        lock.acquire()  # a signal may come when the file is there, and before this returns
        yield lock
    finally:
        lock.release()


def give_up_lock(output: str, identity: str) -> None:
    """Remove the lock of a driver whose process has ended, unless another driver has it or the output is away."""
    with suppress(OutputError):
        store = Store(output)
        if store.exists(LOCK) and store.read_json(LOCK).get("id") == identity:
            store.delete(LOCK)


class Lock:
    """The lock file, and the thread that rewrites it."""

    def __init__(self, store: Store):
        self.store = store
        self.mine = {"id": uuid.uuid4().hex, "host": platform.node(), **_seen_by(), **_process(os.getpid())}
        self._beat, self._lost = 0, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="volgrowth-lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock, or take over that of a dead driver.

        Raises:
            OutputError: another driver is at work.
        """
        tell_guard(locks={self.mine["id"]: self.store.url})
        if not self.store.create(LOCK, self._content()):
            there = self._read()
            if there is not None and self._alive(there):
                raise OutputError(
                    f"output {self.store.url} is being written by another volgrowth ({_named(there)}): wait for it, "
                    f"end it, or choose another output"
                )
            self.store.write(LOCK, self._content())
        self._thread.start()

    def check(self) -> None:
        """Check that no other driver took over, as far as the last heartbeat knows.

        Raises:
            OutputError: another driver took over because it thought this one dead.
        """
        if self._lost:
            raise OutputError(
                f"output {self.store.url} was taken over by another volgrowth while this one was not answering: "
                f"nothing is lost, the other one goes on"
            )

    def confirm(self) -> None:
        """Check that this driver has the lock now, by reading it.

        Raises:
            OutputError: another driver took over because it thought this one dead.
        """
        if not self._lost and not self._is_mine(self._read()):
            self._lost = True
        self.check()

    def fenced(self) -> Store:
        """Return the output as a store that publishes a file only while this driver has the lock."""
        return self.store.fenced(self.confirm)

    def release(self) -> None:
        """Give up the lock, unless another driver has it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(OutputError):
            if self._is_mine(self._read()):
                self.store.delete(LOCK)
        tell_guard(locks={self.mine["id"]: None})

    def _keep(self) -> None:
        while not self._lost and not self._stop.wait(BEAT_SECONDS):
            with suppress(OutputError):  # a store that is away for a moment; shards have their own attempts
                self._beat += 1
                self.fenced().write(LOCK, self._content())

    def _is_mine(self, there: dict[str, Any] | None) -> bool:
        return there is not None and there.get("id") == self.mine["id"]

    def _content(self) -> bytes:
        return json.dumps({**self.mine, "beat": self._beat}).encode()

    def _read(self) -> dict[str, Any] | None:
        """Return what the lock file says; nothing in it if it is damaged, None if there is none."""
        if not self.store.exists(LOCK):
            return None
        try:
            return self.store.read_json(LOCK)
        except DamagedError:
            return {}

    def _alive(self, there: dict[str, Any]) -> bool:
        here = _seen_by()
        if all(here.values()) and here.items() <= there.items() and {"pid", "born"} <= there.keys():
            born = _process(there["pid"])["born"]
            return born is not None and born == there["born"]
        print_plain(
            f"watching for {WATCH_SECONDS:g} seconds if another volgrowth ({_named(there)}), whose process cannot be "
            f"seen from here, still writes to {self.store.url}",
            error=True,
        )
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1)
            now = self._read()
            if now != there:
                return now is not None
        return False


def _named(there: dict[str, Any]) -> str:
    if "pid" not in there:
        return f"its {LOCK} cannot be read"
    return f"process {there['pid']} on {there.get('host', 'a machine without a name')}"


def _seen_by() -> dict[str, str | None]:
    """Return what two processes have in common if each can see whether the other one lives; None on other systems."""
    boot = namespace = None
    with suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"boot": boot, "namespace": namespace}


def _process(pid: int) -> dict[str, Any]:
    """Return a process and when it started, in the kernel's ticks; None if it is gone or waits for its parent alone."""
    born = None
    with suppress(OSError, IndexError):
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
        born = None if state in "ZX" else fields[18]
    return {"pid": pid, "born": born}
