"""Signals that end a command in good order: Ctrl-C, SIGTERM and SIGHUP.

SIGTERM comes from Kubernetes, systemd and spot machines that are taken away, SIGHUP from a terminal that closes. The
first signal raises `KeyboardInterrupt`, so that whatever is open is closed and the lock of an output is given up. A
later one ends the process at once, also while a library's call does not return and Python's handlers cannot run.
"""

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from types import FrameType
from typing import Any, ClassVar, NoReturn

from volgrowth.guard import ENDING, INTERRUPTED, leave_at_once

# a terminal that closes and the shell in it each send a signal: within so many seconds they count as one
TOGETHER = 1.0
_arrived = threading.Event()
_held, _late = threading.Event(), threading.Event()
# signals that this process sends itself again: they are the ones that came before
_again = list[int]()


class EndingSignals:
    """The signals that end this process, from when this object is made. It must be made in the main thread.

    A signal that is ignored from the start, as `nohup` does with SIGHUP, stays ignored.
    """

    def __init__(self) -> None:
        self._heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        self._interrupted = False
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="volgrowth-signals", daemon=True).start()
        atexit.register(self._ignore)  # what is registered first is called last
        for number in self._heeded:
            signal.signal(number, self._interrupt)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # those that came since the guard began arrive now

    def exit_with(self, code: int) -> None:
        """Have each signal end this process with `code`: its work is done, and only the interpreter is to be closed."""

        def leave(number: int, frame: FrameType | None) -> NoReturn:
            os._exit(code)

        for number in self._heeded:
            signal.signal(number, leave)

    def _ignore(self) -> None:
        """Ignore the signals, since the interpreter gives up its handlers before the process has its exit code."""
        for number in self._heeded:
            signal.signal(number, signal.SIG_IGN)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._interrupted:
            self._interrupted = True
            if _held.is_set():
                _late.set()
            else:
                raise KeyboardInterrupt

    def _watch(self, reader: int) -> None:
        """End the process at the second signal. The interpreter writes each one to the pipe as soon as it arrives."""
        first = None
        while number := os.read(reader, 1):
            if number[0] in _again:
                _again.remove(number[0])
            elif number[0] in self._heeded:
                _arrived.set()
                if first is None:
                    first = time.monotonic()
                    with suppress(RuntimeError):  # since Python 3.12 none starts while the interpreter closes
                        threading.Thread(target=self._send_again, args=(number[0],), daemon=True).start()
                if time.monotonic() - first > TOGETHER:
                    leave_at_once(INTERRUPTED)

    def _send_again(self, number: int) -> None:
        """Send the main thread a signal again that came while it began to wait, so that it waits on, unaware of it.

        Not where a library has another handler for the signal: that may have heeded it.
        """
        handler = signal.getsignal(number)
        ours = getattr(handler, "own", handler) == self._interrupt
        time.sleep(TOGETHER / 4)
        if ours and not self._interrupted and hasattr(signal, "pthread_kill"):
            _send_to_main_thread(number)


def _send_to_main_thread(number: int) -> None:
    _again.append(number)
    signal.pthread_kill(threading.main_thread().ident or 0, number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have a signal that comes within the block raise `KeyboardInterrupt` at its end.

    For the import of a library whose C++ code aborts the process if Python raises an exception in the midst of it.
    """
    _held.set()
    try:
        yield
    finally:
        _held.clear()
    if _late.is_set():
        _late.clear()
        raise KeyboardInterrupt


class _Between:
    """A handler of signals that works between forks: one that comes while this process forks is sent again afterwards.

    Attributes:
        active: whether handlers are to be such ones.
        forks: an item for each fork of this process, in whichever thread, that goes on.
        waiting: whether a signal is to be sent again; others count with it.
    """

    active = waiting = False
    forks: ClassVar[list[None]] = []

    def __init__(self, own: Callable[[int, FrameType | None], Any]) -> None:
        self.own = own

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.forks:
            self.own(number, frame)
        elif not _Between.waiting:
            _Between.waiting = True
            try:
                threading.Thread(target=self._send_again, args=(number,), daemon=True).start()
            except RuntimeError:  # since Python 3.12 none starts while the interpreter closes
                _Between.waiting = False

    def _send_again(self, number: int) -> None:
        while self.forks:
            time.sleep(0.01)
        _Between.waiting = False
        _send_to_main_thread(number)


@contextmanager
def heed_no_signal_while_forking() -> Iterator[None]:
    """Have a signal that comes while the main thread forks within the block count afterwards, whoever's handler it has.

    What libraries have Python call before and after a fork, such as taking and giving back the locks of `logging`, may
    not raise an exception: Python prints its traceback and goes on, and a lock stays taken. Covered is what was
    registered until the first call. The handlers are put back at the end.
    """
    _note_forks()
    try:
        _Between.active = True
        _wrap_handlers()
        yield
    finally:
        _Between.active = False
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if isinstance(between := signal.getsignal(number), _Between):
                    signal.signal(number, between.own)


@cache
def _note_forks() -> None:
    """Have each fork noted while it goes on, by C code: in a hook of Python's, in its first and last moment, a signal
    would be heeded.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_wrap_handlers)  # those that libraries have set since
        forks = _Between.forks
        os.register_at_fork(
            before=partial(forks.append, None),
            after_in_parent=partial(forks.__delitem__, slice(1)),
            after_in_child=forks.clear,
        )
        os.register_at_fork(after_in_child=partial(setattr, _Between, "waiting", False))  # its thread is not there


def _wrap_handlers() -> None:
    if _Between.active and threading.current_thread() is threading.main_thread():
        for number in ENDING:
            own = signal.getsignal(number)
            if callable(own) and not isinstance(own, _Between):
                signal.signal(number, _Between(own))


def check_interrupted() -> None:
    """Raise `KeyboardInterrupt` if a signal has come: a library in whose code it was raised may have passed over it."""
    if _arrived.is_set():
        raise KeyboardInterrupt
