"""Pixels of any bit depth and polarity become 8-bit grey or RGB, black 0 and white 255.

Pillow's mode tells neither the range of values nor which end is black: `I;16` holds 12-bit and 16-bit TIFF alike, and
16-bit TIFF whose zero is white. Here the file's own header tells both. What has no range (floating-point, signed and
32-bit samples) or is no image by itself (a preview in front of a page, inks other than CMYK) is refused.

What is left to Pillow, as it is in training scripts: fewer than 8 bits (but for JPEG 2000) and 8-bit inversion; the
high byte of 16-bit colour; the colours of CMYK, YCbCr and Lab. A 16-bit sample is scaled by its full range, also where
the camera gave fewer bits: no header says so reliably. Gamma and colour profiles are not applied, as in training
scripts.
"""

import numpy as np
from PIL import Image, ImagePalette
from PIL.ImageFile import ImageFile

from volgrowth.records import Status
from volgrowth.sources.pixels.bad_image import BadImage
from volgrowth.sources.pixels.jpeg_2000 import precision

_SUBFILE, _BITS, _PHOTOMETRIC, _COLOR_MAP, _INKS, _SAMPLE_FORMAT, _SUBSAMPLING, _COMPRESSION, _PLANAR = (
    *(254, 258, 262, 320, 332, 339, 530, 259, 284),
)
"""Tags of TIFF."""
_WHITE_IS_ZERO, _PALETTE, _SEPARATED, _YCBCR, _CMYK = 0, 3, 5, 6, 1
_STEPS = {"La": "LA", "LAB": "RGB"}
"""Modes that Pillow converts to another only."""


def check_header(image: ImageFile) -> None:
    """Raise a BadImage if the header of an opened TIFF says that its pixels are none that a model could have seen."""
    if image.format != "TIFF":
        return
    tags = image.tag_v2  # type: ignore[attr-defined]
    formats = set(np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)).tolist())
    photometric, bits = tags.get(_PHOTOMETRIC, 0), np.atleast_1d(tags.get(_BITS, 1)).tolist()
    if tags.get(_SUBFILE, 0) & 1:
        raise BadImage(Status.WRONG_SHAPE, "the first page is a preview of another, as in raw files of cameras")
    if formats != {1}:
        raise BadImage(Status.WRONG_SHAPE, "samples that are signed or floating-point, whose range is not known")
    if photometric == _SEPARATED and tags.get(_INKS, _CMYK) != _CMYK:
        raise BadImage(Status.WRONG_SHAPE, "inks other than CMYK")
    if photometric == _YCBCR and tags.get(_COMPRESSION) == 1 and tags.get(_SUBSAMPLING, (1, 1)) != (1, 1):
        raise BadImage(Status.UNDECODABLE, "uncompressed YCbCr with fewer samples of colour, which Pillow cannot read")
    if tags.get(_PLANAR) == 2 and tags.get(_COMPRESSION) == 1 and len(bits) > 1 and max(bits) > 8:
        raise BadImage(Status.UNDECODABLE, "uncompressed planes of 16 bits, which Pillow reads as 8: use one plane")


def mend_palette(image: ImageFile) -> None:
    """Take the colour map of an opened TIFF for 8-bit values if none needs more, as libtiff does: some writers err."""
    colors = image.tag_v2.get(_COLOR_MAP) if image.format == "TIFF" else None  # type: ignore[attr-defined]
    if colors and image.mode == "P" and max(colors) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colors))


def in_8_bits(image: Image.Image, opened: ImageFile, data: bytes) -> Image.Image:
    """Return an image with 8 bits a channel.

    Args:
        image: the pixels, upright.
        opened: the image as it was opened, with its header.
        data: the encoded image.

    Raises:
        BadImage: the range of its values is not known.
    """
    if image.mode.startswith("I;16"):
        if opened.format != "TIFF":
            return _scaled(image, 65535)
        tags = opened.tag_v2  # type: ignore[attr-defined]
        bits = int(np.max(tags.get(_BITS, 16)))
        return _scaled(image, 2**bits - 1, inverted=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    if image.mode == "I" and opened.format in ("PNG", "PPM"):
        return _scaled(image, 65535)  # some versions of Pillow open 16-bit grey so
    if image.mode in ("F", "I"):
        raise BadImage(Status.WRONG_SHAPE, f"pixels of mode {image.mode}, whose range is not known")
    if opened.format == "JPEG2000":
        return _stretched(image, data)
    return image.convert(_STEPS[image.mode]) if image.mode in _STEPS else image


def _scaled(image: Image.Image, top: int, inverted: bool = False) -> Image.Image:
    """Return an image of integers 0..`top` as 8-bit grey; larger values are taken as `top`."""
    table = ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)
    values = np.asarray(image)
    # "I" is signed, with 32 bits.
    return Image.fromarray((table[::-1] if inverted else table)[np.clip(values, 0, top)])


def _stretched(image: Image.Image, data: bytes) -> Image.Image:
    """Return a JPEG 2000 of fewer than 8 bits with its white at 255: OpenJPEG fills the low bits with zeros."""
    bits = precision(data) or 8
    if bits >= 8 or image.mode not in ("L", "LA", "RGB", "RGBA"):
        return image
    top = 2**bits - 1
    table = [round((value >> (8 - bits)) * 255 / top) for value in range(256)]
    return image.point(table * len(image.getbands()))


def pixels_of_ppm(opened: ImageFile, data: bytes) -> Image.Image | None:
    """Return the pixels of a binary PGM or PPM of another depth than 8 bits, which Pillow decodes one by one in Python.

    The values are those that Pillow gives. None for any other image.
    """
    tile = opened.tile[0] if opened.format == "PPM" and opened.tile else None
    if tile is None or tile[0] != "ppm":
        return None
    assert isinstance(tile[3], tuple)
    maxval, bands = int(tile[3][1]), len(opened.getbands())
    kind = np.dtype(">u2" if maxval > 255 else np.uint8)
    shape = (opened.height, opened.width, bands)
    count = shape[0] * shape[1] * bands
    if len(data) - tile[2] < count * kind.itemsize:
        raise BadImage(Status.UNDECODABLE, "image file is truncated")
    values = np.frombuffer(data, kind, count, tile[2]).clip(0, maxval)
    most = 65535 if opened.mode == "I" else 255
    table = np.rint(np.arange(maxval + 1) / maxval * most).astype(np.int64)
    pixels = ((table + 128) // 257 if most == 65535 else table).astype(np.uint8)[values].reshape(shape)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels)
