"""Features of an image apart from any model: complexity for calibration, hashes for duplicates.

They are all computed from the pixels that the model sees, so images that differ only in their encoding agree. Small
images are taken several at once, since a call of NumPy costs as much as a small image. Integers are kept as long as
possible, and as small: sums of them are exact, and do not depend on the order of addition.
"""

import hashlib
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

PNG_COMPRESS_LEVEL = 6
"""Pillow's own default, fixed here since older outputs hold sizes of such files."""

PNG_METHOD = 2
"""How `png_bytes` is measured: 1 is the size of a PNG file, as older versions wrote it, 2 is `_png_bytes`."""

PNG_FRAME = 57
"""Bytes of a PNG file that holds no pixels: signature, header, and the ends of its parts."""

EDGE = 0.2
"""Least difference of neighbouring values in [-1, 1] that counts as an edge: 25.5 of 255."""

BLOCK_BYTES = 1 << 18
"""Pixels that are measured at once: more of them do not stay in a core's own cache."""

# sides of the image that a perceptual hash is made of, and of the lowest frequencies that it keeps
_HASHED, _LOW = 32, 8


def features(pixels: np.ndarray, png_method: int = PNG_METHOD) -> dict[str, float | int]:
    """Return the features of one image, as `features_of_each` does."""
    return features_of_each([pixels], png_method)[0]


