"""Where a curated data set is written to: a new folder, or a prefix of an object store. Its writers know neither."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from volgrowth.curation.kept import kept_file
from volgrowth.curation.receipts import Receipt, sealed_files
from volgrowth.errors import OutputError
from volgrowth.storage.failures import store_reason
from volgrowth.storage.store import Store
from volgrowth.storage.urls import is_url
from volgrowth.storage.whole import publish_whole

Count = Callable[[Path], int]
"""Counts the rows of the data set in a file that was written, by reading the file."""


def no_rows(path: Path) -> int:
    """Return 0: the file holds no rows."""
    return 0


class Stage(ABC):
    """The place of a data set that is being written, and not yet there for its readers.

    Attributes:
        rows: rows in the files so far, as they were counted in them.
    """

    rows: int = 0

    @abstractmethod
    def expect(self, names: Sequence[str]) -> None:
        """Learn the names of all files that will be written, with slashes; called once, before the first of them."""

    def has(self, name: str) -> bool:
        """Return whether a file is there already, from an attempt that was cut off."""
        return False

    @abstractmethod
    def new_file(self, name: str, count: Count = no_rows) -> AbstractContextManager[Path]:
        """Give the path to write a file to in the block; the file is counted, and part of the data set, at its end."""

    @abstractmethod
    def finish(self, receipt: Receipt) -> Receipt:
        """Complete a receipt by the files that were written, and write it; return it."""


class FolderStage(Stage):
    """A folder on a disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def expect(self, names: Sequence[str]) -> None:
        """Do nothing: the folder is new."""

    @contextmanager
    def new_file(self, name: str, count: Count = no_rows) -> Iterator[Path]:
        """Give the path of the file itself."""
        path = kept_file(self.folder, name)
        yield path
        self.rows += count(path)

    def finish(self, receipt: Receipt) -> Receipt:
        """Write the receipt beside the files."""
        receipt.files.update(sealed_files(self.folder))
        receipt.write(self.folder)
        return receipt


def open_target(destination: str) -> Path | Store:
    """Return the absolute path of a folder that a name means, or the store of the prefix that a URL means.

    Raises:
        OutputError: the URL cannot be opened.
    """
    if not is_url(destination):
        return Path(destination).expanduser().absolute()
    store = Store(destination)
    return Path(store.root) if isinstance(store.files, LocalFileSystem) else store


@contextmanager
def open_folder_stage(folder: Path) -> Iterator[FolderStage]:
    """Open a new hidden folder that is renamed to `folder` at the end, or removed if there is an error."""
    try:
        with publish_whole(folder) as stage:
            stage.mkdir()
            yield FolderStage(stage)
            if os.path.lexists(folder):  # os.rename would replace an empty folder
                raise FileExistsError(f"{folder} exists by now")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written ({store_reason(error)}): choose a new folder, with room, that you may write to"
        ) from None
