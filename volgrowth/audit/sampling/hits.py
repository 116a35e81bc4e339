"""The rule by which a generated image is a copy of an image.

A sample hits the image nearest to it when it is much nearer to that one than to the others around it: distance to the
nearest over the mean distance to the `NEIGHBOURS` nearest below `RATIO` (after Carlini et al., arXiv 2301.13188).

Distances are Euclidean, and between one of two things:

    pixels        the images as they are
    perceptual    what is left of images without brightness, tint, contrast and fine detail (`look_of`)

The second tells copies that were recoloured, resized or cropped by a little from other images, which the first does not
always (docs/truth.md compares them); it cannot tell apart images that differ only in what it leaves out.
"""

import numpy as np

RATIO = 0.4
NEIGHBOURS = 50

# the distances, with what each adds to the words of the rule
DISTANCES = {
    "pixels": "",
    "perceptual": "; distances are those of blurred images without their brightness, tint and contrast, and images of "
    "hardly any contrast have no hits",
}

# of a side: the width of the blur, and the pixels that are kept
GRAIN = 32
# grey levels of contrast below which an image looks like nothing, and the number of steps that one contrast has
FAINT, STEPS_OF_CONTRAST = 2.0, 127.5


def look_of(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what images look like apart from brightness, tint, contrast and fine detail.

    Each channel is blurred by a Gaussian of 1/32 of the side, thinned to 32 to 63 pixels a side if it has more, and
    centred; then the image is divided by its standard deviation. The square of the distance of two looks is
    proportional to 1 minus their correlation.

    Args:
        images: (n, C, H, W) uint8.

    Returns:
        The looks (n, C, h, w), int16, in steps of 1/127.5 of the contrast: integers, whose distances are exact. And a
        mask of the images that have contrast enough to look like something, (n,).
    """
    from scipy.ndimage import gaussian_filter  # a tenth of a second to import, and only this distance needs it

    height, width = images.shape[-2:]
    blurred = np.stack(
        [gaussian_filter(image.astype(np.float32), (0, height / GRAIN, width / GRAIN)) for image in images]
    )
    down, across = max(1, height // GRAIN), max(1, width // GRAIN)
    thinned = blurred[..., down // 2 :: down, across // 2 :: across]
    centred = thinned - thinned.mean((2, 3), keepdims=True)
    contrast = centred.std((1, 2, 3), keepdims=True)
    looks = np.rint(STEPS_OF_CONTRAST * centred / np.maximum(contrast, FAINT))
    return np.clip(looks, -32767, 32767).astype(np.int16), contrast[:, 0, 0, 0] >= FAINT


def hit_groups(distance: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Decide which image each sample hits.

    Args:
        distance: from each sample to its k nearest images, (S, k), sorted; infinite where there are fewer than k.
        group: numbers of those images, (S, k).

    Returns:
        Number of the image that each sample hits, (S,); -1 for none.
    """
    known = np.isfinite(distance)
    mean = np.where(known, distance, 0).sum(1) / np.maximum(known.sum(1), 1)
    return np.where(known[:, 0] & (distance[:, 0] < RATIO * mean), group[:, 0], -1)