def features_of_each(images: Sequence[np.ndarray], png_method: int = PNG_METHOD) -> list[dict[str, float | int]]:
    """Return the complexity and the hashes of images, under the names of `volgrowth.records.SCORES`.

    With x = pixels / 127.5 - 1 and d the differences of x between vertical and horizontal neighbours, over
    all channels:

    - `mean` = mean(x), `variance` = mean((x - mean)^2)
    - `total_variation` = mean |d|, `edge_density` = share of |d| > 0.2; both 0 when there are no neighbours
    - `png_bytes` = `_png_bytes`; by method 1 the size of the image as a PNG file, compress level `PNG_COMPRESS_LEVEL`
    - `phash` = `imagehash.phash`, 64 bits, the first bit the highest
    - `content_hash` = first 8 bytes, big-endian, of blake2b over the shape as three little-endian int64 and
      the pixels

    Args:
        images: each (C, H, W) uint8, C 1 or 3, all of one shape.
        png_method: see `PNG_METHOD`; all rows of an audit have the same one, which its manifest holds.

    Returns:
        For each image one number for each name, integers for sizes and hashes.

    Raises:
        ValueError: the pixels have another shape or type.
    """
    found: list[dict[str, float | int]] = []
    for image in images:
        if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != np.uint8 or image.shape != images[0].shape:
            raise ValueError(f"pixels {image.shape} {image.dtype}: expected (1 or 3, H, W) uint8, all of one shape")
    at_once = max(1, BLOCK_BYTES // max(images[0].size, 1)) if images else 1
    for start in range(0, len(images), at_once):
        some = images[start : start + at_once]
        found += _of_block(np.array(some) if len(some) > 1 else np.ascontiguousarray(some[0])[None], png_method)
    return found


def _of_block(block: np.ndarray, png_method: int) -> list[dict[str, float | int]]:
    """Return the features of images (n, C, H, W), contiguous."""
    sizes = _png_bytes(block) if png_method == PNG_METHOD else [len(encode_png(image)) for image in block]
    columns = {"png_bytes": sizes, **_statistics(block), "phash": _phash(block), "content_hash": _content_hash(block)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _png_bytes(block: np.ndarray) -> list[int]:
    """Return the size of a PNG file of each image whose coder takes one value at a time, by how often each comes.

    PNG replaces each value by its difference to the left neighbour (filter Sub) or to the upper one (Up), modulo 256.
    Of n differences, of which n_v have value v, no such coder makes fewer than n log2 n - sum_v n_v log2 n_v bits. The
    mean of that over both filters, in whole bytes, and `PNG_FRAME` say as much about growth as the size of a file whose
    filters and repeated strings are searched for, in a tenth of its time (docs/performance.md).
    """
    left, up = block.copy(), block.copy()
    left[..., 1:] -= block[..., :-1]
    up[:, :, 1:] -= block[:, :, :-1]
    steps = np.concatenate([left.reshape(len(block), -1), up.reshape(len(block), -1)])
    times = np.array([np.bincount(each, minlength=256) for each in steps])
    bits = block[0].size * np.log2(block[0].size) - (times * np.log2(np.maximum(times, 1))).sum(1)
    # a flat image has no bits, up to rounding
    return (PNG_FRAME + np.ceil(bits.reshape(2, -1).mean(0) / 8 - 1e-6).astype(int)).tolist()


def _statistics(block: np.ndarray) -> dict[str, list[float]]:
    flat = block.reshape(len(block), -1)
    size = flat.shape[1]
    squares = flat.astype(np.uint16)
    squares *= squares  # 255^2 fits
    total, total_squares = _sums(flat), _sums(squares)
    steps = [_steps(block[:, :, 1:], block[:, :, :-1]), _steps(block[..., 1:], block[..., :-1])]
    neighbours = max(sum(each.shape[1] for each in steps), 1)
    # In integers, size^2 * variance: no cancellation, so a flat image has exactly 0.
    spread = [size * squared - summed * summed for squared, summed in zip(total_squares, total, strict=True)]
    return {
        "variance": [each / size**2 / 127.5**2 for each in spread],
        "total_variation": [(a + b) / neighbours / 127.5 for a, b in zip(*map(_sums, steps), strict=True)],
        "mean": [each / size / 127.5 - 1 for each in total],
        "edge_density": [(a + b) / neighbours for a, b in zip(*map(_edges, steps), strict=True)],
    }


def _steps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return |one - other| of uint8 values (n, ...), which does not leave uint8, as (n, values)."""
    found = np.maximum(one, other)
    found -= np.minimum(one, other)
    return found.reshape(len(found), found[0].size)


def _sums(values: np.ndarray) -> list[int]:
    """Return the sums of the rows of uint8 or uint16 values, in the smaller type that holds them."""
    fits = values.shape[1] < 1 << 16
    return values.sum(1, dtype=np.uint32 if fits else np.uint64).tolist()


def _edges(steps: np.ndarray) -> list[int]:
    return [int(np.count_nonzero(each)) for each in steps > int(EDGE * 127.5)]


def _image(pixels: np.ndarray) -> Image.Image:
    if pixels.shape[0] == 1:
        return Image.fromarray(pixels[0])
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def encode_png(pixels: np.ndarray) -> bytes:
    """Return (C, H, W) uint8 pixels, C 1 or 3, as the bytes of a PNG file."""
    stream = io.BytesIO()
    _image(pixels).save(stream, "PNG", compress_level=PNG_COMPRESS_LEVEL)
    return stream.getvalue()


def _phash(block: np.ndarray) -> list[int]:
    """Return the hash of each image that `imagehash.phash` gives, whose steps are taken for all images at once."""
    from scipy.fft import dct  # a tenth of a second to import, and only a worker needs it

    n, channels, height, width = block.shape
    # one image below another: a conversion to grey looks at one pixel at a time
    column = _image(block.transpose(1, 0, 2, 3).reshape(channels, n * height, width)).convert("L")
    grey = np.asarray(column).reshape(n, height, width)
    if (height, width) != (_HASHED, _HASHED):
        small = [Image.fromarray(each).resize((_HASHED, _HASHED), Image.Resampling.LANCZOS) for each in grey]
        grey = np.array([np.asarray(each) for each in small])
    waves = dct(dct(grey, axis=1)[:, :_LOW], axis=2)[:, :, :_LOW].reshape(n, -1)
    bits = np.packbits(waves > np.median(waves, axis=1, keepdims=True), axis=1)
    return [int.from_bytes(each.tobytes(), "big") for each in bits]


def _content_hash(block: np.ndarray) -> list[int]:
    shape = hashlib.blake2b(np.array(block.shape[1:], dtype="<i8").tobytes())
    found = []
    for image in block:
        digest = shape.copy()
        digest.update(image.data)
        found.append(int.from_bytes(digest.digest()[:8], "big"))
    return found
