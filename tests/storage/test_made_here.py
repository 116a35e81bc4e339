"""What this account made is known again by it alone."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from volgrowth.storage import made_here as module
from volgrowth.storage.made_here import made_here, remember_made

CONTENT = {"name": "caf\udce9", "size": (1, 2), "nested": {"b": 1, "a": None}}


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A new account: nothing is remembered yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(module, "_remembered", set())
    return tmp_path / "state/volgrowth/made-here"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process."""
    monkeypatch.setattr(module, "_remembered", set())


def test_another_process_knows_it_again_and_only_it(state, monkeypatch):
    assert not made_here(CONTENT)
    remember_made(CONTENT)
    remember_made(CONTENT)
    forget(monkeypatch)
    assert made_here({"size": [1, 2], **CONTENT})
    assert not made_here({**CONTENT, "size": [1, 3]})
    assert len(state.read_text().splitlines()) == 1
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_to_says_nothing(state, monkeypatch, mode):
    remember_made(CONTENT)
    forget(monkeypatch)
    state.chmod(mode)
    assert not made_here(CONTENT)
    state.chmod(0o644)
    assert made_here(CONTENT)


def test_a_link_and_a_pipe_are_not_opened(state, monkeypatch, tmp_path):
    remember_made(CONTENT)
    forget(monkeypatch)
    state.rename(tmp_path / "elsewhere")
    state.symlink_to(tmp_path / "elsewhere")
    assert not made_here(CONTENT)
    state.unlink()
    os.mkfifo(state)
    assert not made_here(CONTENT)
    remember_made(CONTENT)
    assert made_here(CONTENT)  # this process still knows


def test_a_state_folder_that_cannot_be_written_is_no_error(state, monkeypatch, tmp_path):
    (tmp_path / "state").write_text("a file")
    remember_made(CONTENT)
    assert made_here(CONTENT)
    forget(monkeypatch)
    assert not made_here(CONTENT)


def test_without_the_variable_it_lies_in_the_home_folder(tmp_path):
    code = "from volgrowth.storage.made_here import remember_made; remember_made({})"
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": "relative"}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True)
    assert [path.name for path in Path(tmp_path).rglob("made-here")] == ["made-here"]
    assert (tmp_path / ".local/state/volgrowth/made-here").is_file()
