import os
from pathlib import Path

import pytest

from volgrowth.storage.whole import create_whole, publish_whole, write_whole


def test_a_folder_appears_with_all_of_its_files(tmp_path: Path) -> None:
    with publish_whole(tmp_path / "deep" / "folder") as part:
        part.mkdir()
        (part / "a").write_bytes(b"1")
        assert os.listdir(tmp_path / "deep") == [part.name]
        assert part.name.startswith(".")
    assert os.listdir(tmp_path / "deep") == ["folder"]
    assert (tmp_path / "deep" / "folder" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("folder", [False, True])
def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path, folder: bool) -> None:
    (tmp_path / "name").write_bytes(b"before")

    def write(part: Path) -> None:
        if folder:
            part.mkdir()
        (part / "a" if folder else part).write_bytes(b"half")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), publish_whole(tmp_path / "name") as part:
        write(part)
    assert os.listdir(tmp_path) == ["name"]
    assert (tmp_path / "name").read_bytes() == b"before"


def test_a_folder_with_files_is_not_replaced(tmp_path: Path) -> None:
    write_whole(tmp_path / "folder" / "a", b"before")
    with pytest.raises(OSError, match="not empty"), publish_whole(tmp_path / "folder") as part:
        part.mkdir()
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["a"]


def test_a_file_is_replaced_by_one_call_and_kept_by_the_other(tmp_path: Path) -> None:
    assert create_whole(tmp_path / "file", b"first")
    assert not create_whole(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    write_whole(tmp_path / "file", b"third")
    assert (tmp_path / "file").read_bytes() == b"third"
    assert os.listdir(tmp_path) == ["file"]
