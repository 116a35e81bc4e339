"""The rule by which a generated image is a copy of an image.

A sample hits the image nearest to it when it is much nearer to that one than to the others around it: distance to the
nearest over the mean distance to the `NEIGHBOURS` nearest below `RATIO` (after Carlini et al., arXiv 2301.13188).
"""

import numpy as np

RATIO = 0.4
NEIGHBOURS = 50


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
