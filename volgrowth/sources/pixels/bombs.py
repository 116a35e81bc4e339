"""Refuses small files that take a decoder minutes or gigabytes, by their structure, before any pixel is decoded."""

import re

from volgrowth.records import Status
from volgrowth.sources.pixels.bad_image import BadImage
from volgrowth.sources.pixels.jpeg_2000 import count_tiles, tiles_there
from volgrowth.sources.pixels.jpeg_scans import MAX_SCANS, has_too_many_scans

MAX_TILES = 10_000
"""Most tiles of a JPEG 2000: OpenJPEG takes 11 kB for each, and the largest image has 1,400 of the usual 256 pixels."""

_FILL = b"\xff" * 65_536
_COMMENTS = re.compile(rb"#[^\r\n]*[\r\n]")


def refuse_bomb(data: bytes) -> None:
    """Raise a BadImage if a file would take a decoder very long, or far more memory than its pixels."""
    if data.startswith(b"\xff\xd8"):
        if has_too_many_scans(data):
            raise BadImage(Status.TOO_LARGE, f"a JPEG of more than {MAX_SCANS} scans, each a pass over all pixels")
        # Pillow reads such bytes one by one, up to the first scan; padding behind a picture does no harm.
        if data.find(_FILL, 0, data.find(b"\xff\xda")) >= 0:
            raise BadImage(Status.UNDECODABLE, f"a JPEG with {len(_FILL)} fill bytes in a row")
    tiles = count_tiles(data)
    if tiles is None:
        return
    if tiles > MAX_TILES:
        raise BadImage(Status.TOO_LARGE, f"{tiles} tiles, more than the limit of {MAX_TILES}")
    there = len(tiles_there(data))
    if there < tiles:  # OpenJPEG leaves the others black
        raise BadImage(Status.UNDECODABLE, f"{there} of its {tiles} tiles are there")


def without_comments(data: bytes) -> bytes:
    """Return a PPM of plain text without its comments, for which Pillow takes time that grows with their square."""
    return _COMMENTS.sub(b"", data) if data[:2] in (b"P1", b"P2", b"P3") else data
