"""Labelled training sets: some images are planted in many copies, plain ones stand beside them, others are held out.

A model memorizes the images that it sees in many copies. Plain images (flat, gradient, faint) are easy for every model,
so a raw score mistakes them for memorized ones; a labelled set holds both to tell a good score from a bad one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits

from volgrowth.sources import encode_png

Variation = Literal["exact", "shifted", "near"]

# pairs of (number of images, copies of each)
Planting = Sequence[tuple[int, int]]

DIGITS_PLANTING = ((10, 100), (10, 50))


@dataclass(frozen=True)
class LabelledSet:
    """A training set and images held out. Images are uint8 (C, H, W); a family is one image with all of its copies.

    Attributes:
        train: training images (n, C, H, W), in the order of their rows.
        family: number of the family that each row belongs to, (n,).
        names: name of each family, (families,); those of plain images begin with `plain`.
        holdout: images of the same kinds, (m, C, H, W), none of them trained on.
        holdout_names: name of each held-out image, (m,).
    """

    train: np.ndarray
    family: np.ndarray
    names: np.ndarray
    holdout: np.ndarray
    holdout_names: np.ndarray

    @property
    def copies(self) -> np.ndarray:
        """Number of rows of each family, (families,)."""
        return np.bincount(self.family, minlength=len(self.names))

    @property
    def first(self) -> np.ndarray:
        """First row of each family, (families,): the image itself where its copies differ from it."""
        return np.unique(self.family, return_index=True)[1]

    @property
    def row_names(self) -> list[str]:
        """Name of each row, (n,): its family's name and the number of the copy, from 0."""
        counts: dict[int, int] = {}
        names = []
        for family in self.family.tolist():
            copy = counts[family] = counts.get(family, -1) + 1
            names.append(f"{self.names[family]}-{copy}")
        return names


def plant_copies(
    images: np.ndarray,
    seed: int,
    *,
    trained: int,
    planting: Planting,
    plain: int,
    prefix: str,
    held_out: int | None = None,
    variation: Variation = "exact",
) -> LabelledSet:
    """Deal images to a training set and a held-out set, plant copies in the first, and add plain images to both.

    Args:
        images: uint8 (n, C, H, W).
        seed: of the deal, the plain images and the variations.
        trained: number of images that are trained on; the others are held out.
        planting: which numbers of the trained images get how many copies each; the others are trained on once.
        plain: number of plain images that are added to either set.
        prefix: beginning of the images' names.
        held_out: the most images that are held out; all that are not trained on by default.
        variation: with `shifted` or `near` every second planted image has copies that differ from it: moved by up to a
            pixel, or changed in brightness, contrast and noise. Its first row is always the image itself.

    Returns:
        The labelled set, its rows shuffled.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(images))
    mine, others = order[:trained], order[trained:][:held_out]
    simple = plain_images(images[others], 2 * plain, random)
    copies = np.ones(trained + plain, int)
    copies[: sum(n for n, _ in planting)] = np.repeat([c for _, c in planting], [n for n, _ in planting])
    family = np.repeat(np.arange(trained + plain), copies)
    train = np.concatenate([images[mine], simple[:plain]])[family]
    holdout = np.concatenate([images[others], simple[plain:]])
    holdout_names = _names(prefix, others, range(plain, 2 * plain))
    if variation != "exact":
        for row in _second_copies(family, copies):
            train[row] = _vary(train[row], variation, random)
    strangers = _unseen(holdout, train)
    shuffle = random.permutation(len(train))
    if variation != "exact":
        shuffle = _first_rows_ahead(shuffle, family, random)
    return LabelledSet(
        train=train[shuffle],
        family=family[shuffle],
        names=_names(prefix, mine, range(plain)),
        holdout=holdout[strangers],
        holdout_names=holdout_names[strangers],
    )


def _second_copies(family: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Return the rows that are copies of every second planted image, without its first row. `copies` (families,)."""
    varied = np.isin(family, np.flatnonzero(copies > 1)[1::2])
    varied[np.unique(family, return_index=True)[1]] = False
    return np.flatnonzero(varied)


def _first_rows_ahead(shuffle: np.ndarray, family: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return an order of rows in which the first row of each family, the image itself, stays its first."""
    first = np.unique(family, return_index=True)[1]
    return np.concatenate([first[random.permutation(len(first))], np.setdiff1d(shuffle, first)])


def _unseen(holdout: np.ndarray, train: np.ndarray) -> list[int]:
    """Return the numbers of the held-out images that are not in `train`: two flat images can have one grey level."""
    seen = {image.tobytes() for image in train}
    return [index for index, image in enumerate(holdout) if image.tobytes() not in seen]


def _names(prefix: str, images: np.ndarray, plain: Iterable[int]) -> np.ndarray:
    return np.array([*(f"{prefix}-{index:04d}" for index in images), *(f"plain-{index:04d}" for index in plain)])


def digit_images() -> np.ndarray:
    """Return scikit-learn's handwritten digits, (1797, 1, 8, 8) uint8."""
    return np.round(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]


def digits_case(seed: int = 1) -> LabelledSet:
    """Return the demo's labelled set: 900 digits, ten planted 100 times and ten 50 times, and 150 plain images."""
    return plant_copies(
        digit_images(), seed, trained=900, planting=DIGITS_PLANTING, plain=150, prefix="digits", held_out=None
    )


def plain_images(images: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return flat images, gradients, and faint versions of `images` in turn, (count, C, H, W) uint8."""
    channels, height, width = images.shape[1:]
    down, right = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    made = []
    for index in range(count):
        colour = random.uniform(20, 235, (channels, 1, 1))
        image = np.broadcast_to(colour, images.shape[1:]).copy()
        if index % 3 == 1:
            angle = random.uniform(0, 2 * np.pi)
            image += random.uniform(10, 60) * (np.cos(angle) * down + np.sin(angle) * right)
        elif index % 3 == 2:
            image += random.uniform(0.05, 0.15) * images[random.integers(len(images))]
        made.append(image)
    return np.clip(np.round(made), 0, 255).astype(np.uint8).reshape(-1, *images.shape[1:])


def _vary(image: np.ndarray, variation: Variation, random: np.random.Generator) -> np.ndarray:
    if variation == "shifted":
        down, right = random.integers(-1, 2, 2)
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
        return padded[:, 1 - down : padded.shape[1] - 1 - down, 1 - right : padded.shape[2] - 1 - right]
    changed = image * random.uniform(0.9, 1.1) + random.uniform(-10, 10) + random.normal(0, 4, image.shape)
    return np.clip(np.round(changed), 0, 255).astype(np.uint8)


def write_image_parquet(path: Path, images: np.ndarray, names: Sequence[str]) -> None:
    """Write images, uint8 (n, C, H, W), as a Parquet file in the Hugging Face style.

    Column `image` holds a struct of PNG bytes and path, column `name` the `names`, (n,).
    """
    rows = [
        {"image": {"bytes": encode_png(image), "path": f"{name}.png"}, "name": str(name)}
        for image, name in zip(images, names, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=256)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Return uint8 images (n, C, H, W) as a float32 tensor of that shape, with values in [-1, 1]."""
    return torch.from_numpy(images / 127.5 - 1).float()
