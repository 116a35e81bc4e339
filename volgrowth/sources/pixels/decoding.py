"""One encoded image becomes the pixels that the model sees.

The rules, the same for every source:

- Formats: those of `FORMATS`, recognised by content. EPS is not among them because Pillow runs Ghostscript on
  it. HEIF needs the extra `heif`.
- Size limit: width * height is compared with `max_pixels` from the header, before any pixel is decoded; files that
  are bombs in another way are refused by their structure (`bombs`).
- Orientation: as EXIF says; EXIF that cannot be read is taken as upright.
- Animations and files of several pages: the first. Of HEIF the primary image.
- Depth and polarity: as the header says, see `tonal_range`.
- Mode: Pillow's `convert("L")` or `convert("RGB")`, as the training scripts of diffusers do, so alpha and
  transparency are dropped and not blended.
- Size: an image of the model's size is left alone; another is cropped at its centre to the model's aspect and
  resized bilinearly, in one step. One that would lose more than three quarters to the crop is of the wrong
  shape.
- Reduced decoding: a JPEG of at least 8, 16 or 32 times the model's longer side in both of its sides is decoded at
  1/2, 1/4 or 1/8 of its size, which its coding offers, so that the resizing still starts from at least `REDUCED`
  times the model's size; whole, if EXIF turns an image whose sides are no multiples of 8. It takes half the time.
  Against decoding it whole, pixels move by .25 of 255 in the mean and by 4 at most (with `REDUCED` = 2 by .9 and 9,
  in the same time).
- Anything that cannot be decoded whole, truncated files included, is undecodable. A JPEG that lacks its end mark and
  nothing else is whole, as for training scripts with `LOAD_TRUNCATED_IMAGES`, which give the same pixels.

Safe in threads: nothing global is set, in Pillow or in `warnings`. Pillow's own warning and error about
decompression bombs come from `Image.open`, which is why formats are opened here one by one.
"""

import io
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from volgrowth.records import Status
from volgrowth.sources.pixels.bad_image import BadImage
from volgrowth.sources.pixels.bombs import refuse_bomb, without_comments
from volgrowth.sources.pixels.jpeg_scans import with_end_mark
from volgrowth.sources.pixels.other_content import describe_content
from volgrowth.sources.pixels.tonal_range import check_header, in_8_bits, mend_palette, pixels_of_ppm

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "TGA": (".tga",),
}
"""Pillow's name of each format that is read, and the extensions of its files."""
EXTENSIONS = frozenset(extension for extensions in FORMATS.values() for extension in extensions)
"""The extensions of image files, in lower case, with their dots."""

MAX_CROP = 4
"""Largest factor between an image's aspect and the model's: 4 leaves a quarter of the image."""

REDUCED = 4
"""Least size of a JPEG that is not decoded whole, in sides of the model's images."""

_ORIENTATION = 0x0112
_MODES = {1: "L", 3: "RGB"}
_HEIF = (*(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), b"mif1", b"msf1")
"""Brands of HEIF files, which follow their size and `ftyp`."""
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
_TGA_KINDS = {0: (2, 3, 10, 11), 1: (1, 9)}
"""Kinds of TGA images without and with a colour map."""


