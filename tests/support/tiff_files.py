"""TIFF files of any bit depth, polarity and layout, which Pillow cannot write."""

import struct
import zlib
from typing import Any

import numpy as np


def packed(values: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Return the rows of (H, W) integers with `bits` each, the first in the highest bits, each row in whole bytes."""
    if bits in (8, 16, 32):
        return values.astype(f"{order}u{bits // 8}").tobytes()
    each = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def tiff(
    planes: np.ndarray, bits: int, photometric: int, order: str = "<", packing: int = 1, planar: int = 1, **tags: Any
) -> bytes:
    """Return a TIFF of one strip a plane.

    Args:
        planes: (C, H, W) integers of `bits` each.
        bits: of a sample.
        photometric: what the numbers mean: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 Lab.
        order: `<` or `>`.
        packing: 1 for none, 8 for zlib.
        planar: 1 for samples side by side, 2 for one plane after the other.
        tags: further tags as `t339=[1]`, of 16-bit integers.
    """
    channels, height, width = planes.shape
    pages = planes if planar == 2 else planes.transpose(1, 2, 0).reshape(1, height, -1)
    strips = [packed(page, bits, order) for page in pages]
    strips = [zlib.compress(strip) for strip in strips] if packing == 8 else strips
    starts = [8 + sum(map(len, strips[:k])) for k in range(len(strips))]
    entries = {
        256: [width], 257: [height], 258: [bits] * channels, 259: [packing], 262: [photometric], 277: [channels],
        278: [height], 284: [planar], **{int(name[1:]): value for name, value in tags.items()},
    }  # fmt: skip
    fields = {tag: (3, len(v), struct.pack(f"{order}{len(v)}H", *v)) for tag, v in entries.items()}
    for tag, numbers in ((273, starts), (279, list(map(len, strips)))):
        fields[tag] = (4, len(numbers), struct.pack(f"{order}{len(numbers)}I", *numbers))
    body, at = b"".join(strips), 8 + sum(map(len, strips))
    at += at % 2
    table, more = struct.pack(f"{order}H", len(fields)), b""
    behind = at + 2 + 12 * len(fields) + 4
    for tag, (kind, count, value) in sorted(fields.items()):
        if len(value) > 4:
            pointer, more = struct.pack(f"{order}I", behind + len(more)), more + value + b"\0" * (len(value) % 2)
        else:
            pointer = value.ljust(4, b"\0")
        table += struct.pack(f"{order}HHI", tag, kind, count) + pointer
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", at)
    return (head + body).ljust(at, b"\0") + table + struct.pack(f"{order}I", 0) + more
