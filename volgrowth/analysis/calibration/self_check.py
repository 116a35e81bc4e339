"""A check of the promise on the audit at hand: held-out images, split in halves at random, calibrate each other.

Nobody memorized a held-out image, so p-values of one half against the other should be uniform or larger, and every flag
among them is false. The evidence of all held-out images is the one of the audit, each from regressions that have not
seen the image. Regressions are not fitted again for each split: each of them has seen images of both halves alike, so
that within the held-out set the images stay exchangeable, whatever the regressions are. What is checked is all that
follows them: counting, the tail and its extrapolation, and Benjamini-Hochberg. What is not checked is whether the
audited images are of the same kinds as the held-out ones, for which `held_out` has a test.

By counting alone the halves keep the promise in every data set, so that a failure is one of the tail. A share counts
as too large if so few held-out images, independent ones, would exceed it less than once in a hundred times.
"""

from dataclasses import dataclass

import numpy as np

from volgrowth.analysis.calibration.error_rates import FDR, q_values
from volgrowth.analysis.calibration.tails import fit_tail

SPLITS = 40
CHECKED = (0.01, 0.001)
"""p-values whose realised shares are reported."""
_SEED = 0x5E1F
_ROWS_MOST = 10_000
_FLAGGED_MOST = 0.7
"""Share of splits with a flag: one held-out image far from all others gives half, and one is no pattern."""


@dataclass(frozen=True)
class SelfCheck:
    """Realised error rates among the held-out images themselves.

    Attributes:
        rows: number of held-out images that were split.
        splits: number of random splits.
        tails: number of splits in which a tail could be fitted; p-values of the others are by counting.
        realised: share of p-values that are at most each of `CHECKED`.
        allowed: the largest share at each of `CHECKED` that so many images may show.
        flagged: share of the splits with a flag, each of which is false: the realised false-discovery rate.
    """

    rows: int
    splits: int
    tails: int
    realised: tuple[float, ...]
    allowed: tuple[float, ...]
    flagged: float

    @property
    def holds(self) -> bool:
        """True if the held-out images keep the promise among themselves, as far as they can tell."""
        shares = zip(self.realised, self.allowed, strict=True)
        return self.flagged <= _FLAGGED_MOST and all(realised <= allowed for realised, allowed in shares)


def check_halves(held: np.ndarray) -> SelfCheck:
    """Calibrate halves of the held-out images by each other.

    Args:
        held: evidence of the m distinct held-out images, (m,), m at least 2.
    """
    from scipy.stats import binom  # half a second to import, and only an analysis needs it

    random = np.random.default_rng(_SEED)
    held = random.permutation(held)[:_ROWS_MOST]
    half, below, flagged, tails = len(held) // 2, np.zeros(len(CHECKED)), 0, 0
    for _ in range(SPLITS):
        mixed = random.permutation(held)
        known, tested = np.sort(mixed[:half]), mixed[half:]
        p_value = (1 + half - np.searchsorted(known, tested, side="left")) / (1 + half)
        if tail := fit_tail(known):
            tails += 1
            p_value = np.where(tested > tail.threshold, tail.p_values(tested), p_value)
        below += [(p_value <= level).mean() for level in CHECKED]
        flagged += bool((q_values(p_value, np.arange(len(p_value))) <= FDR).any())
    return SelfCheck(
        rows=len(held),
        splits=SPLITS,
        tails=tails,
        realised=tuple((below / SPLITS).tolist()),
        allowed=tuple(float(binom.ppf(0.99, len(held), level)) / len(held) for level in CHECKED),
        flagged=flagged / SPLITS,
    )
