r"""A bound on the loss of a cascade: how many flags of a whole audit its screen kept from being found.

The whole audit would give each of n distinct images its p-value without the screen, and flag those with p at most
rate F / n, F the largest number for which so many are (Benjamini-Hochberg). Of the images that pass the screen these
p-values are known. Of the N others a random sample of m is measured, and c(F) of it have p <= rate F / n. Let U(F) be
the largest number K among N of which a sample shows so few with a chance above 1 - `LEVEL`,

    P(hypergeometric(N, K, m) <= c(F)) > 1 - LEVEL

the bound of Clopper and Pearson (Biometrika 26, 1934) for a finite population (Wright, Exact Confidence Bounds when
Sampling from Small Finite Universes, 1991); with m = N it is c. The whole audit's F does not depend on who was
sampled. So U(F) holds at that F with the probability LEVEL, and then, with P(F) images that pass and have p <= rate
F / n,

    P(F) + c(F) <= F <= P(F) + U(F)

Of all numbers F that fit, the worst is taken: with H(F) the images among P(F) that the cascade has flagged, at most
P(F) - H(F) + U(F) flags of the whole audit are lost, and its recall of them is at least H(F) / (P(F) + U(F)). Since
F may be any number, both hold together with the probability LEVEL; no p-value is compared with a threshold that was
chosen after the sample was seen.

Images are trials here, and flags are of pictures (`analysis.distinct`). A picture that the whole audit flags has a
trial with p at most rate F / n, n the number of pictures, since Simes' p-value is no less than its smallest. So P(F)
counts pictures by the smallest p-value of their trials that pass, and U(F) bounds the trials among the others, each of
which may be of another picture; F is at least the number of pictures that Simes' p-value of their known trials flags.

A sample of m without a hit bounds the loss at about 3 N / m. To bound it at a tenth of few flags takes a large sample:
some 27 N over the number of flags, whatever N is.
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from math import floor

import numpy as np

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.distinct import simes

LEVEL = 0.95

# recall that a sample without a hit should prove, and the largest share of the screened-out images that is sampled by
# default: more costs too much
RECALL = 0.9
MOST_SAMPLED = 0.05


@dataclass(frozen=True)
class Screening:
    """The trials within the calibration's range that were screened, called images, as arrays (n,).

    They are those n that passed, or are in a picture of which an image was measured. Of the others only the rows are
    kept: none of them can be flagged, and of very many images most are such.

    Attributes:
        row: row that stands for each image: the first of the trial.
        passed: mask of the images that pass the screen.
        measured: mask of the images that were measured by the preset.
        flagged: mask of the images whose picture the cascade flags.
        p_value: p-value without the screen; 1 for an image that was not measured.
        picture: number of each image's picture.
        tests: number of pictures that are tested, those outside the range included.
        others: rows that stand for the other images, as one bit for each row of the audit (`numpy.packbits`).
    """

    row: np.ndarray
    passed: np.ndarray
    measured: np.ndarray
    flagged: np.ndarray
    p_value: np.ndarray
    picture: np.ndarray
    tests: int
    others: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def images(self) -> int:
        """Number of all images."""
        return len(self.row) + int(np.bitwise_count(self.others).sum())

    @property
    def passing(self) -> np.ndarray:
        """Rows that the preset has to measure, sorted."""
        return np.sort(self.row[self.passed])

    @property
    def out(self) -> np.ndarray:
        """Rows of the images that the screen kept from being judged, sorted."""
        others = np.flatnonzero(np.unpackbits(self.others))
        return np.sort(np.concatenate([self.row[~(self.passed & self.measured)], others]))

    def sample(self, size: int | None, seed: int) -> np.ndarray:
        """Draw random rows of the images that are out, sorted, to be measured nevertheless.

        Args:
            size: number of rows; by default as many as `sample_size` asks for, but at most a share `MOST_SAMPLED`.
            seed: of the draw.
        """
        out = self.out
        if size is None:
            size = min(sample_size(int(self.flagged.sum()), len(out)), floor(MOST_SAMPLED * len(out)))
        return np.sort(np.random.default_rng([seed, 0x5C4EE7]).choice(out, min(size, len(out)), replace=False))


@dataclass(frozen=True)
class ScreenLoss:
    """Bounds on the loss of a cascade, from a random sample of the images that its screen kept out.

    Attributes:
        out: number of images that the screen kept from being judged.
        sampled: number of those that were measured nevertheless.
        missed: number of sampled images that a whole audit would have flagged at the cascade's own threshold.
        flags_lost: the most flags of a whole audit that were lost, with the probability `LEVEL`.
        recall: the smallest share of a whole audit's flags that was found; None if it would have flagged none.
        needed: size of the sample that would prove a recall of `RECALL` if it had no hit.
    """

    out: int
    sampled: int
    missed: int
    flags_lost: int
    recall: float | None
    needed: int


def bound_loss(screening: Screening, sampled: np.ndarray, fdr: float = FDR) -> ScreenLoss:
    """Estimate from the sampled rows how many flags at the rate `fdr` the cascade may have missed."""
    kept = screening.passed & screening.measured
    drawn = np.isin(screening.row, sampled) & ~kept & screening.measured
    _, picture = np.unique(screening.picture, return_inverse=True)
    out, size, found = screening.images - int(kept.sum()), int(drawn.sum()), len(np.unique(picture[screening.flagged]))
    combined = simes(screening.p_value, picture, picture.max(initial=-1) + 1)

    def passing(p_value: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """Count the p-values that pass, for each number of flags; rounding may not decide."""
        return np.searchsorted(np.sort(p_value), fdr * flags / max(screening.tests, 1) * (1 + 1e-9), side="right")

    def counted(some: np.ndarray, flags: np.ndarray) -> np.ndarray:
        """Count the pictures of which one of `some` images has a p-value that passes, for each number of flags."""
        smallest = np.full(len(combined), np.inf)
        np.minimum.at(smallest, picture[some], screening.p_value[some])
        return passing(smallest, flags)

    def most(flags: np.ndarray) -> np.ndarray:
        """Return P(F) + U(F) for each number F of flags."""
        hits, inverse = np.unique(passing(screening.p_value[drawn], flags), return_inverse=True)
        return counted(kept, flags) + np.array([most_among(int(c), size, out) for c in hits], int)[inverse]

    top = screening.tests
    while top and (fewer := int(most(np.array([top]))[0])) < top:  # no larger number fits
        top = fewer
    flags = np.arange(1, top + 1)
    known = flags[passing(combined, flags) >= flags].max(initial=1)
    flags = flags[known - 1 :]
    flags = flags[most(flags) >= flags]
    held, ceiling = counted(kept & screening.flagged, flags), most(flags)
    return ScreenLoss(
        out=out,
        sampled=size,
        missed=int(passing(screening.p_value[drawn], np.array([found]))[0]),
        flags_lost=int((ceiling - held).max(initial=0)),
        recall=float((held / ceiling).min()) if len(flags) else None,
        needed=sample_size(found, out),
    )


def most_among(hits: int, sampled: int, population: int) -> int:
    """Return an upper bound, at confidence `LEVEL`, on the marked items in a population, from a sample of it.

    Args:
        hits: number of marked ones in the sample.
        sampled: size of the sample.
        population: size of the population.
    """
    more = range(hits + 1, population - (sampled - hits) + 1)
    return hits + bisect_left(more, True, key=lambda count: _chance(hits, sampled, count, population) <= 1 - LEVEL)


def sample_size(found: int, population: int) -> int:
    """Return the smallest sample that proves a recall of `RECALL` if it has no hit, when `found` flags are known."""
    allowed = floor(found * (1 - RECALL) / RECALL + 1e-9)
    return bisect_left(range(population), True, key=lambda size: most_among(0, size, population) <= allowed)


def _chance(hits: int, sampled: int, marked: int, population: int) -> float:
    """Return P(at most `hits` of the `marked` among `population` are in a sample). SciPy's cdf sums the longer tail."""
    k = np.arange(max(0, sampled - (population - marked)), min(hits, marked, sampled) + 1)
    log = _log_choose(marked, k) + _log_choose(population - marked, sampled - k) - _log_choose(population, sampled)
    return float(np.exp(log).sum())


def _log_choose(n: int, k: np.ndarray | int) -> np.ndarray:
    from scipy.special import gammaln  # a tenth of a second to import, and only a cascade needs it

    return gammaln(n + 1) - gammaln(np.asarray(k) + 1) - gammaln(n - np.asarray(k) + 1)
