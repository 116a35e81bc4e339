"""The output folder, OUT: local or any URL that fsspec has a file system for, written one whole file at a time.

A file is serialised in memory and published in one step: on a local disk under another name and then renamed, in an
object store by one upload. An interrupted writer leaves nothing that a reader could take for a result.
"""

import copy
import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import IO, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from volgrowth.credentials import hide
from volgrowth.errors import DamagedError, OutputError
from volgrowth.storage.copies import tag_of
from volgrowth.storage.failures import explained, is_absent, store_reason
from volgrowth.storage.sealing import (
    BODY,
    SEALS,
    TAIL_BYTES,
    SealedWriter,
    arrow_file,
    check_parquet,
    footer_of,
    opened_json,
    parsed_footer,
    sealed_batches,
    sealed_json,
    sealed_parquet,
)
from volgrowth.storage.uploads import upload_bytes, upload_file
from volgrowth.storage.urls import filesystem
from volgrowth.storage.whole import ExplainedFile, create_whole, open_whole, write_whole

# bytes at the end of a Parquet file that are read first: most footers are shorter
TAIL = 1 << 16
# the most rows of a batch that is read
BATCH_ROWS = 1 << 16


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
        self._guard: Callable[[], None] = _unguarded

    def fenced(self, guard: Callable[[], None]) -> "Store":
        """Return the same store, which calls `guard` just before each file appears or goes, and does not if it raises.

        On a local disk nothing but the rename comes after the guard. In an object store the whole upload does, since no
        store makes one object depend on another.
        """
        fenced = copy.copy(self)
        fenced._guard = guard
        return fenced

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_guard": _unguarded}  # a guard belongs to the process that holds the lock

    def path(self, name: str) -> str:
        """Return the full path or URL of a file under OUT."""
        return self.file_path(name) if self.local else f"{self.url.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return self._details(name).get("type") == "file"

    def modified(self, name: str) -> float | None:
        """Return when a file was written, as unix time by the clock of the store; None if there is no such file."""
        if not self.exists(name):
            return None
        with self._reading(name):
            return self.files.modified(self.file_path(name)).timestamp()

    def names(self, folder: str = "") -> list[str]:
        """Return the sorted names of the files and folders directly in a folder under OUT; none if it is missing."""
        prefix = self.file_path(folder).rstrip("/") + "/"
        found: list[str] = []
        with self._reading(folder), _unless_absent():
            self.files.invalidate_cache()
            found = self.files.ls(self.file_path(folder), detail=False)
        # a store may list, beside what is in a folder, an empty object that stands for the folder itself
        return sorted({name for path in found if (name := path.removeprefix(prefix).rstrip("/")) and name != path})

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        with self._reading(name):
            return self.files.cat_file(self.file_path(name))

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file.

        Raises:
            DamagedError: it is no JSON object, or has changed since it was written.
        """
        return self.parsed_json(name, self.read(name))

    def parsed_json(self, name: str, data: bytes) -> dict[str, Any]:
        """Return the JSON object in the bytes of a file; see `read_json`."""
        try:
            return opened_json(data)
        except ValueError as error:
            raise self._damaged(name, error) from None

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the table in a Parquet file, with the metadata it was written with.

        Args:
            name: the file.
            columns: those to decode; names that the file lacks are left out. All for None.

        Raises:
            DamagedError: it was cut off, or has changed since it was written.
        """
        return self.parsed_table(name, self.read(name), columns)

    def parsed_table(self, name: str, data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the table in the bytes of a Parquet file; see `read_table`."""
        try:
            check_parquet(data)
            file = pq.ParquetFile(arrow_file(data), page_checksum_verification=True)
            there = file.schema_arrow.names
            table = file.read(None if columns is None else [column for column in columns if column in there])
        except (ValueError, OSError, pa.ArrowException) as error:
            raise self._damaged(name, error) from None
        return table.replace_schema_metadata(_entries(table.schema.metadata) or None)

    def read_batches(
        self, name: str, columns: Sequence[str] | None = None, most: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a Parquet file in order, while the memory holds one of its row groups.

        That a file has changed may only be known after its last row: whoever takes the rows must do without them if
        this raises.

        Args:
            name: the file.
            columns: as in `read_table`.
            most: the most rows of a batch.

        Raises:
            DamagedError: as `read_table`.
        """
        with self._reading(name):
            file = self.files.open(self.file_path(name), "rb", cache_type="none")

        def read(start: int, stop: int) -> bytes:
            with self._reading(name):
                file.seek(start)
                data = file.read(stop - start)
            if len(data) < stop - start:
                raise ValueError("its end is missing")
            return data

        with file:
            with self._reading(name):
                size = file.seek(0, 2)
            try:
                footer = footer_of(self._tail(file, size, name))
                yield from sealed_batches(read, size, footer, columns, most)
            except (ValueError, OSError, pa.ArrowException) as error:
                raise self._damaged(name, error) from None

    def read_footer(self, name: str) -> tuple[int, dict[str, str]]:
        """Return the number of rows of a Parquet file and the metadata it was written with, without its rows.

        Raises:
            DamagedError: its footer is missing, or has changed since it was written.
        """
        metadata = self._metadata(name)
        entries = {k.decode(): v.decode() for k, v in (_entries(metadata.metadata)).items() if k != b"ARROW:schema"}
        return metadata.num_rows, entries

    def seal(self, name: str) -> str | None:
        """Return the digest that a Parquet file carries of its rows, None if it has none; raises as `read_footer`."""
        seal = (self._metadata(name).metadata or {}).get(BODY.encode())
        return None if seal is None else seal.decode()

    def read_schema(self, name: str) -> pa.Schema:
        """Return the columns of a Parquet file, from its footer alone; raises as `read_footer`."""
        try:
            return self._metadata(name).schema.to_arrow_schema().remove_metadata()
        except (ValueError, pa.ArrowException) as error:
            raise self._damaged(name, error) from None

    def has_seal(self, name: str) -> bool:
        """Return whether a Parquet file carries digests; those of older versions do not. Raises as `read_footer`."""
        return any(seal.encode() in (self._metadata(name).metadata or {}) for seal in SEALS)

    def _metadata(self, name: str) -> pq.FileMetaData:
        with self._reading(name), self.files.open(self.file_path(name), "rb") as file:
            tail = self._tail(file, file.seek(0, 2), name)
        try:
            return parsed_footer(footer_of(tail))
        except (ValueError, OSError, pa.ArrowException) as error:
            raise self._damaged(name, error) from None

    def _tail(self, file: BinaryIO, size: int, name: str) -> bytes:
        """Return the end of a Parquet file, with its whole footer if it has one."""
        with self._reading(name):
            file.seek(max(0, size - TAIL))
            tail = file.read()
            length = int.from_bytes(tail[-TAIL_BYTES:-4], "little") + TAIL_BYTES
            if TAIL < length <= size:
                file.seek(size - length)
                tail = file.read()
            return tail

    def _damaged(self, name: str, error: Exception) -> DamagedError:
        return DamagedError(name, self.path(name), store_reason(error))

    def write(self, name: str, data: bytes) -> None:
        """Publish a file, replacing one that is there."""
        with self._writing(name):
            if self.local:
                write_whole(Path(self.file_path(name)), data, self._guard)
            else:
                self._guard()
                upload_bytes(self.files, self.file_path(name), data)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Publish a JSON object, indented for people and sealed by a digest, its last entry."""
        self.write(name, sealed_json(content))

    def write_table(self, name: str, table: pa.Table, metadata: dict[str, str]) -> None:
        """Publish a table as a sealed Parquet file that carries `metadata` in its footer."""
        self.write(name, sealed_parquet(table, metadata))

    @contextmanager
    def table_writer(self, name: str, schema: pa.Schema, metadata: dict[str, str]) -> Iterator[SealedWriter]:
        """Give a writer of a sealed Parquet file, which is published at the end of the block; nothing if that raises.

        What the writer is given becomes row groups; it holds no more than the one that is not full yet.

        Args:
            name: the file.
            schema: of the tables.
            metadata: entries of the file's footer.
        """
        with self.open_new(name) as file, SealedWriter(file, schema, metadata) as writer:
            yield writer

    @contextmanager
    def open_new(self, name: str) -> Iterator[ExplainedFile]:
        """Open a file for writing, which is published at the end of the block; nothing if the block raises.

        Files for an object store are written to a temporary file on the local disk, and then uploaded.
        """
        file: IO[bytes]
        with ExitStack() as whole:
            if self.local:
                with self._writing(name):
                    file = whole.enter_context(open_whole(Path(self.file_path(name)), self._guard))
            else:
                file = whole.enter_context(NamedTemporaryFile())
            yield ExplainedFile(file, lambda: self._writing(name))
            with self._writing(name):
                if not self.local:
                    self._guard()
                    upload_file(self.files, self.file_path(name), file)
                whole.pop_all().close()

    def upload(self, name: str, path: Path) -> None:
        """Publish a file of the local disk in a store, in parts that appear together."""
        with path.open("rb") as file, self._writing(name):
            file.seek(0, 2)
            self._guard()
            upload_file(self.files, self.file_path(name), file)

    def stored(self, name: str) -> tuple[int, str] | None:
        """Return the size of a file in a store, and the tag that changes with its content; None if it is not there."""
        found = self._details(name)
        return (found["size"], tag_of(found)) if found.get("type") == "file" else None

    def create(self, name: str, data: bytes) -> bool:
        """Publish a file unless there is one, and return whether this call did. Of several writers at once one does.

        Where the store has no conditional writes (S3, GCS and Azure have), the last of several at once wins.

        Args:
            name: the file.
            data: its bytes, which must differ from those of any other writer: by them a writer whose answer was lost
                knows its own file.
        """
        path = self.file_path(name)
        if self.local:
            with self._writing(name):
                return create_whole(Path(path), data)
        # a store that does not know the condition may take no notice of it
        if self.exists(name):
            return False
        with self._writing(name):
            try:
                upload_bytes(self.files, path, data, mode="create")
            except Exception as error:
                if isinstance(error, NotImplementedError | TypeError) or getattr(error, "errno", None) == errno.ENOSYS:
                    upload_bytes(self.files, path, data)
                elif not self.exists(name):
                    raise
        with self._reading(name), suppress(FileNotFoundError):
            return self.files.cat_file(path) == data
        return False

    @contextmanager
    def local_file(self, name: str) -> Iterator[str]:
        """Give the path of a file on the local disk: its own, or that of a copy that goes at the end of the block."""
        path = self.file_path(name)
        if self.local:
            with self._reading(name):
                open(path, "rb").close()
            yield path
            return
        with NamedTemporaryFile() as copied:
            with self._reading(name):
                self.files.get_file(path, copied.name)
            yield copied.name

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        with self._writing(name), suppress(FileNotFoundError, NotADirectoryError):
            self._guard()
            self.files.rm_file(self.file_path(name))

    def file_path(self, name: str) -> str:
        """Return the path of a file in the file system `files`."""
        return str(PurePosixPath(self.root) / name)

    def _details(self, name: str) -> dict[str, Any]:
        with self._explained(name), _unless_absent():
            self.files.invalidate_cache()
            return self.files.info(self.file_path(name))
        return {}

    def _reading(self, name: str) -> AbstractContextManager[None]:
        at = Path(self.file_path(name))
        if self.local and at.exists() and not (at.is_file() or at.is_dir()):
            raise OutputError(f"{self.path(name)} is a pipe or a device, which is not read: put the file in its place")
        return self._explained(name)

    def _explained(self, name: str) -> AbstractContextManager[None]:
        advice = "check that it exists and that you may read it"
        return explained(OutputError, f"{self.path(name)} cannot be read", self.url, advice)

    def _writing(self, name: str) -> AbstractContextManager[None]:
        advice = "check the URL, and try again; nothing is lost"
        if self.local:
            advice = "choose a place with room that you may write to"
        what = f"output {self.url} cannot be written"
        if self.local and Path(self.file_path(name)).is_dir():
            what, advice = f"{self.path(name)} cannot be written", "a folder is in its place: move that away"
        return explained(OutputError, what, self.url, advice)


def _entries(metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes]:
    """Return the entries of a footer without its seal."""
    return {k: v for k, v in (metadata or {}).items() if k.decode("latin-1") not in SEALS}


def _unguarded() -> None:
    """Let everything be written."""


@contextmanager
def _unless_absent() -> Iterator[None]:
    """End the block where a file or folder is not there."""
    try:
        yield
    except Exception as error:
        if not is_absent(error):
            raise
