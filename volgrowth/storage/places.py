"""Where the files of a data set lie: a folder here, or a prefix in an object store.

A source asks a `Place` for everything it reads, so that every kind of data set is read in both. Errors of a store
(no rights, no network) are never taken for bad images: they end the run, which can be resumed.
"""

import glob
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from volgrowth.errors import DataError
from volgrowth.storage.urls import filesystem, fix, is_url, no_bucket, reason

PAGE = 1000
"""Objects that S3 lists at a time."""

A = TypeVar("A")
B = TypeVar("B")


class UnreachableError(DataError):
    """A store that did not answer, after its client's own attempts. Another attempt may succeed."""


class Found(NamedTuple):
    """A file that a listing shows: its name relative to the place, and its size in bytes."""

    name: str
    size: int


class Stream(Protocol):
    """What is read of an open file."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = 0, /) -> int: ...
    def __enter__(self) -> "Stream": ...
    def __exit__(self, *error: Any) -> Any: ...


class Place(ABC):
    """A folder, and the files in it and below by their relative names with slashes."""

    where: str
    threads: int
    """How many requests at a time are worth making."""

    @abstractmethod
    def walk(self, suffixes: frozenset[str]) -> Iterator[Found]:
        """Files in it and below, by suffix in lower case, in no particular order; hidden ones are left out.

        Raises:
            DataError: it, or a folder in it, cannot be listed.
        """

    @abstractmethod
    def matches(self, pattern: str) -> Iterator[Found]:
        """Files that match a pattern with `*`, `?`, `[...]` or `**`, in no particular order."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders in it."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Of a file; None if there is no such file."""

    @abstractmethod
    def read(self, name: str) -> tuple[bytes | None, str | None]:
        """The bytes of a file, or None and the reason.

        Raises:
            DataError: the store cannot be read.
        """

    @abstractmethod
    def _stream(self, name: str, block: int) -> Stream: ...

    def open(self, name: str, size: int, block: int = 0) -> Stream:
        """A file that had `size` bytes, to be read in parts; those of a store in blocks of at least `block` bytes.

        Raises:
            DataError: it is missing, has another size, or cannot be read.
        """
        try:
            stream = self._stream(name, block)
        except FileNotFoundError:
            raise DataError(f"{self.url(name)} does not exist any more: restore it, or start a new audit") from None
        except OSError as error:
            raise DataError(f"{self.url(name)} cannot be read ({reason(error)}): check its permissions") from None
        now = stream.seek(0, os.SEEK_END)
        if now != size:
            with stream:
                self.changed(name, f"{now} bytes", f"{size}")
        stream.seek(0)
        return stream

    def changed(self, name: str, now: str, before: str) -> NoReturn:
        """Raise that a file is not what the listing says."""
        raise DataError(
            f"{self.url(name)} holds {now}, and {before} when the data set was opened: it has changed; restore it, "
            "or start a new audit"
        )

    def url(self, name: str) -> str:
        """A file's full name, for people."""
        return f"{self.where.rstrip('/')}/{printable(name)}"


class LocalPlace(Place):
    """A folder here. Links to files and folders are followed, except to a folder that contains the link."""

    threads = 1

    def __init__(self, path: Path) -> None:
        self.where, self.path = str(path), path.resolve()

    def walk(self, suffixes: frozenset[str]) -> Iterator[Found]:
        return _below(str(self.path), "", suffixes, frozenset())

    def matches(self, pattern: str) -> Iterator[Found]:
        for path in glob.iglob(f"{glob.escape(str(self.path))}/{pattern}", recursive=True):
            if os.path.isfile(path):
                yield Found(os.path.relpath(path, self.path), os.path.getsize(path))

    def folders(self) -> list[str]:
        return [entry.name for entry in self.path.iterdir() if entry.is_dir()]

    def size(self, name: str) -> int | None:
        path = self.path / name
        return os.path.getsize(path) if os.path.isfile(path) else None

    def read(self, name: str) -> tuple[bytes | None, str | None]:
        return read_file(self.path / name)

    def _stream(self, name: str, block: int) -> Stream:
        path = self.path / name
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # a pipe would block
        return open(path, "rb")


