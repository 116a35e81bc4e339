"""Checks of a held-out set: it should share no image with the audited set, and show the same kinds of images."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.complexity import MEASURED, REGRESSORS, regressors
from volgrowth.analysis.distinct import first_of_each
from volgrowth.analysis.duplicates import Light, has_look

# largest distance between two distribution functions at which two sets can pass for the same kinds of images
APART = 0.25

# largest difference of the shares of two sets below the median of one, likewise: more is not memorized
SHARE_APART = 0.2


def look_alikes(scores: pa.Table, holdout: pa.Table) -> np.ndarray:
    """Return a mask of the held-out rows that look like an audited image of other pixels, (held-out rows,).

    They have its perceptual hash and light: a model that knows the one may know the other. Flat images share a
    perceptual hash whatever they show, and are passed over. Hashes must be equal, though those of `duplicate_clusters`
    may differ: among many audited images one is close to a held-out one by chance.

    Args:
        scores: scores of the audited images, as in `records.SCORES`.
        holdout: scores of the held-out images.
    """
    audited, held = _with_look(scores), _with_look(holdout)
    content = held["content_hash"].to_numpy()
    new = ~np.isin(content, audited["content_hash"].to_numpy())
    light, held_light = Light.of(audited), Light.of(held)
    order = np.argsort(audited["phash"].to_numpy(), kind="stable")
    hashes = audited["phash"].to_numpy()[order]
    left, right = (np.searchsorted(hashes, held["phash"].to_numpy(), side) for side in ("left", "right"))
    alike = [
        index
        for index in np.flatnonzero(new & (right > left))
        if light[order[left[index] : right[index]]].agrees(held_light[np.array([index])]).any()
    ]
    known = pc.is_in(holdout["content_hash"], value_set=pa.array(content[alike], pa.uint64()))
    return as_mask(known)


def most_different_regressor(scores: pa.Table, holdout: pa.Table) -> tuple[str, float] | None:
    """Return the regressor in which the two sets differ most, and its distance; None if they can pass for one kind.

    The distance is that of Kolmogorov and Smirnov between distinct images, in [0, 1]. A distance that chance alone
    exceeds once in a thousand times passes. `scores` and `holdout` as in `look_alikes`.
    """
    features = [regressors(_distinct(table, MEASURED)) for table in (scores, holdout)]
    sizes = [len(some) for some in features]
    if not min(sizes):
        return None
    distances = [_distance(features[0][:, k], features[1][:, k]) for k in range(len(REGRESSORS))]
    worst = int(np.argmax(distances))
    apart = distances[worst] > max(APART, _by_chance(*sizes))
    return (REGRESSORS[worst], distances[worst]) if apart else None


def differing_bulk(evidence: np.ndarray, held: np.ndarray) -> tuple[float, float] | None:
    """Return how the evidence of the two sets differs where it is low; None if they can pass for one kind.

    Few memorized images have less evidence than the median of the held-out ones, so that they hardly change the share
    of audited images below it, and not the distribution there. A difference that chance alone exceeds once in a
    thousand times passes.

    Args:
        evidence: of distinct audited images, (n,).
        held: of the held-out images that calibrated, (m,).

    Returns:
        The share of the audited images below the held-out median, and the distance of Kolmogorov and Smirnov there.
    """
    if not len(evidence) or not len(held):
        return None
    median = np.median(held)
    low, held_low = evidence[evidence < median], held[held < median]
    share = len(low) / len(evidence)
    if abs(share - len(held_low) / len(held)) > max(SHARE_APART, _by_chance(len(evidence), len(held))):
        return share, _distance(low, held_low)
    apart = _distance(low, held_low) if len(low) and len(held_low) else 0.0
    return (share, apart) if apart > max(APART, _by_chance(len(low) or 1, len(held_low) or 1)) else None


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    from scipy.stats import ks_2samp  # half a second to import, and only an analysis needs it

    return float(ks_2samp(one, other).statistic) if len(one) and len(other) else 1.0


def _by_chance(one: int, other: int) -> float:
    """Return the distance that chance alone exceeds once in a thousand times, between samples of these sizes."""
    return float(1.95 * np.sqrt(1 / one + 1 / other))


def _distinct(table: pa.Table, columns: tuple[str, ...]) -> pa.Table:
    """Return some columns of the first row of each distinct image: no ids, of which Arrow takes 2 GiB at most."""
    table = table.select(["content_hash", *columns]).filter(table["content_hash"].is_valid())
    return table.take(pa.array(first_of_each(table["content_hash"].to_numpy())))


def _with_look(table: pa.Table) -> pa.Table:
    table = _distinct(table, ("phash", "mean", "variance"))
    return table.filter(pa.array(has_look(table)))
