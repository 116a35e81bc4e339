"""Pictures in the page: small enough that thousands fit."""

import base64
import io

import numpy as np
from PIL import Image

LONGEST = 128
"""Pixels of a thumbnail's longer side."""

EXACT = 32
"""Images up to this side are kept as they are; larger ones are shrunk and compressed as JPEG."""

_JPEG_QUALITY = 82
_PNG_SIGNATURE = b"\x89PNG"


def thumbnail(pixels: np.ndarray) -> bytes:
    """Return a small PNG or JPEG file of an image; `pixels` (C, H, W) uint8 with 1 or 3 channels."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    if max(image.size) <= EXACT:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def data_url(picture: bytes) -> str:
    """Return a `data:` address that holds a thumbnail, a PNG or JPEG file."""
    kind = "png" if picture.startswith(_PNG_SIGNATURE) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
