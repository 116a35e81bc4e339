"""Tars made by hand: what `tarfile` would not write."""

import io
import tarfile
from collections.abc import Iterable, Mapping


def ordinary(members: Iterable[tuple[str, bytes]], format_: int = tarfile.USTAR_FORMAT) -> bytes:
    """A whole archive with its end mark and padding."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def block(data: bytes) -> bytes:
    """Data filled up to whole blocks."""
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def header(
    name: str,
    data: bytes,
    kind: bytes = tarfile.REGTYPE,
    patches: Mapping[int, bytes] | None = None,
    size: int | None = None,
    target: str = "",
) -> bytes:
    """One member: a header that says `size`, with a right checksum after bytes were patched, and the data."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    content = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    said = len(data) if size is None else size
    content[124:136] = b"%011o\0" % said if 0 <= said < 1 << 33 else (said % (1 << 96)).to_bytes(12, "big")
    if said >= 1 << 33:
        content[124] = 0x80
    for at, patch in (patches or {}).items():
        content[at : at + len(patch)] = patch
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content)
    return bytes(content) + block(data)


def pax(kind: bytes = tarfile.XHDTYPE, **records: str) -> bytes:
    """A PAX header."""
    content = b""
    for keyword, value in records.items():
        rest = f" {keyword}={value}\n".encode()
        length = len(rest) + len(str(len(rest) + 2))
        content += str(length).encode() + rest
    return header("pax", content, kind)
