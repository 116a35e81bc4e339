"""Checks of a held-out set: it should share no image with the audited set, and show the same kinds of images."""

import numpy as np
import pyarrow as pa

from volgrowth.analysis.calibration.complexity import MEASURED, REGRESSORS, regressors
from volgrowth.analysis.distinct import first_of_each
from volgrowth.analysis.duplicates import Light, has_look

# largest distance between two distribution functions at which two sets can pass for the same kinds of images
APART = 0.25


def count_near_duplicates(scores: pa.Table, holdout: pa.Table) -> int:
    """Count the distinct held-out images that are not audited, but have the perceptual hash and light of one that is.

    Flat images share a perceptual hash whatever they show, and are passed over. Hashes must be equal, though those of
    `duplicate_clusters` may differ: among many audited images one is close to a held-out one by chance.

    Args:
        scores: scores of the audited images, as in `records.SCORES`.
        holdout: scores of the held-out images.
    """
    audited, held = _with_look(scores), _with_look(holdout)
    new = ~np.isin(held["content_hash"].to_numpy(), audited["content_hash"].to_numpy())
    light, held_light = Light.of(audited), Light.of(held)
    order = np.argsort(audited["phash"].to_numpy(), kind="stable")
    hashes = audited["phash"].to_numpy()[order]
    left, right = (np.searchsorted(hashes, held["phash"].to_numpy(), side) for side in ("left", "right"))
    return sum(
        bool(light[order[left[index] : right[index]]].agrees(held_light[np.array([index])]).any())
        for index in np.flatnonzero(new & (right > left))
    )


def most_different_regressor(scores: pa.Table, holdout: pa.Table) -> tuple[str, float] | None:
    """Return the regressor in which the two sets differ most, and its distance; None if they can pass for one kind.

    The distance is that of Kolmogorov and Smirnov between distinct images, in [0, 1]. A distance that chance alone
    exceeds once in a thousand times passes. `scores` and `holdout` as in `count_near_duplicates`.
    """
    from scipy.stats import ks_2samp  # half a second to import, and only an analysis needs it

    features = [regressors(_distinct(table, MEASURED)) for table in (scores, holdout)]
    sizes = [len(some) for some in features]
    if not min(sizes):
        return None
    distances = [ks_2samp(features[0][:, k], features[1][:, k]).statistic for k in range(len(REGRESSORS))]
    worst = int(np.argmax(distances))
    chance = 1.95 * np.sqrt(1 / sizes[0] + 1 / sizes[1])
    return (REGRESSORS[worst], float(distances[worst])) if distances[worst] > max(APART, chance) else None


def _distinct(table: pa.Table, columns: tuple[str, ...]) -> pa.Table:
    """Return some columns of the first row of each distinct image: no ids, of which Arrow takes 2 GiB at most."""
    table = table.select(["content_hash", *columns]).filter(table["content_hash"].is_valid())
    return table.take(pa.array(first_of_each(table["content_hash"].to_numpy())))


def _with_look(table: pa.Table) -> pa.Table:
    table = _distinct(table, ("phash", "mean", "variance"))
    return table.filter(pa.array(has_look(table)))
