"""The scans of a JPEG file: how many it has, and whether a file without an end mark has all of them, whole.

A JPEG is a run of segments, each with a marker (0xFF and another byte), and scans: a header segment (SOS) followed by
coded data, in which 0xFF is always followed by 0 or by a restart marker. A progressive JPEG sends each coefficient of
the discrete cosine transform in several scans, bit by bit.
"""

import io
import re
import struct
from collections.abc import Iterator
from hashlib import sha256

from PIL.JpegImagePlugin import JpegImageFile

MAX_SCANS = 100
"""Most scans of an image, as libtiff has it: each costs a pass over all pixels, and usual encoders write about ten."""

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
"""Skips coded data, restart markers and fill bytes."""
_END, _SCAN, _FRAMES = 0xD9, 0xDA, (0xC0, 0xC1, 0xC2)
_ALONE = (0x01, 0xD8)
"""Markers without a segment."""
_END_MARK = b"\xff\xd9"
_ENDS = (b"", b"\x55" * 64, b"\xaa" * 64)
"""Bytes that are put where data is missing; the decoder itself puts zeros."""


def has_too_many_scans(data: bytes) -> bool:
    """Return whether the first image in a JPEG has more than `MAX_SCANS` scans."""
    # A quick look first: these bytes occur by chance as well, in thumbnails and in what follows the image.
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return False
    return sum(marker == _SCAN for marker, _ in _segments(data)) > MAX_SCANS


def with_end_mark(data: bytes) -> bytes | None:
    """Return a JPEG that lacks its end mark, and nothing else, with the mark; None if more is missing.

    What is missing is seen by putting different bytes in its place: whole data gives the same pixels before each.
    """
    if not data.startswith(b"\xff\xd8\xff") or not _all_scans(data):
        return None
    data = data.removesuffix(b"\xff")  # half of the mark
    pixels = {_digest(data + end + _END_MARK) for end in _ENDS}
    return data + _END_MARK if len(pixels) == 1 else None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each segment up to the end mark."""
    at = 2
    while match := _MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        if marker == _END:
            return
        if marker in _ALONE or at + 2 > len(data):
            continue
        (length,) = struct.unpack_from(">H", data, at)
        yield marker, data[at + 2 : at + length]
        at += max(length, 2)


def _all_scans(data: bytes) -> bool:
    """Return whether the scans of an image hold every coefficient of every component to its last bit."""
    missing = set[tuple[int, int]]()
    for marker, content in _segments(data):
        if marker in _FRAMES:
            missing = {(content[6 + 3 * k], c) for k in range((len(content) - 6) // 3) for c in range(64)}
        elif marker == _SCAN and len(content) >= 4:
            components = content[1 : 1 + 2 * content[0] : 2]
            first, last, bits = content[-3:]
            if bits & 0x0F == 0:
                missing -= {(component, c) for component in components for c in range(first, last + 1)}
    return not missing


def _digest(data: bytes) -> bytes:
    with JpegImageFile(io.BytesIO(data), "") as image:
        image.load()
        return sha256(image.tobytes()).digest()