def decode_image(data: bytes | None, image_shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    """Return the pixels of an encoded image, by the rules of this module.

    Args:
        data: the encoded image; None or empty is undecodable.
        image_shape: (C, H, W) of the model, C 1 or 3.
        max_pixels: the largest width * height that is decoded.

    Returns:
        (C, H, W) uint8, contiguous.

    Raises:
        BadImage: something is wrong with `data`.
        ValueError: `image_shape` is not a shape of images.
    """
    if len(image_shape) != 3 or image_shape[0] not in _MODES or min(image_shape) < 1:
        raise ValueError(f"image_shape {image_shape}: expected (C, H, W) with C 1 or 3")
    if not data:
        raise BadImage(Status.UNDECODABLE, "no bytes")
    try:
        refuse_bomb(data)
        return _decode_whole(data, image_shape, max_pixels)
    except (BadImage, MemoryError):  # a machine without memory says nothing about the image
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Raised inside some formats, where a frame or a tile is larger than the header said.
        raise BadImage(Status.TOO_LARGE, _short(error)) from None
    except Exception as error:
        # Pillow's formats raise whatever their parsers stumble over.
        raise BadImage(Status.UNDECODABLE, _short(error)) from None


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 pixels of any shape as float32 in [-1, 1]: x / 127.5 - 1."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _decode_whole(data: bytes, image_shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    try:
        return _decode(data, image_shape, max_pixels)
    except OSError:
        ended = with_end_mark(data)
        if ended is None:
            raise
        return _decode(ended, image_shape, max_pixels)


def _decode(data: bytes, image_shape: tuple[int, int, int], max_pixels: int) -> np.ndarray:
    channels, height, width = image_shape
    data = without_comments(data)
    with _open(data) as opened:
        _check_size(opened.size, max_pixels)
        check_header(opened)
        inner = _reduce(opened, REDUCED * max(height, width))
        image = in_8_bits(_upright(pixels_of_ppm(opened, data) or _loaded(opened)), opened, data)
        if image.mode != _MODES[channels]:
            # Dropped by the conversion in any case, but not without a warning for palettes.
            image.info.pop("transparency", None)
            image = image.convert(_MODES[channels])
    if image.size != (width, height):
        _check_aspect(image.size, (width, height))
        image = _fit(image, inner, (width, height))
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def _loaded(image: ImageFile) -> ImageFile:
    mend_palette(image)
    image.load()
    return image


def _reduce(image: ImageFile, side: int) -> tuple[float, float] | None:
    """Have a JPEG decoded at a part of its size, with both sides at least `side`.

    Returns:
        Its size then, if that is no whole number of pixels: the rest of the last row and column is padding. Else None.
    """
    if image.format not in ("JPEG", "MPO") or min(image.size) < 2 * side:
        return None
    if any(n % 8 for n in image.size) and _orientation(image) != 1:
        return None  # decoded whole: the padding would come to lie elsewhere
    drafted = image.draft(None, (side, side))
    inner = drafted and drafted[1][2:]
    return inner if inner != image.size else None


def _fit(image: Image.Image, inner: tuple[float, float] | None, size: tuple[int, int]) -> Image.Image:
    """Return an image cropped and resized as by `ImageOps.fit`, if only its pixels up to `inner` count."""
    if inner is None:
        return ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)
    ratio = size[0] / size[1]
    width, height = min(inner[0], ratio * inner[1]), min(inner[1], inner[0] / ratio)
    left, top = (inner[0] - width) / 2, (inner[1] - height) / 2
    return image.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))


def _open(data: bytes) -> ImageFile:
    """Return an image of which the header was read and no pixels."""
    Image.init()
    stream = io.BytesIO(data)
    reason = ""
    for name in FORMATS:
        factory, accepted = _format(name, data)
        if isinstance(accepted, str):
            reason = accepted  # recognised, but there is no codec
        if factory is None or not accepted or isinstance(accepted, str):
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            reason = f"broken {name} header: {_short(error)}"
    raise BadImage(Status.UNDECODABLE, reason or describe_content(data) or "not an image of a known format")


def _format(name: str, data: bytes) -> tuple[Any, bool | str]:
    """Return what opens images of a format, and whether `data` begins as one, or why it cannot be opened if it does."""
    factory, accept = Image.OPEN.get(name, (None, None))
    if name == "TGA":
        return factory, _is_tga(data)
    if name == "HEIF":
        if data[4:8] != b"ftyp" or data[8:12] not in _HEIF:
            return None, False
        try:
            from pillow_heif import HeifImageFile  # optional, and registering it with Pillow would be global
        except ImportError:
            return None, "HEIF, which needs the extra heif: pip install 'volgrowth[heif]'"
        return HeifImageFile, True
    return factory, accept(data[:16]) if accept else False


def _is_tga(data: bytes) -> bool:
    """Return whether a file ends as a TGA, or begins with a header that hardly anything else begins with."""
    if len(data) < 18 or data.endswith(_TGA_FOOTER):
        return data.endswith(_TGA_FOOTER)
    mapped, kind, depth, flags = data[1], data[2], data[16], data[17]
    plain = bool(mapped) or not any(data[3:8])
    return kind in _TGA_KINDS.get(mapped, ()) and depth in (8, 16, 24, 32) and flags < 64 and plain


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(Status.UNDECODABLE, f"the header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise BadImage(Status.TOO_LARGE, f"{width} x {height} pixels, more than the limit of {max_pixels}")


def _check_aspect(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    a, b = size[0] * wanted[1], size[1] * wanted[0]
    if max(a, b) > MAX_CROP * min(a, b):
        raise BadImage(
            Status.WRONG_SHAPE,
            f"{size[0]} x {size[1]} pixels, and the model's {wanted[0]} x {wanted[1]} would keep less than a quarter",
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # EXIF is free-form, and broken EXIF says nothing about the pixels.
        return 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    except Exception:
        return image  # as above


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text}"[:200]
