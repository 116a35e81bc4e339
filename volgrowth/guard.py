"""The guard of a command: a parent process that sees to it that the command ends with a sentence and a known exit code.

A library may end the process that it runs in. Ray does, with exit code 1, when the head of its cluster or the process
that connects it to its node is gone, and it does so in C++, where no Python code can prevent it; the kernel does when
memory runs out. So a command runs in a child process. Its parent, the guard, loads nothing and does nothing but wait
and pass signals on. The child tells it by a pipe the exit code that it ends with. If the child ends without having told
one, the guard says what happened, gives up the lock that the child held, and chooses the exit code.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from volgrowth.plain import plain, print_plain

INTERRUPTED = 130
"""The exit code of a command that a signal ended."""
STOPPED = 2
"""The exit code of a command that had to stop."""
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that end a command in good order; Windows has no SIGHUP."""
KEPT = "no file is left half-written; the same command may be given again"
CLOSING_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
# the process that has a guard, and its end of the pipe
_guarded: tuple[int, int] | None = None


def continue_guarded(give_up_lock: Callable[[str, str], object]) -> None:
    """Return in a child process, with the signals of `ENDING` blocked; the parent is its guard and never returns.

    Where the guard is killed (SIGKILL), Linux kills the child with it.

    Args:
        give_up_lock: called in the guard with the output and the id of the lock that a child left behind.
    """
    global _guarded
    if not hasattr(os, "fork"):
        return
    reader, writer = os.pipe()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it gets no exit code of a child
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGCHLD})
    guard = os.getpid()
    child = os.fork()
    if child:
        os.close(writer)
        _guard(child, reader, give_up_lock)
    os.close(reader)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    _guarded = os.getpid(), writer
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(STOPPED)


def tell_guard(**notes: Any) -> None:
    """Tell the guard of this process, if it has one, what to say or do if the process ends at any moment.

    Args:
        code: exit code of the command, told when its work is done.
        kept: what is kept if the command ends now, as the end of a sentence.
        ray: whether Ray runs in this process.
        locks: output of each lock that this process holds, by the lock's id; None for one that it gave up.
    """
    if _guarded and _guarded[0] == os.getpid():  # not in a process that was forked from the guarded one
        os.write(_guarded[1], json.dumps(notes).encode() + b"\n")


def leave_at_once(code: int) -> NoReturn:
    """End this process without closing anything but the progress bar."""
    tell_guard(code=code)
    _show_cursor()
    os._exit(code)


def close_in_time(close: Callable[[], object]) -> None:
    """Call `close` and wait for it, but only for seconds: an output may be as far away as a lost cluster."""
    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(CLOSING_SECONDS)


def _guard(child: int, reader: int, give_up_lock: Callable[[str, str], object]) -> NoReturn:
    """Wait for a child, pass signals on to it, and exit as it did or should have."""
    interrupted, ended, status = False, 0, 0
    while not ended:
        number = signal.sigwait({*ENDING, signal.SIGCHLD})
        if number in ENDING:
            interrupted = True
            os.kill(child, number)
        ended, status = os.waitpid(child, os.WNOHANG)
    notes = _read_notes(reader)
    if "code" in notes:
        code = notes["code"]
    else:
        code = INTERRUPTED if interrupted or _ended_by(status) in ENDING else STOPPED
        _show_cursor()
        print_plain(_sentence(notes, status, code), error=True)
    for identity, output in notes["locks"].items():
        if output is not None:
            close_in_time(partial(give_up_lock, output, identity))
    os._exit(code)


def _read_notes(reader: int) -> dict[str, Any]:
    """Return all that the child told last, of each lock what it told last of that.

    A process that the child left behind may hold the pipe open.
    """
    os.set_blocking(reader, False)
    told = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(reader, 1 << 16):
            told += more
    notes, locks = dict[str, Any](), dict[str, str | None]()
    for line in told.splitlines():
        note = json.loads(line)
        locks |= note.get("locks", {})
        notes |= note
    return {**notes, "locks": locks}


def _show_cursor() -> None:
    """Have a terminal show its cursor, which a progress bar hides."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\x1b[?25h\n")


def _ended_by(status: int) -> int | None:
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def _sentence(notes: dict[str, Any], status: int, code: int) -> str:
    """Return what is said of a child that ended without telling its exit code."""
    kept, number = plain(notes.get("kept", KEPT)), _ended_by(status)
    if code == INTERRUPTED:
        return f"interrupted: {kept}"
    how = f"exit code {os.waitstatus_to_exitcode(status)}" if number is None else signal.strsignal(number)
    if number == signal.SIGKILL:
        return f"volgrowth: the process of this command was killed, as the kernel does when memory runs out: {kept}"
    if notes.get("ray"):
        return (
            f"volgrowth: Ray ended the process of this command ({how}), as it does when the head of its cluster, or "
            f"the node that the command is connected to, is gone: {kept} on a cluster that answers"
        )
    return f"volgrowth: a library ended the process of this command ({how}): {kept}"
