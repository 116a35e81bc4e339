"""The folder that holds the files of a data set: on a local disk, or a prefix in an object store.

A source asks a `Place` for everything it reads, so that every kind of data set is read in both. Errors of a store
(no rights, no network) are never taken for bad images: they end the run, which can be resumed.
"""

import os
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from volgrowth.credentials import hide, with_query
from volgrowth.errors import DataError
from volgrowth.storage.copies import tag_of
from volgrowth.storage.failures import explained, store_reason
from volgrowth.storage.local_files import Found, found_file, matching_paths, walk_folder
from volgrowth.storage.urls import filesystem, is_url

PAGE = 1000
"""Objects that are taken from S3's listing at a time: as many as it sends in one answer."""

A = TypeVar("A")
B = TypeVar("B")


class Place(ABC):
    """A folder, with methods that take the names of files in it and below: relative to it, with slashes.

    Attributes:
        where: the folder's path or URL, for people.
        threads: how many requests at a time are worth making.
    """

    where: str
    threads: int

    @abstractmethod
    def walk(self, repeated: Callable[[str], None] = lambda name: None) -> Iterator[Found]:
        """Yield the files in the folder and below, hidden ones too, in no particular order.

        Args:
            repeated: called with the name of each link to a folder that is walked anyway, or that holds this one.

        Raises:
            DataError: the folder, or one in it, cannot be listed.
        """

    def matches(self, pattern: str) -> Iterable[Found]:
        """Return what matches a pattern of `*`, `?`, `[...]` and `**`, folders too, in no particular order."""
        if "**" not in pattern:
            return self._globbed(pattern)
        # `**` of glob follows links in circles, and that of fsspec holds everything in memory
        wanted = re.compile(glob_translate(pattern))
        return (file for file in self.walk() if wanted.match(file.name))

    @abstractmethod
    def _globbed(self, pattern: str) -> Iterable[Found]: ...

    @abstractmethod
    def find(self, name: str) -> Found | None:
        """Return a file as a listing shows it now; None if there is no such file."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if there is no such file."""
        found = self.find(name)
        return None if found is None else found.size

    @abstractmethod
    def read(self, name: str) -> tuple[bytes | None, str | None]:
        """Return the bytes of a file and None, or None and the reason why this file has none.

        Raises:
            DataError: the store cannot be read.
        """

    @abstractmethod
    def _stream(self, name: str, block: int) -> BufferedIOBase: ...

    def open(self, name: str, size: int, block: int = 0) -> BufferedIOBase:
        """Open a file to read it in parts.

        Args:
            name: the file.
            size: the bytes that it had when the data set was opened.
            block: bytes that are fetched from a store at a time, or more; 0 fetches what is asked for.

        Raises:
            DataError: the file is missing, has another size, or cannot be read.
        """
        try:
            with explained(
                DataError, f"{self.url(name)} cannot be read", "", "check its permissions", (FileNotFoundError,)
            ):
                stream = self._stream(name, block)
        except FileNotFoundError:
            raise self.gone(name) from None
        now = stream.seek(0, os.SEEK_END)
        if now != size:
            with stream:
                self.changed(name, f"{now} bytes", f"{size}")
        stream.seek(0)
        return stream

    def changed(self, name: str, now: str, before: str) -> NoReturn:
        """Raise a DataError: a file is not what it was when the data set was opened.

        Args:
            name: the file.
            now: what it holds, such as "3 rows".
            before: what it held, such as "4".
        """
        raise DataError(
            f"{self.url(name)} holds {now}, and {before} when the data set was opened: it has changed; restore it, "
            "or start a new audit"
        )

    def gone(self, name: str) -> DataError:
        """Return the error that a file of the data set is missing."""
        return DataError(f"{self.url(name)} does not exist any more: restore it, or start a new audit")

    def url(self, name: str) -> str:
        """Return the full name of a file, for people."""
        return f"{self.where.rstrip('/')}/{printable(name)}"


class LocalPlace(Place):
    """A local folder. Links are followed, and each folder is walked once, under its own name if it has one here."""

    threads = 1

    def __init__(self, path: Path) -> None:
        self.where, self.path = str(path), path.resolve()

    def walk(self, repeated: Callable[[str], None] = lambda name: None) -> Iterator[Found]:
        return walk_folder(str(self.path), repeated)

    def _globbed(self, pattern: str) -> Iterator[Found]:
        for path in matching_paths(str(self.path), pattern):
            name = os.path.relpath(path, self.path)
            if os.path.isdir(path):
                yield Found(f"{name}/", 0)
            else:
                yield found_file(path, name, os.path.realpath(path) != path)

    def find(self, name: str) -> Found | None:
        path = self.path / name
        return found_file(path, name, os.path.realpath(path) != os.fspath(path)) if os.path.isfile(path) else None

    def read(self, name: str) -> tuple[bytes | None, str | None]:
        path = self.path / name
        try:
            # A pipe or a device would block or never end.
            if not path.is_file():
                return None, "the file does not exist" if not path.exists() else "not a regular file"
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            return None, f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        return data, None if data else "the file is empty"

    def _stream(self, name: str, block: int) -> BufferedIOBase:
        path = self.path / name
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # a pipe would block
        return path.open("rb")


