"""Controls: for each image of interest another one of the same complexity."""

import numpy as np
from scipy.spatial import cKDTree

# neighbours looked at first; more where all of them are taken
CANDIDATES = 16


def match_controls(features: np.ndarray, wanted: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """For each index in `wanted` a different index of `allowed` with the nearest features (n, k), in standard units.

    Controls are given out in the order of `wanted`, none twice; -1 where all are taken.
    """
    result = np.full(len(wanted), -1)
    if not len(wanted) or not len(allowed):
        return result
    scale = features[allowed].std(0)
    scale = np.where(scale > 0, scale, 1.0)
    tree = cKDTree(features[allowed] / scale)
    taken: set[int] = set()
    for position, point in enumerate(features[wanted[: len(allowed)]] / scale):
        chosen = _nearest_free(tree, point, taken)
        taken.add(chosen)
        result[position] = allowed[chosen]
    return result


def _nearest_free(tree: cKDTree, point: np.ndarray, taken: set[int]) -> int:
    """The nearest that is not taken, of which there is one."""
    count = CANDIDATES
    while True:
        _, near = tree.query(point, k=range(1, min(count, tree.n) + 1))
        free = next((index for index in near.tolist() if index not in taken), None)
        if free is not None:
            return free
        count *= 4