class StorePlace(Place):
    """A prefix in an object store, by a file system of fsspec."""

    threads = 16

    def __init__(self, where: str, files: Any, path: str) -> None:
        self.where, self.files, self.path = where, files, path.rstrip("/")

    def walk(self, suffixes: frozenset[str]) -> Iterator[Found]:
        found = self._paged() if "s3" in self.files.protocol and hasattr(self.files, "_iterdir") else self._folders()
        try:
            with answering(self.where):
                self.files.invalidate_cache()  # hf:// keeps listings whatever it is told
                for file in found:
                    hidden = file.name.startswith(".") or "/." in file.name
                    if not hidden and os.path.splitext(file.name)[1].lower() in suffixes:
                        yield file
        except FileNotFoundError as error:
            raise DataError(f"{self.where} is not there any more ({reason(error)}): it was a moment ago") from None

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
        """S3 lists a prefix with all below it, a page at a time; `find` of s3fs would hold all of it."""
        from s3fs.errors import translate_boto_error  # type: ignore[import-untyped]

        bucket, _, key = self.path.partition("/")
        entries = self.files._iterdir(bucket, delimiter="", prefix=f"{key}/" if key else "")

        async def page() -> list[Found]:
            found: list[Found] = []
            async for info in entries:
                if not info["name"].endswith("/"):  # what some tools write to stand for a folder
                    found.append(self._found(info))
                if len(found) == PAGE:
                    break
            return found

        try:
            while found := sync(self.files.loop, page):
                yield from found
        except Exception as error:
            raise translate_boto_error(error) from None

    def matches(self, pattern: str) -> Iterator[Found]:
        with answering(self.where):
            found = self.files.glob(f"{self.path}/{pattern}", detail=True)
        return (self._found(info) for info in found.values() if info["type"] == "file")

    def _found(self, info: dict[str, Any]) -> Found:
        return Found(info["name"].removeprefix(f"{self.path}/"), info["size"])

    def folders(self) -> list[str]:
        with answering(self.where):
            entries = self.files.ls(self.path, detail=True)
        return [info["name"].rstrip("/").rpartition("/")[2] for info in entries if info["type"] == "directory"]

    def size(self, name: str) -> int | None:
        with answering(self.url(name)):
            try:
                info = self.files.info(self._path(name))
            except FileNotFoundError:
                return None
        return info["size"] if info["type"] == "file" else None

    def read(self, name: str) -> tuple[bytes | None, str | None]:
        if os.path.isabs(name):
            return None, "the value is an absolute path, and the data set lies in an object store"
        with answering(self.url(name)):
            try:
                data = self.files.cat_file(self._path(name))
            except FileNotFoundError:
                return None, "the file does not exist"
            except IsADirectoryError:
                return None, "not a regular file"
        return data, None if data else "the file is empty"

    def _stream(self, name: str, block: int) -> Stream:
        cache = {"cache_type": "readahead", "block_size": block} if block else {"cache_type": "none"}
        with answering(self.url(name)):
            return _StoreStream(self.files.open(self._path(name), "rb", **cache), self.url(name))

    def _path(self, name: str) -> str:
        return f"{self.path}/{os.path.normpath(name) if '..' in name.split('/') else name}"


class _StoreStream:
    """A file of a store whose errors are said as those of a store; pyarrow would take them for bad data."""

    def __init__(self, file: Any, url: str) -> None:
        self.file, self.url = file, url

    def read(self, size: int = -1, /) -> bytes:
        with answering(self.url):
            try:
                return self.file.read(size)
            except FileNotFoundError:
                raise DataError(f"{self.url} does not exist any more: restore it, or start a new audit") from None

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        self.file.close()

    @property
    def closed(self) -> bool:
        return self.file.closed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def __enter__(self) -> "_StoreStream":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


@contextmanager
def answering(url: str) -> Iterator[None]:
    """What a store raises, as a DataError; FileNotFoundError and IsADirectoryError are left as they are."""
    try:
        yield
    except (DataError, FileNotFoundError, IsADirectoryError):
        raise
    except Exception as error:  # every client raises what it likes
        kind = DataError if isinstance(error, PermissionError) else UnreachableError
        raise kind(f"{url} cannot be read ({reason(error)}): {fix(error, url, 'run the same again')}") from None


def locate(data: str) -> tuple[Place, str | None] | None:
    """A path or URL as the place and the name of a file in it, None for the place itself; None if nothing is there.

    Raises:
        DataError: the store cannot be asked, or has no such bucket.
    """
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
        with answering(data):
            info = files.info(path)
    except FileNotFoundError as error:
        if no_bucket(error):
            raise DataError(f"{data} cannot be opened ({reason(error)}): {fix(error, data, '')}") from None
        return None
    if info["type"] == "directory":
        return StorePlace(data, files, info["name"]), None
    folder, _, name = info["name"].rpartition("/")
    return StorePlace(data.rstrip("/").rpartition("/")[0], files, folder), name


def read_ahead(function: Callable[[A], B], items: Iterable[A], threads: int) -> Generator[B, None, None]:
    """`map` with the results of as many items as there are threads under way, in order."""
    if threads <= 1:
        yield from map(function, items)
        return
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(threads, "volgrowth-read")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_file(path: Path) -> tuple[bytes | None, str | None]:
    """The bytes of a file here, or None and the reason."""
    try:
        # A pipe or a device would block or never end.
        if not path.is_file():
            return None, "the file does not exist" if not path.exists() else "not a regular file"
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        return None, f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
    return data, None if data else "the file is empty"


def printable(name: str) -> str:
    """A file name as text: it need not be valid UTF-8, and a column of an Arrow table must be."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _below(folder: str, prefix: str, suffixes: frozenset[str], above: frozenset[str]) -> Iterator[Found]:
    above = above | {os.path.realpath(folder)}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir():
                    if os.path.realpath(entry.path) not in above:
                        yield from _below(entry.path, f"{prefix}{name}/", suffixes, above)
                elif os.path.splitext(name)[1].lower() in suffixes:
                    yield Found(prefix + name, _size(entry))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}. Check its permissions") from None


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0  # a broken link: a row, whose error says so
