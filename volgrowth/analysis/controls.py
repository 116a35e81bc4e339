"""Controls: for each image of interest another image of the same complexity, to compare it with."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

# neighbours that are tried first; four times as many while all of them are taken
CANDIDATES = 16


def match_controls(features: np.ndarray, wanted: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Choose a control for each image of interest: the image with the nearest features that is not taken yet.

    Args:
        features: of all images, (n, k); distances are in units of their standard deviation among the allowed images.
        wanted: positions of the images of interest, (w,), in the order in which they choose.
        allowed: positions of the images that may be controls, (a,).

    Returns:
        Position of each image's control, (w,); none stands twice, and -1 where all are taken.
    """
    result = np.full(len(wanted), -1)
    if not len(wanted) or not len(allowed):
        return result
    from scipy.spatial import cKDTree  # a fifth of a second to import

    scale = features[allowed].std(0)
    scale = np.where(scale > 0, scale, 1.0)
    tree = cKDTree(features[allowed] / scale)
    taken: set[int] = set()
    for position, point in enumerate(features[wanted[: len(allowed)]] / scale):
        chosen = _nearest_free(tree, point, taken)
        taken.add(chosen)
        result[position] = allowed[chosen]
    return result


def _nearest_free(tree: "cKDTree", point: np.ndarray, taken: set[int]) -> int:
    """Return the nearest point of the tree that is not taken; there must be one."""
    count = CANDIDATES
    while True:
        _, near = tree.query(point, k=range(1, min(count, tree.n) + 1))
        free = next((index for index in near.tolist() if index not in taken), None)
        if free is not None:
            return free
        count *= 4
