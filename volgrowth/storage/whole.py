"""A file or a folder on a local disk appears under its name whole or not at all.

It is written under a hidden name beside its own, and renamed when all of it is there. An object store needs none of
this: one upload becomes visible when all of it has arrived.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO


def _nothing() -> None:
    """Do nothing before a rename."""


@contextmanager
def publish_whole(path: Path, guard: Callable[[], None] = _nothing) -> Iterator[Path]:
    """Give a hidden name beside `path`, and rename what the block wrote there to `path` at its end.

    Where the block raises, what it wrote is removed.

    Args:
        path: file or folder to publish. A file that is there is replaced, a folder only if it is empty.
        guard: called just before the rename; if it raises nothing is published.

    Returns:
        A context manager that gives the name to write a file or make a folder under.
    """
    with _hidden(path) as part:
        yield part
        guard()
        os.replace(part, path)


@contextmanager
def open_whole(path: Path, guard: Callable[[], None] = _nothing) -> Iterator[BinaryIO]:
    """Open a file for writing that appears as `path` at the end of the block, and survives a power cut from then on.

    Where the block raises, what it wrote is removed. The arguments are those of `publish_whole`.
    """
    with publish_whole(path, guard) as part, part.open("xb") as file:
        yield file
        _sync(file)
    _flush_names(path.parent)


def write_whole(path: Path, data: bytes, guard: Callable[[], None] = _nothing) -> None:
    """Write a file that survives a power cut once this returns, replacing one that is there.

    Args:
        path: the file.
        data: its bytes.
        guard: as in `publish_whole`.
    """
    with open_whole(path, guard) as file:
        file.write(data)


def create_whole(path: Path, data: bytes) -> bool:
    """Write a file unless there is one; return whether this call did. If several try at once, exactly one succeeds."""
    with _hidden(path) as part:
        _write(part, data)
        created = _link(part, path, data)
    _flush_names(path.parent)
    return created


class ExplainedFile:
    """A file that is written to; what its disk raises becomes the sentence of the block that `writing` gives."""

    closed = False

    def __init__(self, file: IO[bytes], writing: Callable[[], AbstractContextManager[None]]):
        self.file, self.writing = file, writing

    def write(self, data: bytes) -> int:
        with self.writing():
            return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        with self.writing():
            self.file.flush()


def hidden_name(path: Path) -> Path:
    """Return a new hidden name beside a file or folder, which no reader takes for a result."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


@contextmanager
def _hidden(path: Path) -> Iterator[Path]:
    """Give a hidden name beside `path`; what is there at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = hidden_name(path)
    try:
        yield part
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    """Bring a file to the disk: a name must not survive a power cut that its content does not."""
    file.flush()
    os.fsync(file.fileno())


def _flush_names(folder: Path) -> None:
    with suppress(OSError):  # some network file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _link(part: Path, path: Path, data: bytes) -> bool:
    """Give a file a second name, which fails if that is taken; on a disk without hard links write it there."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError:
        try:
            file = path.open("xb")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(data)
        except BaseException:
            path.unlink()
            raise
    return True
