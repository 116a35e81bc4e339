"""The guard of a command: whatever ends the command's process, there is a sentence and an exit code of ours."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmark.processes import command_of
from tests.conftest import wait_for
from volgrowth.audit.output.lock import LOCK

# a command that holds the lock of an output when it ends as the argument says
PROGRAM = """
import os, signal, sys, time
from volgrowth.guard import continue_guarded, leave_at_once, tell_guard
def give_up(*lock):
    from volgrowth.audit.output.lock import give_up_lock
    give_up_lock(*lock)
continue_guarded(give_up)
from volgrowth.audit.output.lock import Lock
from volgrowth.signals import EndingSignals
from volgrowth.storage.store import Store
ending = EndingSignals()
lock = Lock(Store("out"))
lock.acquire()
tell_guard(kept="all is kept; the same command resumes", ray="ray" in sys.argv)
print("ready", flush=True)
exec(sys.argv[1])
"""
RESUMES = "all is kept; the same command resumes"


def start(ending: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, ending, *more], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ending", "more", "code", "said"),
    [
        ("os._exit(1)", ["ray"], 2, f"Ray ended the process of this command (exit code 1), as it does when the head of "
         f"its cluster, or the node that the command is connected to, is gone: {RESUMES} on a cluster that answers"),
        ("os.abort()", ["ray"], 2, "Ray ended the process of this command (Aborted), as "),
        ("os._exit(0)", [], 2, f"a library ended the process of this command (exit code 0): {RESUMES}"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", [], 2, "this command (Segmentation fault): "),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["ray"], 2, "was killed, as the kernel does when memory runs out"),
        ("signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)", ["ray"], 130, f"interrupted: {RESUMES}"),
        ("signal.signal(15, signal.SIG_DFL); os.kill(os.getppid(), 15); time.sleep(600)", [], 130, "interrupted: "),
    ],
)  # fmt: skip
def test_a_process_that_is_ended_is_a_sentence_and_the_lock_is_given_up(ending, more, code, said, tmp_path):
    process = start(ending, tmp_path, *more)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert said in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "out" / LOCK).exists()


@pytest.mark.parametrize(
    "ending", ["lock.release(); tell_guard(code=3); os.abort()", "lock.release(); leave_at_once(3)"]
)
def test_the_exit_code_that_a_command_told_is_the_one(ending, tmp_path):
    process = start(ending, tmp_path)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (3, "")


def test_the_lock_of_another_driver_stays(tmp_path):
    process = start("open('out/.driver.json', 'w').write('{}'); os._exit(1)", tmp_path)
    process.communicate()
    assert process.returncode == 2
    assert (tmp_path / "out" / LOCK).exists()


def test_what_is_killed_with_its_guard_is_gone(tmp_path):
    process = start("time.sleep(600)", tmp_path)
    assert process.stdout
    process.stdout.readline()
    command = command_of(process.pid)
    assert command != process.pid
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: not Path(f"/proc/{command}").exists())


def test_signals_reach_the_command_and_it_ends_in_good_order(tmp_path):
    waiting = "\ntry: print('in try', flush=True); time.sleep(600)"
    process = start(waiting + "\nexcept KeyboardInterrupt: lock.release(); leave_at_once(130)", tmp_path)
    assert process.stdout
    assert [process.stdout.readline().strip() for _ in range(2)] == ["ready", "in try"]
    os.kill(process.pid, signal.SIGHUP)
    assert process.communicate()[1] == ""
    assert process.returncode == 130
    assert not (tmp_path / "out" / LOCK).exists()
