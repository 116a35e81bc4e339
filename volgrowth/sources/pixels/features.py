"""Features of an image apart from any model: complexity for calibration, hashes for duplicates.

They are all computed from the pixels that the model sees, so images that differ only in their encoding agree.
Integers are kept as long as possible, and as small: sums of them are exact, and do not depend on the order of addition.
"""

import hashlib
import io

import imagehash
import numpy as np
from PIL import Image

PNG_COMPRESS_LEVEL = 6
"""Pillow's own default, fixed here because sizes are compared within a data set."""

EDGE = 0.2
"""Least difference of neighbouring values in [-1, 1] that counts as an edge: 25.5 of 255."""


def features(pixels: np.ndarray) -> dict[str, float | int]:
    """Return the complexity and the hashes of one image, under the names of `volgrowth.records.SCORES`.

    With x = pixels / 127.5 - 1 and d the differences of x between vertical and horizontal neighbours, over
    all channels:

    - `mean` = mean(x), `variance` = mean((x - mean)^2)
    - `total_variation` = mean |d|, `edge_density` = share of |d| > 0.2; both 0 when there are no neighbours
    - `png_bytes` = size of the image as PNG, compress level `PNG_COMPRESS_LEVEL`
    - `phash` = `imagehash.phash`, 64 bits, the first bit the highest
    - `content_hash` = first 8 bytes, big-endian, of blake2b over the shape as three little-endian int64 and
      the pixels

    Args:
        pixels: (C, H, W) uint8, C 1 or 3.

    Returns:
        One number for each name, integers for sizes and hashes.

    Raises:
        ValueError: the pixels have another shape or type.
    """
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"pixels {pixels.shape} {pixels.dtype}: expected (1 or 3, H, W) uint8")
    image = _image(pixels)
    return {"png_bytes": len(encode_png(pixels)), **_statistics(pixels), "phash": _phash(image), **_content(pixels)}


def _statistics(pixels: np.ndarray) -> dict[str, float]:
    size, total = pixels.size, int(pixels.sum(dtype=np.uint64))
    squares = pixels.ravel().astype(np.uint16)
    squares *= squares  # 255^2 fits
    steps = np.concatenate([_steps(pixels[:, 1:], pixels[:, :-1]), _steps(pixels[:, :, 1:], pixels[:, :, :-1])])
    neighbours = max(steps.size, 1)
    return {
        # In integers, size^2 * variance: no cancellation, so a flat image has exactly 0.
        "variance": (size * int(squares.sum(dtype=np.uint64)) - total * total) / size**2 / 127.5**2,
        "total_variation": int(steps.sum(dtype=np.uint64)) / neighbours / 127.5,
        "mean": total / size / 127.5 - 1,
        "edge_density": int(np.count_nonzero(steps > EDGE * 127.5)) / neighbours,
    }


def _steps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return |one - other| of uint8 values, which does not leave uint8, in one dimension."""
    found = np.maximum(one, other)
    found -= np.minimum(one, other)
    return found.ravel()


def _image(pixels: np.ndarray) -> Image.Image:
    if pixels.shape[0] == 1:
        return Image.fromarray(pixels[0])
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def encode_png(pixels: np.ndarray) -> bytes:
    """Return (C, H, W) uint8 pixels, C 1 or 3, as the bytes of a PNG file."""
    stream = io.BytesIO()
    _image(pixels).save(stream, "PNG", compress_level=PNG_COMPRESS_LEVEL)
    return stream.getvalue()


def _phash(image: Image.Image) -> int:
    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "big")


def _content(pixels: np.ndarray) -> dict[str, int]:
    digest = hashlib.blake2b(np.array(pixels.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return {"content_hash": int.from_bytes(digest.digest()[:8], "big")}
