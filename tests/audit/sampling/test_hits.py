"""What images look like apart from light and detail, and which are near to one another then."""

import numpy as np
import pytest

from volgrowth.audit.sampling.hits import FAINT, look_of


def picture(side: int = 32, seed: int = 0, channels: int = 3) -> np.ndarray:
    """An image of some wide bumps, (channels, side, side) uint8, of values from 60 to 180."""
    random, place = np.random.default_rng(seed), np.linspace(0, 1, side)
    bumps = [
        np.exp(-((place[:, None] - random.random()) ** 2 + (place - random.random()) ** 2) / 0.03)
        for _ in range(3 * channels)
    ]
    image = np.array(bumps).reshape(channels, 3, side, side).sum(1)
    return (60 + 120 * image / image.max()).astype(np.uint8)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Distance of two looks, as a share of the length of the first."""
    (a, b), clear = look_of(np.stack([one, other]))
    assert clear.all()
    return float(np.linalg.norm(a.astype(float) - b) / np.linalg.norm(a.astype(float)))


@pytest.mark.parametrize("side", [8, 32, 100])
def test_light_and_contrast_are_left_out_and_the_picture_is_not(side: int) -> None:
    image, other = picture(side), picture(side, seed=1)
    assert apart(image, image // 2 + 90) < 0.05
    assert (
        apart(image, np.clip(image.astype(int) + np.array([-40, 0, 40])[:, None, None], 0, 255).astype(np.uint8)) < 0.05
    )
    assert apart(image, image[:, :, ::-1]) > 0.5
    assert apart(image, other) > 0.5


def test_large_images_are_thinned() -> None:
    looks, _ = look_of(np.stack([picture(100), picture(100, 1)]))
    assert looks.shape == (2, 3, 33, 33)
    assert looks.dtype == np.int16
    assert apart(picture(96), np.roll(picture(96), 1, 2)) < 0.15  # a pixel's shift is little at this size


def test_flat_images_look_like_nothing() -> None:
    flat, faint = np.full((1, 8, 8), 200, np.uint8), np.full((1, 8, 8), 200, np.uint8)
    faint[0, :4] += 2
    clear = picture(8, channels=1)
    assert look_of(np.stack([flat, faint, clear]))[1].tolist() == [False, False, True]
    faint[0, :4] += int(4 * FAINT)
    assert look_of(faint[None])[1].tolist() == [True]
