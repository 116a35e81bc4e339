"""Copies as the world makes them: an image that was saved again, resized, cropped, marked, mirrored or recoloured."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from volgrowth.demo.cases import LabelledSet

Random = np.random.Generator
Alteration = Callable[[np.ndarray, Random], np.ndarray]

UNCHANGED = "unchanged"
# share of height and width that a crop cuts off
CUT = 0.05


def recompress(image: np.ndarray, random: Random) -> np.ndarray:
    """Save an image as JPEG of quality 60 to 95, and read it again."""
    stream = BytesIO()
    _picture(image).save(stream, "JPEG", quality=int(random.integers(60, 96)))
    return _pixels(Image.open(stream))


def resize(image: np.ndarray, random: Random) -> np.ndarray:
    """Make an image smaller, to 50 to 90% of its side, and as large again as it was."""
    picture = _picture(image)
    share = random.uniform(0.5, 0.9)
    small = picture.resize([max(1, round(share * side)) for side in picture.size], Image.Resampling.BILINEAR)
    return _pixels(small.resize(picture.size, Image.Resampling.BILINEAR))


def crop(image: np.ndarray, random: Random) -> np.ndarray:
    """Cut off 5% of height and width, at any side, and resize the rest to the whole size."""
    picture = _picture(image)
    left, top = (random.uniform(0, CUT) * side for side in picture.size)
    box = (left, top, left + (1 - CUT) * picture.width, top + (1 - CUT) * picture.height)
    return _pixels(picture.resize(picture.size, Image.Resampling.BILINEAR, box))


def watermark(image: np.ndarray, random: Random) -> np.ndarray:
    """Mix a white or black frame with a cross in it, a third of the side, half transparent, into a random corner."""
    picture = _picture(image)
    side = max(3, picture.width // 3)
    left, top = (int(random.integers(2)) * (length - side) for length in picture.size)
    mark = picture.copy()
    drawing, ink = ImageDraw.Draw(mark), str(random.choice(["white", "black"]))
    corner = (left + side - 1, top + side - 1)
    drawing.rectangle(((left, top), corner), outline=ink)
    drawing.line(((left, top), corner), fill=ink)
    drawing.line(((left, corner[1]), (corner[0], top)), fill=ink)
    return _pixels(Image.blend(picture, mark, 0.5))


def mirror(image: np.ndarray, random: Random) -> np.ndarray:
    """Mirror an image left to right."""
    return _pixels(ImageOps.mirror(_picture(image)))


def recolour(image: np.ndarray, random: Random) -> np.ndarray:
    """Multiply each channel by 0.8 to 1.2, and make all of them brighter or darker by up to 16 grey levels."""
    changed = image * random.uniform(0.8, 1.2, (len(image), 1, 1)) + random.uniform(-16, 16)
    return np.clip(np.round(changed), 0, 255).astype(np.uint8)


ALTERATIONS: dict[str, Alteration] = {
    "recompressed": recompress,
    "resized": resize,
    "cropped": crop,
    "watermarked": watermark,
    "mirrored": mirror,
    "recoloured": recolour,
}


def alter(image: np.ndarray, kind: str, random: Random) -> np.ndarray:
    """Return an altered copy of an image (C, H, W) uint8; `kind` is one of `ALTERATIONS`, or `UNCHANGED`."""
    return image if kind == UNCHANGED else ALTERATIONS[kind](image, random)


def family_kinds(case: LabelledSet, kinds: Sequence[str]) -> np.ndarray:
    """Return how the copies of each family are altered, (families,): planted families get the kinds in turn.

    Families that were trained on once have the kind ''.
    """
    found = np.full(len(case.names), "", dtype=f"<U{max(map(len, kinds))}")
    planted = np.flatnonzero(case.copies > 1)
    found[planted] = np.resize(np.array(kinds), len(planted))
    return found


def alter_copies(case: LabelledSet, kinds: Sequence[str], seed: int) -> LabelledSet:
    """Alter each planted copy for itself, but for the first row of its family, which stays the image itself."""
    random, kind = np.random.default_rng([seed, 1]), family_kinds(case, kinds)
    train, first = case.train.copy(), set(case.first.tolist())
    for row, family in enumerate(case.family):
        if kind[family] and row not in first:
            train[row] = alter(train[row], kind[family], random)
    return replace(case, train=train)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def _pixels(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
