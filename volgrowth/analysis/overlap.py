"""Whether held-out images are what calibration needs: none of the audited ones, and of the same kinds."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import ks_2samp

from volgrowth.analysis.complexity import FLAT, REGRESSORS, regressors

# two images of one perceptual hash are near duplicates when brightness and contrast agree as well
MEAN_APART = 0.1
DEVIATION_APART = 0.1

# largest distance between two distribution functions that can pass for sets of the same kinds
APART = 0.25


def near_duplicates(scores: pa.Table, holdout: pa.Table) -> int:
    """Distinct held-out images that are not audited themselves, but look like one that is.

    Flat images share a perceptual hash whatever they show, and are passed over.
    """
    audited, held = _looks(scores), _looks(holdout)
    new = ~np.isin(held["content_hash"], audited["content_hash"])
    order = np.argsort(audited["phash"], kind="stable")
    hashes = audited["phash"][order]
    left, right = (np.searchsorted(hashes, held["phash"], side) for side in ("left", "right"))
    count = 0
    for index in np.flatnonzero(new & (right > left)):
        same = order[left[index] : right[index]]
        mean = np.abs(audited["mean"][same] - held["mean"][index]) <= MEAN_APART
        deviation = np.abs(audited["deviation"][same] - held["deviation"][index]) <= DEVIATION_APART
        count += bool((mean & deviation).any())
    return count


def least_alike(scores: pa.Table, holdout: pa.Table) -> tuple[str, float] | None:
    """The regressor in which the two sets differ most, and by how much; None where they can pass for one kind.

    Distances are those of Kolmogorov and Smirnov over distinct images, and what chance alone makes once in a thousand
    times passes.
    """
    features = [regressors(_distinct(table)) for table in (scores, holdout)]
    sizes = [len(some) for some in features]
    if not min(sizes):
        return None
    distances = [ks_2samp(features[0][:, k], features[1][:, k]).statistic for k in range(len(REGRESSORS))]
    worst = int(np.argmax(distances))
    chance = 1.95 * np.sqrt(1 / sizes[0] + 1 / sizes[1])
    return (REGRESSORS[worst], float(distances[worst])) if distances[worst] > max(APART, chance) else None


def _distinct(table: pa.Table) -> pa.Table:
    table = table.filter(table["content_hash"].is_valid())
    _, first = np.unique(table["content_hash"].to_numpy(), return_index=True)
    return table.take(pa.array(np.sort(first)))


def _looks(table: pa.Table) -> dict[str, np.ndarray]:
    table = _distinct(table)
    table = table.filter(pc.greater(table["variance"], FLAT))
    looks = {name: table[name].to_numpy() for name in ("content_hash", "phash", "mean")}
    return {**looks, "deviation": np.sqrt(table["variance"].to_numpy())}