class StorePlace(Place):
    """A prefix in an object store.

    Args:
        where: its URL.
        files: a file system of fsspec.
        path: the prefix in that file system.
    """

    threads = 16

    def __init__(self, where: str, files: Any, path: str) -> None:
        self.where, self.files, self.path = where, files, path.rstrip("/")

    def walk(self, repeated: Callable[[str], None] = lambda name: None) -> Iterator[Found]:
        paged = "s3" in self.files.protocol and hasattr(self.files, "_iterdir")
        try:
            with _answering(self.where):
                self.files.invalidate_cache()  # hf:// keeps listings whatever it is told
                yield from self._paged() if paged else self._folders()
        except FileNotFoundError as error:
            raise DataError(
                f"{self.where} is not there any more ({store_reason(error)}): it was a moment ago"
            ) from None

    def _folders(self) -> Iterator[Found]:
        folders = [self.path]
        while folders:
            # `walk` of fsspec leaves out, in silence, what it cannot list
            for info in self.files.ls(folders.pop(), detail=True):
                if info["type"] == "directory":
                    folders.append(info["name"])
                else:
                    yield self._found(info)

    def _paged(self) -> Iterator[Found]:
        """Yield what is below a prefix of S3, listed a page at a time; `find` of s3fs would hold all of it."""
        from s3fs.errors import translate_boto_error  # type: ignore[import-untyped]

        bucket, _, key = self.path.partition("/")
        entries = self.files._iterdir(bucket, delimiter="", prefix=f"{key}/" if key else "")

        async def page() -> list[dict[str, Any]]:
            infos = []
            async for info in entries:
                infos.append(info)
                if len(infos) == PAGE:
                    break
            return infos

        try:
            while infos := sync(self.files.loop, page):
                # some tools write an object to stand for a folder
                yield from (self._found(info) for info in infos if not info["name"].endswith("/"))
        except Exception as error:
            raise translate_boto_error(error) from None

    def _globbed(self, pattern: str) -> list[Found]:
        with _answering(self.where):
            found = self.files.glob(f"{self.path}/{pattern}", detail=True)
        return [self._found(info) for info in found.values()]

    def _found(self, info: dict[str, Any]) -> Found:
        name = info["name"].removeprefix(f"{self.path}/")
        return Found(f"{name}/", 0) if info["type"] == "directory" else Found(name, info["size"], tag_of(info))

    def find(self, name: str) -> Found | None:
        try:
            with _answering(self.url(name)):
                info = self.files.info(self._path(name))
        except FileNotFoundError:
            return None
        return Found(name, info["size"], tag_of(info)) if info["type"] == "file" else None

    def read(self, name: str) -> tuple[bytes | None, str | None]:
        if os.path.isabs(name):
            return None, "the value is an absolute path, and the data set lies in an object store"
        try:
            with _answering(self.url(name)):
                data = self.files.cat_file(self._path(name))
        except FileNotFoundError:
            return None, "the file does not exist"
        except IsADirectoryError:
            return None, "not a regular file"
        return data, None if data else "the file is empty"

    def _stream(self, name: str, block: int) -> BufferedIOBase:
        cache = {"cache_type": "readahead", "block_size": block} if block else {"cache_type": "none"}
        with _answering(self.url(name)):
            return _StoreStream(self.files.open(self._path(name), "rb", **cache), self, name)

    def _path(self, name: str) -> str:
        return with_query(f"{self.path}/{os.path.normpath(name) if '..' in name.split('/') else name}")


class _StoreStream(BufferedIOBase):
    """An open file of a store. What the store raises is said as its error; pyarrow would take it for bad data."""

    def __init__(self, file: Any, place: StorePlace, name: str) -> None:
        self._file, self._place, self._name = file, place, name

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            with _answering(self._place.url(self._name)):
                return self._file.read(size)
        except FileNotFoundError:
            raise self._place.gone(self._name) from None

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)  # a text is read through this

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def locate(data: str) -> tuple[Place, str | None] | None:
    """Return the place that a path or URL means, and the name of a file in it.

    Args:
        data: a local path, or a URL.

    Returns:
        The folder and None, the folder of a file and the file's name, or None if nothing is there.

    Raises:
        DataError: the store cannot be asked, or has no such bucket.
    """
    data = hide(data)
    try:
        files, path = filesystem(data)
    except ValueError as error:
        raise DataError(f"{data} cannot be opened: {error}") from None
    if isinstance(files, LocalFileSystem):
        shown = Path(path if is_url(data) else data).expanduser()
        if not os.path.exists(path):
            return None
        return (LocalPlace(shown), None) if os.path.isdir(path) else (LocalPlace(shown.parent), shown.name)
    if not path.strip("/"):
        raise DataError(f"{data} names no bucket: expected a URL such as s3://bucket/folder")
    try:
        with _answering(data):
            info = files.info(path)
    except FileNotFoundError:
        return None
    if info["type"] == "directory":
        return StorePlace(data, files, info["name"]), None
    folder, _, name = hide(info["name"]).rpartition("/")
    return StorePlace(data.rstrip("/").rpartition("/")[0], files, folder), name


def read_ahead(function: Callable[[A], B], items: Iterable[A], threads: int) -> Generator[B, None, None]:
    """Yield `function(item)` for every item, in order, while as many as there are threads are under way.

    Args:
        function: called in the threads, or in the caller's own if `threads` is 1 or less.
        items: taken one by one as results are taken, so that they may be without end.
        threads: how many items are under way at a time.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    pool, rest = ThreadPoolExecutor(threads, "volgrowth-read"), iter(items)
    try:
        waiting = deque(pool.submit(function, item) for item in islice(rest, threads))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def printable(name: str) -> str:
    """Return a file name as text: it need not be valid UTF-8, and a column of an Arrow table must be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _answering(url: str) -> AbstractContextManager[None]:
    """Raise what a store raises as a DataError, but not that a file is missing or a folder."""
    passed = (FileNotFoundError, IsADirectoryError)
    return explained(DataError, f"{url} cannot be read", url, "run the same again", passed)
