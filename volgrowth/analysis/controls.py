"""Controls: for each image of interest another one of the same complexity."""

import numpy as np
from scipy.spatial import cKDTree

# neighbours looked at before an image goes without a control
CANDIDATES = 64


def controls(features: np.ndarray, wanted: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """For each index in `wanted` a different index of `allowed` with the nearest features (n, k), in standard units.

    Controls are given out in the order of `wanted`, none twice; -1 where all near ones are taken.
    """
    result = np.full(len(wanted), -1)
    if not len(wanted) or not len(allowed):
        return result
    scale = features[allowed].std(0)
    scaled = features / np.where(scale > 0, scale, 1.0)
    count = min(CANDIDATES + len(wanted), len(allowed))
    _, near = cKDTree(scaled[allowed]).query(scaled[wanted], k=count)
    taken: set[int] = set()
    for position, candidates in enumerate(allowed[near.reshape(len(wanted), count)].tolist()):
        free = next((index for index in candidates if index not in taken), None)
        if free is not None:
            taken.add(free)
            result[position] = free
    return result
