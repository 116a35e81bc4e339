"""Measures of how well a score detects, with bootstrap intervals, and of whether promised error rates are kept.

A replicate draws images with replacement, as many positives and as many negatives as there are, and is kept as the
number of times each image was drawn. The same replicates serve every score, so scores can be compared within them.
Everything is computed from the number of positives and negatives at each distinct value, from the highest down: ties
are no order.
"""

from collections.abc import Sequence

import numpy as np

REPLICATES = 1000
FPR = 0.01
PROMISED = (0.05, 0.1, 0.2)
METRICS = ("auroc", "tpr_at_1_fpr", "precision_at_k")


def draw_replicates(positive: np.ndarray, seed: int, replicates: int = REPLICATES) -> np.ndarray:
    """Return how often each image is drawn, (1 + replicates, n); in the first row, the estimate itself, once each."""
    random = np.random.default_rng(seed)
    drawn = np.ones((1 + replicates, len(positive)))
    for stratum in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        if len(stratum):
            shares = np.full(len(stratum), 1 / len(stratum))
            drawn[1:, stratum] = random.multinomial(len(stratum), shares, size=replicates)
    return drawn


def detect(score: np.ndarray, positive: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Return each of `METRICS` in every replicate, (1 + replicates,); NaN when a class is empty.

    They are the area under the ROC curve; the share of positives above the threshold that at most a share `FPR` of
    negatives pass; and the share of positives among the k highest, k the number of positives, ties broken evenly.

    Args:
        score: high for suspicious images, (n,).
        positive: images that should be found, (n,) bool.
        drawn: how often each image is drawn, (1 + replicates, n).
    """
    if positive.all() or not positive.any():
        return {name: np.full(len(drawn), np.nan) for name in METRICS}
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    true, false = (
        np.add.reduceat(drawn[:, order] * member[order], starts, axis=1).cumsum(1) for member in (positive, ~positive)
    )
    true, false = (np.pad(count, ((0, 0), (1, 0))) for count in (true, false))
    k, negatives = positive.sum(), (~positive).sum()
    return {
        "auroc": np.trapezoid(true, false, axis=1) / (k * negatives),
        "tpr_at_1_fpr": np.where(false / negatives <= FPR, true, 0).max(1) / k,
        "precision_at_k": _at(true + false, true, k) / k,
    }


def _at(total: np.ndarray, true: np.ndarray, k: int) -> np.ndarray:
    """Return the positives among the first k of the rising counts (R, G), linear within a group of ties."""
    rows, last = np.arange(len(total)), (total < k).sum(1)
    before, after = total[rows, last - 1], total[rows, last]
    found = true[rows, last - 1]
    return found + (k - before) / (after - before) * (true[rows, last] - found)


def interval(replicates: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of an array whose first entry is the estimate."""
    low, high = np.quantile(replicates[1:], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def realised(
    q_value: np.ndarray, positive: np.ndarray, planted: np.ndarray, promised: Sequence[float] = PROMISED
) -> dict[str, float]:
    """Return the false-discovery rate and the power of the flags at each promised rate.

    `fdr_5` is the share of flags at a promised 5% that are no positives, `fdr_clear_5` the share that are neither
    positives nor planted (both 0 without flags), and `power_5` the share of positives that are flagged.
    """
    found = {}
    for rate in promised:
        flagged, percent = q_value <= rate, f"{100 * rate:.0f}"
        false, flags = flagged & ~positive, max(flagged.sum(), 1)
        found[f"fdr_{percent}"] = float(false.sum() / flags)
        found[f"fdr_clear_{percent}"] = float((false & ~planted).sum() / flags)
        found[f"power_{percent}"] = float((flagged & positive).sum() / positive.sum()) if positive.any() else np.nan
    return found
