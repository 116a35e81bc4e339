"""The output folder, OUT: local or any URL that fsspec has a file system for, written one whole file at a time.

A file is serialised in memory and published in one step: on a local disk under another name and then renamed, in an
object store by one upload. An interrupted writer leaves nothing that a reader could take for a result.
"""

import errno
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from volgrowth.credentials import hide
from volgrowth.errors import OutputError
from volgrowth.storage.failures import explained, is_absent, store_reason
from volgrowth.storage.urls import filesystem
from volgrowth.storage.whole import create_whole, write_whole


class Store:
    """The files under OUT, by their relative names with slashes. May be pickled, and used by several threads.

    Every method raises an OutputError if OUT cannot be reached, read or written, which says what was tried.

    Args:
        url: the folder, or a URL such as s3://bucket/prefix; it need not exist.
    """

    def __init__(self, url: str):
        self.url = url = hide(url)
        expected = "expected a folder or a URL such as s3://bucket/prefix"
        with explained(OutputError, f"output {url} cannot be opened", url, expected):  # clients look for credentials
            self.files, self.root = filesystem(url)
        self.local = isinstance(self.files, LocalFileSystem)
        if not self.root and not self.local:
            raise OutputError(f"output {url} names no bucket: expected a URL such as s3://bucket/prefix")

    def path(self, name: str) -> str:
        """Return the full path or URL of a file under OUT."""
        return self._at(name) if self.local else f"{self.url.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return self._details(name).get("type") == "file"

    def modified(self, name: str) -> float | None:
        """Return when a file was written, as unix time by the clock of the store; None if there is no such file."""
        if not self.exists(name):
            return None
        with self._reading(name):
            return self.files.modified(self._at(name)).timestamp()

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted names of the files and folders directly in a folder under OUT; none if it is missing."""
        prefix = self._at(folder).rstrip("/") + "/"
        found: list[str] = []
        with self._reading(folder), _unless_absent():
            self.files.invalidate_cache()
            found = self.files.ls(self._at(folder), detail=False)
        # a store may list, beside what is in a folder, an empty object that stands for the folder itself
        return sorted({name for path in found if (name := path.removeprefix(prefix).rstrip("/")) and name != path})

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        with self._reading(name):
            return self.files.cat_file(self._at(name))

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise OutputError(
                f"{self.path(name)} is no JSON ({store_reason(error)}): it was not written by volgrowth"
            ) from None

    def read_table(self, name: str) -> pa.Table:
        """Return the table in a Parquet file."""
        with self._reading(name):
            return pq.read_table(arrow_file(self.read(name)))

    def read_footer(self, name: str) -> tuple[int, dict[str, str]]:
        """Return the number of rows of a Parquet file and the metadata it was written with, without its rows."""
        with self._reading(name), self.files.open(self._at(name), "rb") as file:
            metadata = pq.read_metadata(file)
            entries = metadata.metadata or {}
            return metadata.num_rows, {k.decode(): v.decode() for k, v in entries.items() if k != b"ARROW:schema"}

    def write(self, name: str, data: bytes) -> None:
        """Publish a file, replacing one that is there."""
        with self._writing():
            if self.local:
                write_whole(Path(self._at(name)), data)
            else:
                self.files.pipe_file(self._at(name), data)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Publish a JSON object, indented for people."""
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def write_table(self, name: str, table: pa.Table, metadata: dict[str, str]) -> None:
        """Publish a table as a Parquet file that carries `metadata` in its footer."""
        buffer = BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
        self.write(name, buffer.getvalue())

    def create(self, name: str, data: bytes) -> bool:
        """Publish a file unless there is one, and return whether this call did. Of several writers at once one does.

        Where the store has no conditional writes (S3, GCS and Azure have), the last of several at once wins.

        Args:
            name: the file.
            data: its bytes, which must differ from those of any other writer: by them a writer whose answer was lost
                knows its own file.
        """
        path = self._at(name)
        if self.local:
            with self._writing():
                return create_whole(Path(path), data)
        # a store that does not know the condition may take no notice of it
        if self.exists(name):
            return False
        with self._writing():
            try:
                self.files.pipe_file(path, data, mode="create")
            except Exception as error:
                if isinstance(error, NotImplementedError | TypeError) or getattr(error, "errno", None) == errno.ENOSYS:
                    self.files.pipe_file(path, data)
                elif not self.exists(name):
                    raise
        with self._reading(name), suppress(FileNotFoundError):
            return self.files.cat_file(path) == data
        return False

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        with self._writing(), suppress(FileNotFoundError, NotADirectoryError):
            self.files.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        """Return the path of a file in the file system."""
        return str(PurePosixPath(self.root) / name)

    def _details(self, name: str) -> dict[str, Any]:
        with self._reading(name), _unless_absent():
            self.files.invalidate_cache()
            return self.files.info(self._at(name))
        return {}

    def _reading(self, name: str) -> AbstractContextManager[None]:
        advice = "check that it exists and that you may read it"
        return explained(OutputError, f"{self.path(name)} cannot be read", self.url, advice)

    def _writing(self) -> AbstractContextManager[None]:
        advice = "check the URL, and try again; nothing is lost"
        if self.local:
            advice = "choose a place with room that you may write to"
        return explained(OutputError, f"output {self.url} cannot be written", self.url, advice)


@contextmanager
def _unless_absent() -> Iterator[None]:
    """End the block where a file or folder is not there."""
    try:
        yield
    except Exception as error:
        if not is_absent(error):
            raise


def arrow_file(data: bytes | bytearray) -> pa.BufferReader:
    """Copy bytes into memory of Arrow's own, and return it as a file that Arrow's readers take.

    Arrow's threads may let go of a file a moment after the reader has returned. If the file is a Python object, such
    as a `BytesIO` or a view of `bytes`, they need the interpreter for that. If the interpreter is ending just then, the
    process aborts with "terminate called without an active exception" (apache/arrow issues 34314 and 45214).
    """
    memory = pa.BufferOutputStream()
    memory.write(data)
    return pa.BufferReader(memory.getvalue())
