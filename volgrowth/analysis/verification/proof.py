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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa

from volgrowth.analysis.as_numpy import as_floats
from volgrowth.analysis.judging import JudgedAudit, JudgedTables, Judgement
from volgrowth.analysis.ranking import Separation
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
        hits: number of samples that hit each training image, (N,), or of those with a hit.
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


class PictureHits:
    """Gives findings their column `verified_hits`, some rows at a time, and notes what that says of their pictures.

    Args:
        images: numbers of the images that samples hit, as in the column `identical`, sorted.
        count: number of samples that hit each.
        reproduced: numbers of the images that are reproduced.

    Attributes:
        most: of each picture that samples hit, by its cluster, the most hits of one of its images.
        proven: rows of the reproduced images.
    """

    def __init__(self, images: np.ndarray, count: np.ndarray, reproduced: np.ndarray):
        self._images, self._count, self._reproduced = images, count, reproduced
        self.most: dict[int, int] = {}
        self.proven: list[int] = []

    def add_to(self, findings: pa.Table) -> pa.Table:
        """Return rows with their hits, which are null where there is no image; they have the column `content_hash`."""
        identical, cluster = findings["identical"].to_numpy(), findings["cluster"].to_numpy()
        place = np.searchsorted(self._images, identical)
        hits = np.concatenate([self._count, [0]])[place]
        hits[np.concatenate([self._images, [-1]])[place] != identical] = 0
        for one in np.unique(cluster[hits > 0]).tolist():
            self.most[one] = max(self.most.get(one, 0), int(hits[cluster == one].max()))
        self.proven += findings["row"].to_numpy()[np.isin(identical, self._reproduced)].tolist()
        column = pa.array(hits.astype(np.int32), mask=findings["content_hash"].is_null().to_numpy())
        index = findings.schema.get_field_index("verified_hits")
        return findings.set_column(index, findings.field("verified_hits"), column)


def decide_reproduced(
    hits: np.ndarray, holdout_hits: np.ndarray, samples: int, images: int | None = None
) -> Reproduced:
    """Decide which images are reproduced.

    Args:
        hits: of the N training images, (N,), or of those with a hit.
        holdout_hits: of the held-out images, (M,).
        samples: number of samples.
        images: number of the training images, if `hits` leaves out those without any.
    """
    min_hits = max(MIN_HITS, ceil(MIN_SHARE * samples))
    scale = (images or len(hits)) / max(len(holdout_hits), 1)
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


def summarize_proof(
    judged: JudgedAudit | JudgedTables, most: Mapping[int, int], reproduced: Reproduced, samples: int
) -> dict[str, Any]:
    """Summarise what samples prove, counting pictures (`analysis.distinct`).

    Args:
        judged: all rows, with the rows of the reproduced images as proven ones.
        most: of each picture that samples hit, by its cluster, the most hits of one of its images.
        reproduced: the hits behind that.
        samples: number of samples drawn.

    Returns:
        Part `verification` of `summary.json`.
    """
    scores = {"raw": "growth", "calibrated": "excess_growth", "evidence": judged.pictures.ranking}
    positives: dict[str, list[np.ndarray]] = {name: [] for name in scores}
    flagged = proved = proven = 0
    unhit: list[int] = []
    for part, values in _standing(judged, scores):
        flagged += int(part.flagged.sum())
        proven += int(part.proven.sum())
        proved += int((part.flagged & part.proven).sum())
        for cluster, row in zip(*(part.findings[n].to_numpy()[part.flagged] for n in ("cluster", "row")), strict=True):
            if not most.get(int(cluster)):
                unhit.append(int(row))
        for name, score in values.items():
            positives[name].append(score[part.proven & np.isfinite(score)])
    found = {name: Separation(np.concatenate([np.empty(0), *some])) for name, some in positives.items()}
    for part, values in _standing(judged, scores):
        for name, score in values.items():
            found[name].see(score[~part.proven & np.isfinite(score)])
    return {
        "samples": samples,
        "rule": reproduced.rule,
        "min_hits": reproduced.min_hits,
        "hits": int(reproduced.hits.sum()),
        "holdout_images": len(reproduced.holdout_hits),
        "holdout_hits": int(reproduced.holdout_hits.sum()),
        "holdout_reproduced": int((reproduced.holdout_hits >= reproduced.min_hits).sum()),
        "reproduced_images": proven,
        "rows": judged.pictures.proven_images.tolist(),
        "flagged": flagged,
        "flagged_reproduced": proved,
        "precision_interval": list(clopper_pearson(proved, flagged)),
        "recall_interval": list(clopper_pearson(proved, proven)),
        "unhit_rows": unhit,
        **{name: _detects(separation) for name, separation in found.items()},
        "warnings": _warnings(samples, len(reproduced.holdout_hits), flagged),
    }


def _standing(
    judged: JudgedAudit | JudgedTables, scores: Mapping[str, str]
) -> Iterator[tuple[Judgement, dict[str, np.ndarray]]]:
    """Yield the rows that stand for their pictures, some at a time, with scores of theirs by name."""
    for part in judged.parts(["growth", "excess_growth"]):
        some = part.standing()
        yield some, {name: as_floats(some.findings[column]) for name, column in scores.items()}


def _detects(found: Separation) -> dict[str, float | None]:
    """Say how well a score finds the reproduced images, among images that have the score; None if it cannot be."""
    numbers = {"auroc": found.auroc(), "tpr_at_1_fpr": found.tpr_at_fpr()}
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}


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
