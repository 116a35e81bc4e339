r"""Proof by sampling: which training images a model really reproduces, and how many of the flags that confirms.

A sample hits an image by the rule of `audit.sampling.hits`, among the distinct images of the training set and of a
held-out set together. Held-out images cannot be memorized, so their hits are what the rule finds by chance, most of all
between plain images, which lie close to one another.

An image is reproduced with at least h hits, h the smallest number that is at least 2, at least a
share `MIN_SHARE` of the samples, and at which

    (held-out images with h hits) * (training images / held-out images) <= FALSE_SHARE * (training images with h hits)

The share of flagged images that are reproduced is a binomial proportion; its interval is that of Clopper and Pearson
(Biometrika 26, 1934). It is a lower bound of the flags' precision: an image that no sample hit may still be hit by the
next ones.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.judging import judge, ranking_column
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.audit.sampling.hits import NEIGHBOURS, RATIO

MIN_HITS = 2
MIN_SHARE = 0.002
FALSE_SHARE = 0.05

# chance with which an image that fills the share MIN_SHARE of all samples should be seen
POWER = 0.95


@dataclass(frozen=True)
class Reproduced:
    """Hits of samples on N training images and M held-out images.

    Attributes:
        hits: number of samples that hit each training image, (N,).
        holdout_hits: number of samples that hit each held-out image, (M,).
        min_hits: number of hits from which on an image counts as reproduced.
    """

    hits: np.ndarray
    holdout_hits: np.ndarray
    min_hits: int

    @property
    def images(self) -> np.ndarray:
        """Mask of the training images that are reproduced, (N,)."""
        return self.hits >= self.min_hits

    @property
    def rule(self) -> str:
        """The rule that decides, in words."""
        return (
            f"a sample hits an image when it is nearer to it than {RATIO:g} times the mean distance to its "
            f"{NEIGHBOURS} nearest; {self.min_hits} hits make an image reproduced, since so many held-out images have: "
            f"{int((self.holdout_hits >= self.min_hits).sum())}"
        )


def decide_reproduced(hits: np.ndarray, holdout_hits: np.ndarray, samples: int) -> Reproduced:
    """Decide which images are reproduced, from the hits of N training and M held-out images by so many samples."""
    min_hits = max(MIN_HITS, ceil(MIN_SHARE * samples))
    scale = len(hits) / max(len(holdout_hits), 1)
    while (holdout_hits >= min_hits).sum() * scale > FALSE_SHARE * (hits >= min_hits).sum():
        min_hits += 1
    return Reproduced(hits, holdout_hits, min_hits)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact confidence interval of a binomial proportion; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    from scipy.stats import binomtest  # half a second to import, and only a verification needs it

    interval = binomtest(successes, trials).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def chance_to_see(samples: int, share: float = MIN_SHARE) -> float:
    """Return the chance that an image which fills a share of all samples has `MIN_HITS` hits among so many samples."""
    from scipy.special import bdtrc  # a tenth of a second to import, and only some sentences need it

    return float(bdtrc(MIN_HITS - 1, samples, share))


def samples_needed(share: float = MIN_SHARE, power: float = POWER) -> int:
    """Return the smallest number of samples for which `chance_to_see` is at least `power`."""
    return bisect_left(range(10**9), power, key=lambda samples: chance_to_see(samples, share))


def summarize_proof(findings: pa.Table, images: np.ndarray, reproduced: Reproduced, samples: int) -> dict[str, Any]:
    """Summarise what samples prove, counting pictures (`analysis.distinct`).

    Args:
        findings: of the audit, with `verified_hits`, as in `records.FINDINGS`.
        images: the reproduced images, by their numbers in the column `identical`.
        reproduced: the hits behind that.
        samples: number of samples drawn.

    Returns:
        Part `verification` of `summary.json`.
    """
    rows = findings["row"].to_numpy()[np.isin(findings["identical"].to_numpy(), images)].tolist()
    known = judge(findings, {"rows": rows})
    first, truth, flagged = findings.filter(known.first), known.proven[known.first], known.flagged[known.first]
    _, picture = np.unique(findings["cluster"].to_numpy(), return_inverse=True)
    most = np.zeros(picture.max(initial=-1) + 1, np.int64)
    np.maximum.at(most, picture, pc.fill_null(findings["verified_hits"], 0).to_numpy())
    hits = most[picture[known.first]]
    proved = int((flagged & truth).sum())
    return {
        "samples": samples,
        "rule": reproduced.rule,
        "min_hits": reproduced.min_hits,
        "hits": int(reproduced.hits.sum()),
        "holdout_images": len(reproduced.holdout_hits),
        "holdout_hits": int(reproduced.holdout_hits.sum()),
        "holdout_reproduced": int((reproduced.holdout_hits >= reproduced.min_hits).sum()),
        "reproduced_images": int(truth.sum()),
        "rows": rows,
        "flagged": int(flagged.sum()),
        "flagged_reproduced": proved,
        "precision_interval": list(clopper_pearson(proved, int(flagged.sum()))),
        "recall_interval": list(clopper_pearson(proved, int(truth.sum()))),
        "unhit_rows": first["row"].to_numpy()[flagged & (hits == 0)].tolist(),
        "raw": _detects(first["growth"], truth),
        "calibrated": _detects(first["excess_growth"], truth),
        "evidence": _detects(first[ranking_column(first)], truth),
        "warnings": _warnings(samples, len(reproduced.holdout_hits), int(flagged.sum())),
    }


def _detects(column: pa.ChunkedArray, truth: np.ndarray) -> dict[str, float | None]:
    """Measure how well a score finds the reproduced images, among images that have the score; None if it cannot be."""
    known = column.is_valid().to_numpy()
    score, positive = column.to_numpy()[known], truth[known]

    def number(measure: Callable[[np.ndarray, np.ndarray], float]) -> float | None:
        value = measure(score, positive) if len(score) else float("nan")
        return value if np.isfinite(value) else None

    return {"auroc": number(auroc), "tpr_at_1_fpr": number(tpr_at_fpr)}


def _warnings(samples: int, holdout: int, flagged: int) -> list[str]:
    warnings = []
    chance = chance_to_see(samples)
    if chance < POWER:
        warnings.append(
            f"{samples:,} samples are few: an image that fills {MIN_SHARE:.1%} of what the model makes is seen with a "
            f"chance of {chance:.0%}. {samples_needed():,} samples see it with {POWER:.0%}."
        )
    if not holdout:
        warnings.append("Without held-out images it is not known how many hits chance makes.")
    if not flagged:
        warnings.append("The audit flagged no image, so there are no flags to verify.")
    return warnings
