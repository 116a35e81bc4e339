"""OUT: a folder or any URL that fsspec has a file system for, written one whole file at a time.

A file is serialised in memory and published in one step: on a local disk under another name and then renamed, on an
object store by one upload that the store makes visible when all of it has arrived. An interrupted writer leaves nothing
that a reader could take for a result.
"""

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from volgrowth.errors import OutputError
from volgrowth.storage.urls import filesystem, fix, no_bucket, reason

ABSENT = (FileNotFoundError, NotADirectoryError)


class Store:
    """Files under OUT, by relative POSIX names. May be pickled, and used by several threads.

    Raises:
        OutputError: where OUT cannot be reached or written, saying what was tried.
    """

    def __init__(self, url: str):
        self.url = url
        try:
            self.files, self.root = filesystem(url)
        except Exception as error:  # clients look for credentials here and each raise their own kinds
            expected = "expected a folder or a URL such as s3://bucket/prefix"
            raise OutputError(f"output {url} cannot be opened ({reason(error)}): {fix(error, url, expected)}") from None
        self.local = isinstance(self.files, LocalFileSystem)
        if not self.root and not self.local:
            raise OutputError(f"output {url} names no bucket: expected a URL such as s3://bucket/prefix")

    def path(self, name: str) -> str:
        """The full path or URL of a file under OUT."""
        return self._at(name) if self.local else f"{self.url.rstrip('/')}/{name}"

    def _at(self, name: str) -> str:
        """Where the file system has it."""
        return str(PurePosixPath(self.root) / name)

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return self._details(name).get("type") == "file"

    def modified(self, name: str) -> float | None:
        """When a file was written, as unix time by the clock of the store; None where there is none."""
        if not self.exists(name):
            return None
        with self._reading(name):
            return self.files.modified(self._at(name)).timestamp()

    def _details(self, name: str) -> dict[str, Any]:
        with self._reading(name):
            self.files.invalidate_cache()
            try:
                return self.files.info(self._at(name))
            except ABSENT as error:
                if no_bucket(error):
                    raise
                return {}

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly in a folder under OUT, sorted; none where it does not exist."""
        prefix = self._at(folder).rstrip("/") + "/"
        with self._reading(folder):
            self.files.invalidate_cache()
            try:
                found = self.files.ls(self._at(folder), detail=False)
            except ABSENT as error:
                if no_bucket(error):
                    raise
                return []
        # a store may list, beside what is in a folder, an empty object that stands for the folder itself
        return sorted({name for path in found if (name := path.removeprefix(prefix).rstrip("/")) and name != path})

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except Exception as error:  # the client of each store raises its own kinds
            advice = fix(error, self.url, "check that it exists and that you may read it")
            raise OutputError(f"{self.path(name)} cannot be read ({reason(error)}): {advice}") from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except Exception as error:  # as above
            otherwise = "choose a place with room that you may write to"
            advice = fix(error, self.url, otherwise if self.local else "check the URL, and try again; nothing is lost")
            raise OutputError(f"output {self.url} cannot be written ({reason(error)}): {advice}") from None

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self._reading(name):
            return self.files.cat_file(self._at(name))

    def write(self, name: str, data: bytes) -> None:
        """Publish a whole file, replacing what was there."""
        path = self._at(name)
        with self._writing():
            if self.local:
                with _beside(path, data) as temporary:
                    os.replace(temporary, path)
            else:
                self.files.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Publish a whole file unless there is one: of several writers at once, one does and is told so.

        `data` must differ from that of any other writer: by it a writer whose answer was lost knows its own file.
        Where the store has no conditional writes (S3, GCS and Azure have), the last of several at once wins.
        """
        path = self._at(name)
        if self.local:
            with self._writing(), _beside(path, data) as temporary:
                return _link(temporary, path, data)
        # a store that does not know the condition may take no notice of it
        if self.exists(name):
            return False
        with self._writing():
            try:
                self.files.pipe_file(path, data, mode="create")
            except Exception as error:
                if _unsupported(error):
                    self.files.pipe_file(path, data)
                elif not self.exists(name):
                    raise
        with self._reading(name), suppress(FileNotFoundError):
            return self.files.cat_file(path) == data
        return False

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        with self._writing(), suppress(*ABSENT):
            self.files.rm_file(self._at(name))

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise OutputError(
                f"{self.path(name)} is no JSON ({reason(error)}): it was not written by volgrowth"
            ) from None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """A JSON object, indented for people."""
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def read_table(self, name: str) -> pa.Table:
        """A Parquet file."""
        with self._reading(name):
            return pq.read_table(BytesIO(self.read(name)))

    def read_footer(self, name: str) -> tuple[int, dict[str, str]]:
        """Rows of a Parquet file and its own key-value metadata, without reading the rows."""
        with self._reading(name), self.files.open(self._at(name), "rb") as file:
            metadata = pq.read_metadata(file)
        entries = metadata.metadata or {}
        return metadata.num_rows, {k.decode(): v.decode() for k, v in entries.items() if k != b"ARROW:schema"}

    def write_table(self, name: str, table: pa.Table, metadata: dict[str, str]) -> None:
        """A Parquet file whose footer carries `metadata`."""
        buffer = BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
        self.write(name, buffer.getvalue())


@contextmanager
def _beside(path: str, data: bytes) -> Iterator[str]:
    """A whole file on the disk, in the folder of `path`, to be renamed or linked to it; its own name goes anyway."""
    folder, leaf = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/.{leaf}.{uuid.uuid4().hex[:8]}.part"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            # a name must not survive a power cut that its content does not
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)
    _flush_names(folder)


def _flush_names(folder: str) -> None:
    with suppress(OSError):  # some network file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _link(temporary: str, path: str, data: bytes) -> bool:
    """Give a file a second name, which fails where that is taken; without hard links, write it there."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        return _write_new(path, data)
    return True


def _write_new(path: str, data: bytes) -> bool:
    try:
        file = open(path, "xb")  # noqa: SIM115, since a file that was there must not be removed
    except FileExistsError:
        return False
    try:
        with file:
            file.write(data)
    except BaseException:
        os.remove(path)
        raise
    return True


def _unsupported(error: Exception) -> bool:
    return isinstance(error, NotImplementedError | TypeError) or getattr(error, "errno", None) == errno.ENOSYS
