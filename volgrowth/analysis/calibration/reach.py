"""How few memorized images an audit could see, before it is run: from the numbers of audited and held-out images.

Benjamini-Hochberg flags k of n images if k have p <= rate k / n. By counting p is at least 1 / (1 + m) with m held-out
images. With a tail a memorized image has the upper limit of the tail at its evidence: `CLEAR`, or twice that. What the
tail will be is not known before the audit. Tails of the bench were no heavier than exponential (docs/detection.md),
so the usual one is taken: m quantiles of a distribution that is normal up to its 90% quantile and falls off
exponentially beyond, as steeply as a normal one does on average. `tails` fits it as it would fit the audit's.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from volgrowth.analysis.calibration.error_rates import FDR, fewest_flags
from volgrowth.analysis.calibration.evidence import REPRODUCED
from volgrowth.analysis.calibration.tails import SHARES, fit_tail

CLEAR = (REPRODUCED, 2 * REPRODUCED)
"""Evidence that is taken for that of memorized images, and twice that."""
_ROWS_MOST = 100_000
"""A tail of more held-out images is hardly another, and takes longer."""


@dataclass(frozen=True)
class Reach:
    """The fewest memorized images of which any could be flagged, with so many held out.

    Attributes:
        held: number of held-out images that calibrate.
        by_counting: the fewest if p-values come from counting alone.
        with_tail: the fewest with the usual tail, if all have each evidence of `CLEAR`; None with too few held-out
            images for a tail.
    """

    held: int
    by_counting: int
    with_tail: tuple[int, ...] | None


def reach(tests: int, held: int, fdr: float = FDR) -> Reach:
    """Return how few of `tests` images could be seen with `held` held-out images at the rate `fdr`."""
    counting = 1 / (1 + held)
    tail = fit_tail(_usual_evidence(min(held, _ROWS_MOST)))
    found = fewest_flags(tests, counting, fdr)
    if tail is None:
        return Reach(held, found, None)
    limits = np.minimum(counting, tail.p_values(np.array(CLEAR)))
    return Reach(held, found, tuple(fewest_flags(tests, limit, fdr) for limit in limits.tolist()))


def _usual_evidence(held: int) -> np.ndarray:
    """Return the evidence of so many held-out images in a usual audit, (held,)."""
    rank = (np.arange(held) + 0.5) / max(held, 1)
    share = SHARES[0]
    start = float(ndtri(1 - share))
    density = float(np.exp(-(start**2) / 2) / np.sqrt(2 * np.pi))
    steepness = density / share - start  # mean of a normal distribution beyond its quantile, less that
    beyond = start - steepness * np.log(np.maximum(1 - rank, 1e-300) / share)
    return np.where(rank < 1 - share, ndtri(np.minimum(rank, 1 - share)), beyond)
