"""Seals: a Parquet or JSON file of OUT tells whether a single bit of it has changed since it was written.

A Parquet file carries two digests in its footer: one of all bytes before the footer, and one of the footer itself, in
which that digest counts as zeros. So a footer can be checked without reading the rows. A JSON file carries a digest of
its content, whatever its spaces. Files without a digest were written by an older version and are read as they are.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

BODY, FOOTER = "body_sha256", "footer_sha256"
JSON_SEAL = "sha256"
SEALS = frozenset((BODY, FOOTER))
MAGIC = b"PAR1"
TAIL_BYTES = 8
"""Bytes after a Parquet footer: its length and the magic."""
GROUP_ROWS, GROUP_BYTES = 1 << 14, 64 << 20
"""Rows or bytes of a row group, from which on it is written: a footer has 3 KB for each, and readers hold one."""
_BLANK = "0" * 64
# an entry of a footer as Thrift writes it: the key, a mark for another string, its length of 64, the digest
_ENTRY = re.compile(rb"(body_sha256|footer_sha256)\x18\x40([0-9a-f]{64})")


class Writable(Protocol):
    """What is written to from its beginning to its end: a file, or what passes on to one."""

    def write(self, data: bytes, /) -> int: ...


class SealedWriter:
    """Writes a sealed Parquet file piece by piece: tables become row groups, several small ones together.

    Args:
        file: open for writing, from its beginning.
        schema: of all tables.
        metadata: entries of the file's footer.
    """

    def __init__(self, file: Writable, schema: pa.Schema, metadata: dict[str, str]):
        self.schema = schema.with_metadata(metadata)
        self._sink = _Sink(file)
        self._parquet = pq.ParquetWriter(self._sink, self.schema, compression="zstd", write_page_checksum=True)
        self._waiting: list[pa.Table] = []

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Write rows, with checksums of their pages.

        Raises:
            ValueError: they have other columns than the file.
        """
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        if not table.schema.equals(self.schema):
            raise ValueError(f"rows of another schema: {table.schema}, expected {self.schema}")
        self._waiting.append(table.replace_schema_metadata(self.schema.metadata))
        rows_waiting = sum(len(each) for each in self._waiting)
        if rows_waiting >= GROUP_ROWS or sum(each.nbytes for each in self._waiting) >= GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        if self._waiting:
            self._parquet.write_table(pa.concat_tables(self._waiting))
        self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the footer with both digests; the file is no Parquet file before, nor if the block raised."""
        if kind is None:
            self._write_group()
            # all pages are written by now; what follows is the footer
            self._parquet.add_key_value_metadata({BODY: self._sink.digest.hexdigest(), FOOTER: _BLANK})
        self._sink.held = bytearray()
        self._parquet.close()
        if kind is None:
            end = bytes(self._sink.held)
            footer = footer_of(end)
            self._sink.file.write(end.replace(footer, _with_digest(footer, _digest(footer).encode()), 1))


class _Sink:
    """The file that Arrow writes to: it passes bytes on and digests them, and holds back the footer.

    Attributes:
        digest: of the bytes that were passed on.
        held: bytes that are held back; None while they are passed on.
    """

    closed = False

    def __init__(self, file: Writable):
        self.file, self.digest, self._at = file, hashlib.sha256(), 0
        self.held: bytearray | None = None

    def write(self, data: bytes) -> int:
        if self.held is None:
            self.file.write(data)
            self.digest.update(data)
        else:
            self.held += data
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        pass


def sealed_parquet(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """Encode a table as a sealed Parquet file, with checksums of its pages and `metadata` in its footer."""
    file = BytesIO()
    with SealedWriter(file, table.schema, metadata) as writer:
        writer.write(table)
    return file.getvalue()


def parsed_footer(footer: bytes) -> pq.FileMetaData:
    """Return what a footer says of its file.

    Raises:
        ValueError: it is no footer, or has changed since it was written.
    """
    check_footer(footer)
    whole = MAGIC + footer + len(footer).to_bytes(4, "little") + MAGIC
    return pq.read_metadata(arrow_file(whole))


def sealed_batches(
    read: Callable[[int, int], bytes], size: int, footer: bytes, columns: Sequence[str] | None, most: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file in order, while the memory holds the bytes of one row group.

    All bytes are read once and compared with the seal. Only at the end is it known that none has changed, and whoever
    takes the rows must do without them if this raises.

    Args:
        read: returns the bytes of the file from one position to another.
        size: of the file, in bytes.
        footer: of the file.
        columns: those to decode; names that the file lacks are left out. All for None.
        most: the most rows of a batch.

    Raises:
        ValueError, pyarrow.ArrowException: the file is cut off, or has changed since it was written.
    """
    body, digest, metadata = check_footer(footer), hashlib.sha256(), parsed_footer(footer)
    end, window = size - TAIL_BYTES - len(footer), _Window(size)
    file = pq.ParquetFile(window, metadata=metadata, page_checksum_verification=True)
    names = set(file.schema_arrow.names)
    chosen = None if columns is None else [name for name in dict.fromkeys(columns) if name in names]
    starts = _group_starts(metadata)
    for group, stop in zip(starts, [*starts.values(), end][1:], strict=False):
        window.start = window.stop
        if not window.start < stop <= end:
            raise ValueError("its row groups are not one after the other")
        window.data = read(window.start, stop)
        digest.update(window.data)
        yield from file.iter_batches(most, [group], chosen, use_threads=False)
    if window.stop < end:  # a file, or its end, without rows
        digest.update(read(window.stop, end))
    if body is not None and digest.hexdigest() != body:
        raise ValueError("its pages have changed since they were written")


