"""OUT: a folder or any URL that pyarrow's filesystems know, written one whole file at a time.

A file is serialised in memory and published in one step: on a local disk under another name and then renamed, on an
object store by a single upload. An interrupted writer leaves nothing that a reader could take for a result.
"""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from volgrowth.errors import OutputError


class Store:
    """Files under OUT, by relative POSIX names.

    Raises:
        OutputError: where OUT cannot be reached or written, saying what was tried.
    """

    def __init__(self, url: str):
        self.url = url
        try:
            if "://" in url:
                self.files, self.root = fs.FileSystem.from_uri(url)
            else:
                self.files, self.root = fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise OutputError(
                f"output {url} cannot be opened ({_reason(error)}): expected a folder or a URL such as "
                f"s3://bucket/prefix"
            ) from None
        self.local = isinstance(self.files, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """The full path of a file under OUT."""
        return str(PurePosixPath(self.root) / name)

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        with self._reading(name):
            return self.files.get_file_info(self.path(name)).type == fs.FileType.File

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly in a folder under OUT, sorted; none where it does not exist."""
        selector = fs.FileSelector(self.path(folder) if folder else self.root, allow_not_found=True)
        with self._reading(folder):
            return sorted(info.base_name for info in self.files.get_file_info(selector))

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise OutputError(
                f"{self.url}/{name} cannot be read ({_reason(error)}): check that it exists and that you may read it"
            ) from None

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self._reading(name), self.files.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write(self, name: str, data: bytes) -> None:
        """Publish a whole file, replacing what was there."""
        path = self.path(name)
        # an exception inside `with open_output_stream` would publish what was written so far: data is whole before
        parent, leaf = os.path.split(path)
        target = f"{parent}/.{leaf}.{uuid.uuid4().hex[:8]}.part" if self.local else path
        try:
            self.files.create_dir(parent, recursive=True)
            with self.files.open_output_stream(target) as stream:
                stream.write(data)
            if self.local:
                _flush_to_disk(target)
                self.files.move(target, path)
        except OSError as error:
            if self.local and os.path.exists(target):
                os.remove(target)
            raise OutputError(
                f"output {self.url} cannot be written ({_reason(error)}): choose a place with room that "
                f"you may write to"
            ) from None

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        if self.exists(name):
            self.files.delete_file(self.path(name))

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise OutputError(
                f"{self.url}/{name} is no JSON ({_reason(error)}): it was not written by volgrowth"
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
        with self._reading(name), self.files.open_input_file(self.path(name)) as file:
            metadata = pq.read_metadata(file)
        entries = metadata.metadata or {}
        return metadata.num_rows, {k.decode(): v.decode() for k, v in entries.items() if k != b"ARROW:schema"}

    def write_table(self, name: str, table: pa.Table, metadata: dict[str, str]) -> None:
        """A Parquet file whose footer carries `metadata`."""
        buffer = BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
        self.write(name, buffer.getvalue())


def _flush_to_disk(path: str) -> None:
    """A name must not survive a power cut that its content does not."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
