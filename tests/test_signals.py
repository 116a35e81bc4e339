"""Signals that end a command: a small program for what the handlers promise, and real commands without Ray.

Commands on Ray that get signals are in tests/audit/engine/test_endings.py.
"""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmark.faults.held_model import hold_workers
from tests.conftest import VOLGROWTH, start_volgrowth, wait_for
from tests.support.held_model import caught, fragments, held_audit
from volgrowth import signals
from volgrowth.signals import EndingSignals

# a call that returns after hours, with no chance for Python's handlers to run
PROGRAM = """
import hashlib, os, signal, subprocess, sys, threading, time
from volgrowth.signals import EndingSignals, heed_no_signal_while_forking, uninterrupted
ending = EndingSignals()
forked = []
try:
    print("ready", signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, flush=True)
    if sys.argv[1] == "stuck":
        threading.Timer(0.5, print, ("stuck",), {"flush": True}).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    if sys.argv[1] == "elsewhere":
        threading.Timer(0.2, signal.raise_signal, (signal.SIGTERM,)).start()
    if sys.argv[1] == "held":
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.5)
            print("whole", flush=True)
        print("passed over", flush=True)
    if "forks" in sys.argv[1]:
        comes = lambda: signal.raise_signal(signal.SIGTERM)
        rests = lambda: time.sleep(1.5)
        os.register_at_fork(before=comes, after_in_parent=comes if sys.argv[1] == "forks" else rests)
        os.register_at_fork(after_in_parent=lambda: forked.append("forked"))
        with heed_no_signal_while_forking():
            subprocess.run(["true"], preexec_fn=os.getpid, check=True)
            time.sleep(600)
    time.sleep(600)
except KeyboardInterrupt:
    print(*forked, "closing", flush=True)
    if sys.argv[1] == "slow":
        time.sleep(600)
    ending.exit_with(7)
    print("over", flush=True)
    if sys.argv[1] == "over":
        time.sleep(600)
    sys.exit(130)
"""


def start(kind: str, before: Callable[[], Any] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, kind]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_signal_within_what_must_not_be_interrupted_counts_at_its_end() -> None:
    process = start("held")
    said = process.communicate()[0].splitlines()
    assert said == ["ready False", "whole", "closing", "over"]
    assert process.returncode == 130


@pytest.mark.parametrize("kind", ["forks", "forks slowly"])
def test_a_signal_while_a_process_forks_counts_when_that_is_over(kind: str) -> None:
    """And once: on a busy machine a fork may take seconds."""
    process = start(kind)
    said, errors = process.communicate()
    assert (said.splitlines(), errors) == (["ready False", "forked closing", "over"], "")
    assert process.returncode == 130


FORKS = """
import os, signal, subprocess, sys, time
from volgrowth.signals import heed_no_signal_while_forking

class Came(Exception):
    pass

def come(number, frame):
    raise Came

signal.signal(signal.SIGTERM, come)
os.register_at_fork(before=lambda: None, after_in_parent=lambda: None)

def forked(nth):
    # a signal at the nth step of Python code between the first hook before the fork and the last one after it
    steps = 0

    def trace(frame, event, argument):
        nonlocal steps
        if frame.f_code.co_name not in ("<lambda>", "_wrap_handlers", "signal"):
            return None
        frame.f_trace_opcodes = True
        steps += 1
        if steps == nth:
            signal.raise_signal(signal.SIGTERM)
        return trace

    sys.settrace(trace)
    try:
        subprocess.run(["true"], preexec_fn=os.getpid, check=True)
        sys.settrace(None)
        if nth <= steps:
            time.sleep(5)
    except Came:
        sys.settrace(None)
        return True
    return False

nth = 1
with heed_no_signal_while_forking():
    while forked(nth):
        nth += 1
assert signal.getsignal(signal.SIGTERM) is come
print(nth, flush=True)
"""

# a fork beside another one: in another thread while the hooks of this one run, or by the child of one with a signal
OTHERS = """
import os, signal, sys, threading, time
from volgrowth.signals import heed_no_signal_while_forking

heeded = []
signal.signal(signal.SIGTERM, lambda number, frame: heeded.append(number))

def other():
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)

def meanwhile():
    if threading.current_thread() is threading.main_thread() and not heeded:
        (thread := threading.Thread(target=other)).start()
        thread.join()
        signal.raise_signal(signal.SIGTERM)
        print("in its hooks", heeded, flush=True)

def ends(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

comes = lambda: signal.raise_signal(signal.SIGTERM)
os.register_at_fork(**({"after_in_parent": meanwhile} if sys.argv[1] == "threads" else {"before": comes}))
with heed_no_signal_while_forking():
    if (child := os.fork()) == 0:
        if sys.argv[1] == "threads":
            os._exit(0)
        heeded.clear()
        if (grandchild := os.fork()) == 0:
            os._exit(0)
        ends(grandchild)
        time.sleep(0.5)
        os._exit(10 + len(heeded))
    print(ends(child), flush=True)
    time.sleep(0.5)
print(len(heeded), flush=True)
"""


