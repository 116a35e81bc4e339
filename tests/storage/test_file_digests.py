"""Digests of large files are computed once a machine, and anew whenever a file may have changed."""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from volgrowth.storage import file_digests
from volgrowth.storage.file_digests import file_digest


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count every file as large and long unchanged; the list gets the name of each file that is read."""
    names: list[str] = []
    compute: Callable[..., Any] = hashlib.file_digest

    def watched(file: Any, kind: str) -> Any:
        names.append(Path(file.name).name)
        return compute(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    monkeypatch.setattr(file_digests, "SMALL_BYTES", 0)
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    return path


def notes(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/volgrowth/digests").iterdir())


def test_a_file_is_read_once(weights: Path, read: list[str]) -> None:
    """Also by workers that ask at the same time, and by another name."""
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(file_digest(weights))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    link = weights.with_name("link")
    link.symlink_to(weights)
    assert [*found, file_digest(link)] == [sha(b"first")] * 5
    assert read == ["weights"]


def test_a_file_that_changed_is_read_again(weights: Path, read: list[str]) -> None:
    """Even if it has the size and the time of change that it had."""
    before = weights.stat()
    assert file_digest(weights) == sha(b"first")
    weights.write_bytes(b"other")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_digest(weights) == sha(b"other")
    weights.with_name("new").write_bytes(b"third")
    os.replace(weights.with_name("new"), weights)
    assert file_digest(weights) == sha(b"third")
    assert len(read) == 3


def test_a_file_that_may_still_change_is_not_noted(
    weights: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", 60.0)
    assert [file_digest(weights) for _ in range(2)] == [sha(b"first")] * 2
    assert len(read) == 2


def old(note: Path) -> None:
    os.utime(note, (1, 1))


def cut_off(note: Path) -> None:
    note.write_bytes(note.read_bytes()[:31])


def open_to_others(note: Path) -> None:
    note.write_bytes(sha(b"forged"))
    note.chmod(0o666)


def a_link(note: Path) -> None:
    note.with_name("elsewhere").write_bytes(sha(b"forged"))
    note.unlink()
    note.symlink_to("elsewhere")


@pytest.mark.parametrize("change", [old, cut_off, open_to_others, a_link])
def test_a_note_that_does_not_count(
    weights: Path, read: list[str], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    file_digest(weights)
    (note,) = notes(tmp_path)
    change(note)
    assert file_digest(weights) == sha(b"first")
    assert len(read) == 2


def test_no_notes_can_be_kept(weights: Path, read: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    assert [file_digest(weights) for _ in range(2)] == [sha(b"first")] * 2
    assert len(read) == 2
