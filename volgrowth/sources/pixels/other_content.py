"""What bytes hold that are no encoded image, told from their beginning, and how to make images of them."""

import re

BASE64 = re.compile(rb"data:image/|(/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|AAAA[\w+/]{2}Z0eXB)[A-Za-z0-9+/_=-]{20}")
"""The beginning of an image that was written as text: JPEG, PNG, GIF, WebP, TIFF, and AVIF or HEIC."""
_ENCODE = "encode it with PIL.Image.fromarray"
_KINDS = (
    (re.compile(rb"\x93NUMPY"), f"a NumPy array (.npy), not an encoded image: {_ENCODE}"),
    (re.compile(rb"\x80[\x02-\x05]"), f"a pickle, which is never opened: load it and {_ENCODE}"),
    (re.compile(rb"PK\x03\x04"), f"a zip archive, as torch.save and numpy.savez write: load it and {_ENCODE}"),
    (BASE64, "an image as base64 text: decode it with base64.b64decode"),
    (re.compile(rb"\s*<(!doctype )?html", re.IGNORECASE), "a web page, not an image: download the image again"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?<svg", re.IGNORECASE), "a drawing (SVG): render it to pixels"),
    (re.compile(rb"%PDF"), "a PDF, not an image: render it to pixels"),
    (re.compile(rb"\x1f\x8b"), "compressed with gzip: unpack it"),
    (re.compile(rb"(https?|s3|gs)://\S"), "a URL, which is not fetched: download the image"),
)


def describe_content(data: bytes) -> str | None:
    """Return what bytes hold that are no image, and what to do about it; None if their beginning does not tell."""
    beginning = data[:200]
    return next((said for pattern, said in _KINDS if pattern.match(beginning)), None)