def _group_starts(metadata: pq.FileMetaData) -> dict[int, int]:
    """Return where each row group of a file that has rows begins, by its number."""

    def start(group: pq.RowGroupMetaData) -> int:
        chunks = (group.column(index) for index in range(group.num_columns))
        return min(at for chunk in chunks for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at)

    groups = ((index, metadata.row_group(index)) for index in range(metadata.num_row_groups))
    return {index: start(group) for index, group in groups if group.num_rows}


class _Window:
    """A file of which only one part is there: the bytes of the row group that is decoded.

    Arrow reads it in the thread that asks for rows: see `arrow_file` for what other threads would do.
    """

    closed = False

    def __init__(self, size: int):
        self.size, self.start, self.data, self._at = size, 0, b"", 0

    @property
    def stop(self) -> int:
        return self.start + len(self.data)

    def read(self, count: int = -1) -> bytes:
        first = self._at - self.start
        last = len(self.data) if count < 0 else first + count
        if not 0 <= first <= last <= len(self.data):
            raise ValueError("its row groups are not where its footer says")
        self._at += last - first
        return self.data[first:last]

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.data = b""


def footer_of(data: bytes) -> bytes:
    """Return the footer of a Parquet file from the end of its bytes.

    Raises:
        ValueError: the bytes do not end as a Parquet file, or do not reach back to the beginning of the footer.
    """
    length = int.from_bytes(data[-TAIL_BYTES:-4], "little")
    if data[-4:] != MAGIC or len(data) < length + TAIL_BYTES:
        raise ValueError("its end is missing")
    return data[-TAIL_BYTES - length : -TAIL_BYTES]


def check_footer(footer: bytes) -> str | None:
    """Check a footer against its own digest, and return the digest of what stands before it; None if it has no seal.

    Raises:
        ValueError: it has changed since it was written.
    """
    digests = dict(_ENTRY.findall(footer))
    # each key is looked for by itself, so that one flipped bit in a key does not make the file one without a seal
    if not digests and not any(key.encode() in footer for key in SEALS):
        return None
    if len(digests) < len(SEALS) or _digest(footer) != digests[FOOTER.encode()].decode():
        raise ValueError("its footer has changed since it was written")
    return digests[BODY.encode()].decode()


def check_parquet(data: bytes) -> None:
    """Check all bytes of a Parquet file against its seal, if it has one.

    Raises:
        ValueError: it is cut off, or has changed since it was written.
    """
    footer = footer_of(data)
    body = check_footer(footer)
    if body is not None:
        before = memoryview(data)[: len(data) - TAIL_BYTES - len(footer)]
        if hashlib.sha256(before).hexdigest() != body:
            raise ValueError("its pages have changed since they were written")


def has_seal(data: bytes) -> bool:
    """Return whether a Parquet or JSON file carries digests; files of older versions do not."""
    end = data[-TAIL_BYTES - int.from_bytes(data[-TAIL_BYTES:-4], "little") :] if data[-4:] == MAGIC else data[-100:]
    return any(seal.encode() in end for seal in (FOOTER, f'"{JSON_SEAL}"'))


def sealed_json(content: dict[str, Any]) -> bytes:
    """Encode a JSON object, indented for people, with a digest of it as the last entry."""
    return (json.dumps({**content, JSON_SEAL: _json_digest(content)}, indent=2) + "\n").encode()


def opened_json(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a file without its digest, after checking it against that, if it has one.

    Raises:
        ValueError: it is no JSON object, or has changed since it was written.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, expected a JSON object")
    digest = content.pop(JSON_SEAL, None)
    if digest is not None and digest != _json_digest(content):
        raise ValueError("it has changed since it was written; remove its entry sha256 if you meant to change it")
    return content


def _json_digest(content: dict[str, Any]) -> str:
    # as it is read back: keys become strings, tuples lists
    read_back = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(read_back, sort_keys=True).encode()).hexdigest()


def _digest(footer: bytes) -> str:
    return hashlib.sha256(_with_digest(footer, _BLANK.encode())).hexdigest()


def _with_digest(footer: bytes, digest: bytes) -> bytes:
    """Return a footer with another digest of itself."""

    def replaced(entry: re.Match[bytes]) -> bytes:
        return entry[0] if entry[1] == BODY.encode() else entry[0][: -len(digest)] + digest

    return _ENTRY.sub(replaced, footer)


def arrow_file(data: bytes | bytearray) -> pa.BufferReader:
    """Copy bytes into memory of Arrow's own, and return it as a file that Arrow's readers take.

    Arrow's threads may let go of a file a moment after the reader has returned. If the file is a Python object, such
    as a `BytesIO` or a view of `bytes`, they need the interpreter for that. If the interpreter is ending just then, the
    process aborts with "terminate called without an active exception" (apache/arrow issues 34314 and 45214).
    """
    memory = pa.BufferOutputStream()
    memory.write(data)
    return pa.BufferReader(memory.getvalue())
