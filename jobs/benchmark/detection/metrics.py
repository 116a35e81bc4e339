"""Measures of how well a score detects and of whether promised error rates are kept, with bootstrap intervals.

A replicate draws images with replacement, as many of each kind as there are: reproduced ones, ones that were trained on
once, and planted ones that samples miss. It is kept as the number of times each image was drawn, and the same
replicates serve every score. A replicate of a mean over models draws models and draws of the noise as well.
Detection is computed from the number of positives and negatives at each distinct value, from the highest down: ties
are no order.
"""

from collections.abc import Sequence

import numpy as np

REPLICATES = 1000
FPR = 0.01
PROMISED = (0.05, 0.1, 0.2)
METRICS = ("auroc", "tpr_at_1_fpr", "precision_at_k")


def draw_replicates(kind: np.ndarray, seed: int, replicates: int = REPLICATES) -> np.ndarray:
    """Return how often each image is drawn, (1 + replicates, n); in the first row, the estimate itself, once each.

    Args:
        kind: label of the kind of each image, (n,).
        seed: of the draws.
        replicates: number of replicates beside the estimate.
    """
    random = np.random.default_rng(seed)
    drawn = np.ones((1 + replicates, len(kind)))
    for label in np.unique(kind)[::-1]:
        stratum = np.flatnonzero(kind == label)
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
    q_value: np.ndarray,
    positive: np.ndarray,
    planted: np.ndarray,
    drawn: np.ndarray,
    promised: Sequence[float] = PROMISED,
) -> dict[str, np.ndarray]:
    """Return the false-discovery rate and the power of the flags at each promised rate, (1 + replicates,) each.

    `fdr_5` is the share of flags at a promised 5% that are no positives, `fdr_clear_5` the share that are neither
    positives nor planted (both 0 without flags), and `power_5` the share of positives that are flagged.
    """
    found = {}
    for rate in promised:
        flagged, percent = q_value <= rate, f"{100 * rate:.0f}"
        flags = np.maximum(drawn @ flagged, 1)
        found[f"fdr_{percent}"] = drawn @ (flagged & ~positive) / flags
        found[f"fdr_clear_{percent}"] = drawn @ (flagged & ~positive & ~planted) / flags
        positives = positive.sum()
        found[f"power_{percent}"] = (
            drawn @ (flagged & positive) / positives if positives else np.full(len(drawn), np.nan)
        )
    return found


def mean_over_models(replicates: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return the mean over models, and over the draws of each, in every replicate.

    A replicate draws as many models as there are, with replacement, of each one draw of the noise, and of that one
    replicate of its images. All scores of a case see the same choices.

    Args:
        replicates: for each model, for each draw of the noise an array (1 + replicates,), the estimate first.
    """
    random = np.random.default_rng(0)
    models, count = len(replicates), len(replicates[0][0]) - 1
    model, share, row = (random.random((count, models)) for _ in range(3))
    means = np.empty(1 + count)
    means[0] = np.mean([np.mean([draw[0] for draw in draws]) for draws in replicates])
    for index in range(count):
        chosen = [replicates[int(each * models)] for each in model[index]]
        draws = [each[int(part * len(each))] for each, part in zip(chosen, share[index], strict=True)]
        means[1 + index] = np.mean([draw[1 + int(at * count)] for draw, at in zip(draws, row[index], strict=True)])
    return means