@pytest.mark.parametrize(("kind", "expected"), [("threads", ["in its hooks []", "0", "1"]), ("children", ["11", "1"])])
def test_forks_of_other_threads_and_of_a_child_are_told_apart(kind: str, expected: list[str]) -> None:
    command = [sys.executable, "-c", OTHERS, kind]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.stdout.splitlines(), finished.stderr) == (expected, "")


def test_no_step_of_what_python_calls_around_a_fork_is_interrupted() -> None:
    finished = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert int(finished.stdout) > 20


def signal_until_it_ends(process: subprocess.Popen[str], number: int) -> None:
    while process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(0.4)
        except subprocess.TimeoutExpired:
            continue


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_a_program_close_what_is_open(number):
    process = start("quick")
    assert line(process) == "ready False"
    process.send_signal(number)
    assert process.communicate()[0].split() == ["closing", "over"]
    assert process.returncode == 130


@pytest.mark.parametrize(("kind", "said"), [("stuck", "stuck"), ("slow", "closing")])
def test_a_second_signal_ends_a_program_that_does_not_come_to_an_end(kind, said):
    process = start(kind)
    line(process)
    if kind == "slow":
        process.terminate()
    assert line(process) == said
    signal_until_it_ends(process, signal.SIGTERM)
    assert process.communicate()[0] == ""
    assert process.returncode == 130


def test_a_signal_that_does_not_wake_the_main_thread_is_sent_again():
    """Another thread gets it: to the main thread it is as one that came in the moment before it began to wait."""
    process = start("elsewhere")
    assert line(process) == "ready False"
    assert process.communicate()[0].split() == ["closing", "over"]
    assert process.returncode == 130


def test_two_signals_of_one_moment_are_one():
    process = start("quick")
    line(process)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    assert process.communicate()[0].split() == ["closing", "over"]
    assert process.returncode == 130


def test_a_signal_after_the_work_changes_no_exit_code():
    process = start("over")
    line(process)
    process.send_signal(signal.SIGTERM)
    assert (line(process), line(process)) == ("closing", "over")
    signal_until_it_ends(process, signal.SIGTERM)
    assert process.returncode == 7


def test_what_nohup_ignores_stays_ignored():
    process = start("quick", lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert line(process) == "ready True"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0].split() == ["closing", "over"]


@pytest.fixture
def typed(tmp_path: Path, digit_file: Path) -> list[Any]:
    """Arguments of an audit in 25 shards without Ray, in a folder with its model."""
    return held_audit(tmp_path, digit_file, "--engine", "local")


def test_sigterm_ends_an_audit_in_good_order(typed, tmp_path):
    with caught(typed, tmp_path) as process:
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1].endswith("the same command resumes")
    assert "Traceback" not in errors
    assert not (tmp_path / "out/.driver.json").exists()
    assert fragments(tmp_path) == 2


def own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_closes_ends_an_audit_in_good_order_unless_it_shall_go_on(typed, tmp_path, nohup):
    def begin() -> None:
        own_terminal()
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    ours, theirs = os.openpty()
    with hold_workers(tmp_path, tmp_path / "out", 2):
        process = subprocess.Popen(
            [VOLGROWTH, *map(str, typed)], cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=begin,
        )  # fmt: skip
        os.close(theirs)
        while fragments(tmp_path) < 2:
            assert process.poll() is None
            os.set_blocking(ours, False)
            with suppress(BlockingIOError):
                os.read(ours, 65536)
            time.sleep(0.02)
        os.close(ours)
        if not nohup:
            process.wait()
    if nohup:
        wait_for(lambda: fragments(tmp_path) >= 10 or process.poll() is not None)
        process.terminate()
    assert process.wait() == 130
    assert not (tmp_path / "out/.driver.json").exists()
    assert (fragments(tmp_path) > 2) == nohup


def test_other_commands_say_that_they_were_interrupted(typed, tmp_path):
    with hold_workers(tmp_path, tmp_path / "out/.plan", 0):
        process = start_volgrowth(["plan", *typed[1:]], tmp_path)
        wait_for(lambda: (tmp_path / "out/.plan/.driver.json").exists(), process)
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "interrupted: nothing was predicted" in errors
    assert not (tmp_path / "out/.plan/.driver.json").exists()


def test_a_signal_while_the_interpreter_closes_ends_in_no_traceback(monkeypatch):
    """From Python 3.12 on no thread can be started then."""

    class NoThread:
        def __init__(self, **options: object):
            pass

        def start(self) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

    watching = EndingSignals.__new__(EndingSignals)
    watching._heeded, watching._interrupted = [signal.SIGTERM], False
    monkeypatch.setattr(signals, "_arrived", threading.Event())
    monkeypatch.setattr(threading, "Thread", NoThread)
    reader, writer = os.pipe()
    os.write(writer, bytes([signal.SIGTERM]))
    os.close(writer)
    watching._watch(reader)
    os.close(reader)
