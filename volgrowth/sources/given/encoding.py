"""One image that is an object becomes the bytes of a PNG file: arrays, tensors and images of Pillow.

What the numbers of an array mean is never guessed. Numbers of type uint8 are pixels from 0 to 255. Of floating-point
numbers the caller must say the range. Image files have 8 bits, so floating-point numbers are rounded to the nearest
step of 1/255 of the range; those that lie between steps are counted.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from volgrowth.errors import DataError
from volgrowth.plain import kind_of

ValueRange = tuple[float, float] | None
STEPS = 255
CLOSE = 0.02
"""Share of a step up to which a number counts as the step itself: more than the rounding of float16 near 1."""
_CHANNELS = (1, 3)
_SAVED = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
_CONVERTED = ("CMYK", "YCbCr", "LAB", "HSV", "RGBX", "La", "RGBa", "PA")


@dataclass
class Encoder:
    """Encodes images, and counts pixel values that 8 bits cannot hold.

    Args:
        called: what the user calls the images, such as "images"; errors begin with it.
        value_range: the numbers that stand for black and white in floating-point arrays; None if it was not said.

    Attributes:
        rounded: how many pixel values lay between two steps of 8 bits.
    """

    called: str
    value_range: ValueRange = None
    rounded: int = 0

    def __call__(self, image: Any, row: int) -> bytes:
        """Return an image as the bytes of a file.

        Args:
            image: encoded bytes, which are returned as they are; an image of Pillow; an array or tensor of one image,
                (height, width), (channels, height, width) or, for arrays, (height, width, channels).
            row: its number, for errors.

        Raises:
            DataError: it is something else, or its numbers are not said to be pixels.
        """
        if isinstance(image, bytes | bytearray):
            return bytes(image)
        if isinstance(image, Image.Image):
            return self._of_pillow(image, row)
        array = as_array(image)
        if array is None:
            raise DataError(
                f"{self._at(row)} is {kind_of(image)}: expected a PIL image, a numpy array, a torch tensor, or "
                f"the bytes of an image file"
            )
        pixels = self._pixels(with_channels_last(array, is_tensor(image), self._at(row)), row)
        return _png(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))

    def _of_pillow(self, image: Image.Image, row: int) -> bytes:
        if image.mode in _CONVERTED:
            image = image.convert("RGB")
        elif image.mode not in _SAVED:
            raise DataError(
                f"{self._at(row)} is a PIL image of mode {image.mode}, whose range nothing tells: expected 8 bits, as "
                f"image.convert('RGB') makes them"
            )
        return _png(image)

    def _pixels(self, array: np.ndarray, row: int) -> np.ndarray:
        if array.dtype == np.uint8:
            if self.value_range not in (None, (0, STEPS)):
                raise DataError(
                    f"{self._at(row)} is of type uint8, whose pixels run from 0 to 255, and value_range "
                    f"{self.value_range} was given: leave it out"
                )
            return array
        if array.dtype.kind != "f":
            raise DataError(
                f"{self._at(row)} is of type {array.dtype}: expected uint8 for pixels from 0 to 255, or floating-point "
                f"numbers with value_range, such as value_range=(-1, 1)"
            )
        low, high = self._range(array, row)
        steps = (array.astype(np.float64) - low) * (STEPS / (high - low))
        whole = np.rint(steps)
        if not np.isfinite(steps).all() or whole.min() < 0 or whole.max() > STEPS:
            seen = "NaN or infinity" if not np.isfinite(array).all() else f"{array.min():.4g} to {array.max():.4g}"
            raise DataError(
                f"{self._at(row)} holds {seen}, and value_range is ({low:g}, {high:g}): give the range that the pixels "
                f"have, or clip them"
            )
        self.rounded += int((np.abs(steps - whole) > CLOSE).sum())
        return whole.astype(np.uint8)

    def _range(self, array: np.ndarray, row: int) -> tuple[float, float]:
        if self.value_range is None:
            raise DataError(
                f"{self._at(row)} holds floating-point numbers, from {np.nanmin(array):.4g} to {np.nanmax(array):.4g}, "
                f"and nothing says what black and white are: give value_range=(0, 1) or value_range=(-1, 1)"
            )
        return self.value_range

    def _at(self, row: int) -> str:
        return f"{self.called}: image {row}"


def checked_range(value_range: Any) -> ValueRange:
    """Return a range of pixel values as two numbers; None for none.

    Raises:
        DataError: it is no range.
    """
    if value_range is None:
        return None
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not low < high or not np.isfinite([low, high]).all():
        raise DataError(f"value_range {value_range!r}: expected the numbers of black and white, such as (-1, 1)")
    return low, high


def is_tensor(value: Any) -> bool:
    """Return True for a tensor of torch; torch is not imported for it."""
    return any((kind.__module__, kind.__name__) == ("torch", "Tensor") for kind in type(value).__mro__)


def as_array(value: Any) -> np.ndarray | None:
    """Return an array or a tensor as a numpy array; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    if not is_tensor(value):
        return None
    tensor = value.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":  # numpy has no such type
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy()
    return array


def with_channels_last(array: np.ndarray, is_torch: bool, where: str) -> np.ndarray:
    """Return the array of one image as (height, width, channels).

    Args:
        array: (height, width), (channels, height, width), or (height, width, channels) if it is no tensor of torch.
        is_torch: whether it was a tensor.
        where: what the image is called, for errors.

    Raises:
        DataError: it has another shape, or one that could be read both ways.
    """
    if array.ndim == 2:
        return array[..., None]
    first = array.ndim == 3 and array.shape[0] in _CHANNELS
    last = array.ndim == 3 and array.shape[-1] in _CHANNELS and not is_torch
    if first == last or 0 in array.shape:
        raise DataError(
            f"{where} is of shape {array.shape}: expected (channels, height, width), or (height, width, channels) of "
            f"an array, with 1 or 3 channels, told apart by their number"
        )
    return np.moveaxis(array, 0, -1) if first else array


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
