"""Seals: a Parquet or JSON file of OUT tells whether a single bit of it has changed since it was written.

A Parquet file carries two digests in its footer: one of all bytes before the footer, and one of the footer itself, in
which that digest counts as zeros. So a footer can be checked without reading the rows. A JSON file carries a digest of
its content, whatever its spaces. Files without a digest were written by an older version and are read as they are.
"""

import hashlib
import json
import re
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BODY, FOOTER = "body_sha256", "footer_sha256"
JSON_SEAL = "sha256"
SEALS = frozenset((BODY, FOOTER))
MAGIC = b"PAR1"
TAIL_BYTES = 8
"""Bytes after a Parquet footer: its length and the magic."""
_BLANK = "0" * 64
# an entry of a footer as Thrift writes it: the key, a mark for another string, its length of 64, the digest
_ENTRY = re.compile(rb"(body_sha256|footer_sha256)\x18\x40([0-9a-f]{64})")


def sealed_parquet(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """Encode a table as a sealed Parquet file, with checksums of its pages and `metadata` in its footer."""
    sink, schema = BytesIO(), table.schema.with_metadata(metadata)
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table.replace_schema_metadata(metadata))
        # all pages are written by now; what follows is the footer
        body = hashlib.sha256(sink.getbuffer()).hexdigest()
        writer.add_key_value_metadata({BODY: body, FOOTER: _BLANK})
    data = sink.getvalue()
    footer = footer_of(data)
    return data.replace(footer, _with_digest(footer, _digest(footer).encode()), 1)


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
