"""The header of a JPEG 2000: how deep its pixels are, and which of its tiles the file holds.

The code (ISO/IEC 15444-1) is a run of segments, each a marker of two bytes and a length; it is a file by itself, or the
content of the box `jp2c` of a file of boxes.
"""

import struct

_START = b"\xff\x4f\xff\x51"
_BOXES = b"\0\0\0\x0cjP  "
_TILE_PART = b"\xff\x90"


def precision(data: bytes) -> int | None:
    """Return the bits of the first component of a JPEG 2000, None if there is no whole header."""
    start = _code(data)
    if start is None or len(data) < start + 43:
        return None
    return (data[start + 42] & 0x7F) + 1


def count_tiles(data: bytes) -> int | None:
    """Return the number of tiles that the header of a JPEG 2000 says, None for anything else."""
    start = _code(data)
    if start is None or len(data) < start + 40:
        return None
    right, bottom, _, _, width, height, left, top = struct.unpack_from(">8I", data, start + 8)
    if not width or not height:
        return None
    return -(-(right - left) // width) * -(-(bottom - top) // height)


def tiles_there(data: bytes) -> set[int]:
    """Return the numbers of the tiles of a JPEG 2000 of which the file holds the beginning."""
    found, at = set[int](), (_code(data) or 0) + 2
    while at + 12 <= len(data) and data[at] == 0xFF:
        (length,) = struct.unpack_from(">H", data, at + 2)
        if data[at : at + 2] == _TILE_PART:
            tile, size = struct.unpack_from(">HI", data, at + 4)
            found.add(tile)
            if size == 0:  # the last one
                break
            length = size - 2
        at += 2 + max(length, 2)
    return found


def _code(data: bytes) -> int | None:
    """Return the byte at which the code begins, None if there is none."""
    if data.startswith(_START):
        return 0
    at = 0 if data.startswith(_BOXES) else len(data)
    while at + 16 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            head, size = 16, struct.unpack_from(">Q", data, at + 8)[0]
        if name == b"jp2c":
            return at + head if data.startswith(_START, at + head) else None
        at += size if size >= head else len(data)
    return None
