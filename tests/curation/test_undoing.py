"""`curate --undo` removes the files that it wrote, and nothing if anything else is there."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.curation.test_applying import edited
from volgrowth.audit.output.result import Audit
from volgrowth.cli import run_command
from volgrowth.curation import apply_list, undo_list
from volgrowth.curation.undoing import RECEIPT
from volgrowth.errors import OutputError
from volgrowth.storage import made_here


@pytest.fixture
def new(parquet: Audit, tmp_path: Path) -> Path:
    """A curated data set with a folder in it."""
    apply_list(parquet, edited(parquet, [3]), str(tmp_path / "new"))
    return tmp_path / "new"


def everything(folder: Path) -> list[str]:
    return sorted(os.path.join(path, name) for path, *names in os.walk(folder) for some in names for name in some)


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # paths of sockets have to be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


ADDED: dict[str, Callable[[Path], object]] = {
    "a folder": lambda new: (new / "strange").mkdir(),
    "a folder below": lambda new: (new / "more/strange").mkdir(),
    "a link to a folder": lambda new: (new / "strange").symlink_to(new.parent / "mine"),
    "a link to a file": lambda new: (new / "strange").symlink_to(new.parent / "mine/photo.png"),
    "a link to nothing": lambda new: (new / "strange").symlink_to("gone"),
    "a pipe": lambda new: os.mkfifo(new / "strange"),
    "a socket": lambda new: listening(new / "strange"),
    "a hidden file": lambda new: (new / ".strange").write_text("mine"),
}


@pytest.mark.parametrize("what", ADDED)
def test_nothing_is_removed_if_anything_else_lies_there(new, tmp_path, what):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.png").write_text("mine")
    ADDED[what](new)
    before = everything(tmp_path)
    with pytest.raises(OutputError, match=r"strange' is not of its writing: nothing was removed"):
        undo_list(str(new))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("instead", ["link", "pipe", "folder"])
@pytest.mark.parametrize("name", ["a.parquet", "more", RECEIPT])
def test_nothing_is_removed_if_a_file_became_something_else(new, tmp_path, name, instead):
    (new / name).rename(tmp_path / "was")
    if instead == "link":
        (new / name).symlink_to(tmp_path / "was")
    elif instead == "pipe":
        os.mkfifo(new / name)
    else:
        (new / name).mkdir()
    before = everything(tmp_path)
    with pytest.raises(OutputError, match="nothing was removed"):
        undo_list(str(new))
    assert everything(tmp_path) == before


def forged(folder: Path, files: dict[str, list]) -> None:
    receipt = {"audit": "x", "data": "d", "kind": "parquet", "rows": 1, "actions": {}, "files": files}
    (folder / RECEIPT).write_text(json.dumps(receipt))


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("name", ["../mine.txt", "{folder}/mine.txt", "a/../../mine.txt", ".", "", "link/mine.txt"])
def test_a_forged_receipt_removes_nothing_outside(tmp_path, name, trusted):
    """The sum of mine.txt is the right one, and the link leads to it."""
    (tmp_path / "mine.txt").write_text("")
    (tmp_path / "forged").mkdir()
    (tmp_path / "forged/link").symlink_to(tmp_path)
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    forged(tmp_path / "forged", {name.format(folder=tmp_path): [0, nothing]})
    before = everything(tmp_path)
    with pytest.raises(OutputError, match="nothing was removed"):
        undo_list(str(tmp_path / "forged"), trust_output=trusted)
    assert everything(tmp_path) == before


def test_a_forged_receipt_of_empty_folders_and_links_removes_nothing(tmp_path):
    (tmp_path / "mine/albums").mkdir(parents=True)
    (tmp_path / "mine/link").symlink_to(tmp_path)
    forged(tmp_path / "mine", {})
    for trusted in (False, True):
        with pytest.raises(OutputError, match="nothing was removed"):
            undo_list(str(tmp_path / "mine"), trust_output=trusted)
    assert (tmp_path / "mine/albums").is_dir()


@pytest.mark.parametrize(
    "content", ["[]", '{"files": 5}', '{"files": {"a": 1}}', '{"files": {"a": ["x", "y"]}}', "[" * 100_000]
)
def test_a_receipt_of_another_shape_is_a_sentence(tmp_path, content):
    (tmp_path / RECEIPT).write_text(content)
    with pytest.raises(OutputError, match="nothing was removed"):
        undo_list(str(tmp_path))


def test_a_link_to_the_folder_is_not_taken_for_it(new, tmp_path):
    (tmp_path / "link").symlink_to(new)
    with pytest.raises(OutputError, match=r"link is a link to .*: name the folder itself; nothing was removed"):
        undo_list(str(tmp_path / "link"))
    (tmp_path / "above").symlink_to(tmp_path)
    undo_list(str(tmp_path / "above/new"))  # a folder above may be one
    assert not new.exists()


def test_what_another_account_wrote_has_to_be_trusted(new, monkeypatch, tmp_path, tmp_path_factory, capsys):
    before = everything(tmp_path)
    monkeypatch.setattr(made_here, "_remembered", set())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("another")))
    assert run_command(["curate", "--undo", str(new)]) == 2
    said = capsys.readouterr().err
    assert "may be forged: nothing was removed; add --trust-output" in said
    assert everything(tmp_path) == before
    assert run_command(["curate", "--undo", str(new), "--trust-output"]) == 0
    assert not new.exists()
