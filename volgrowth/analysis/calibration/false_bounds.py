r"""Bounds on false flags that hold for every cut at once, so also for one that was chosen after looking at the images.

A false-discovery rate is promised for a cut that was fixed beforehand. Of m held-out images and n tested ones let
V(j) be the number of innocent tested images with an excess above the j-th largest of the held-out ones. If innocent
and held-out images are exchangeable, the distribution of (V(1), V(2), ...) does not depend on that of the excess
(Gazin, Blanchard and Roquain, arXiv 2310.18108): with the order statistics of m uniform numbers, U(1) < U(2) < ...,

    V(j) = #{innocent images below U(j)}
    V(j) - V(j - 1) ~ Binomial(n - V(j - 1), (U(j) - U(j - 1)) / (1 - U(j - 1)))

if all n were innocent, which is the worst case. From draws of this process come bounds B(j) with

    P(V(j) <= B(j) for all j) >= `CONFIDENCE`

as in Song, Jin and Candes (arXiv 2605.20726): B(j) are the draws of one rank at each j, and the rank is the smallest
below which, everywhere, lie so many of other draws, N of them: the ceil(`CONFIDENCE` (N + 1))-th of the ranks that they
need. The process itself is one more such draw, so that the bounds hold with this probability, the draws included. If
the rank came from the draws that are ranked, they would hold in 87 to 89% of cases. j takes the values of a geometric
grid, since neighbouring ones say nearly the same.

A tested image may be a picture of several trials (`analysis.distinct`), of which the strongest counts. The strongest of
its k trials lies above U(j) no more often than one of k independent images, so that n is the number of trials: they are
paid for.

Of any chosen images, however they were chosen, those that lie above the j-th largest held-out one include B(j)
innocent ones at most, and all others may be innocent too (Goeman and Solari, Statistical Science 26, 2011). So of k
chosen images, k(j) of them above the j-th largest held-out one, the number of innocent ones is at most the least of

    B(j) + k - k(j)

over j. The bound divided by k is the share.
"""

from functools import lru_cache

import numpy as np

CONFIDENCE = 0.9
"""Probability that all bounds hold at once."""
_DRAWS = 4000
_RANKS = 4096
_AT_ONCE = 2**14


def count_above(conformal: np.ndarray, held: int) -> np.ndarray:
    """Return how many of `held` held-out images have at least the excess of each image, from conformal p-values."""
    return np.rint(conformal * (1 + held)).astype(int) - 1


def false_bounds(held_above: np.ndarray, held: int, trials: int | None = None) -> np.ndarray:
    """Return the largest share of innocent images among all that are at least as suspicious as each image.

    Args:
        held_above: number of held-out images with at least the excess of each tested image, (n,), in any order. Images
            of one number are put in one set, whose order nobody knows.
        held: number m of held-out images.
        trials: number of trials of all tested images; by default one for each.

    Returns:
        (n,) in [0, 1]; simultaneous for all images with the probability `CONFIDENCE`.
    """
    return bounds_by_number(np.bincount(held_above, minlength=held + 1), held, trials)[held_above]


def bounds_by_number(counts: np.ndarray, held: int, trials: int | None = None) -> np.ndarray:
    """Return the bounds of `false_bounds` from counts.

    Args:
        counts: how many tested images so many held-out ones have at least the excess of: of none, of one, ..., (k,).
        held: number m of held-out images.
        trials: as in `false_bounds`.

    Returns:
        The bound for each number of held-out images, (k,); 1 for numbers that no image has.
    """
    bounds, upto = np.ones(len(counts)), np.cumsum(counts)
    tests, some = int(upto[-1]) if len(upto) else 0, np.flatnonzero(counts)
    if not tests or not held:
        return bounds
    ranks, innocent = null_counts(trials or tests, held)
    included = upto[np.minimum(ranks, len(upto)) - 1]  # images that fewer than j held-out ones exceed
    for start in range(0, len(some), _AT_ONCE):
        numbers = some[start : start + _AT_ONCE]
        sizes = upto[numbers]
        bound = np.minimum(sizes, (innocent[:, None] + np.maximum(sizes - included[:, None], 0)).min(0))
        bounds[numbers] = bound / sizes
    return bounds


def innocent_among(chosen: np.ndarray, held: int, trials: int) -> int:
    """Return how many of some chosen images are innocent, at most; for all choices at once, as `false_bounds`.

    Args:
        chosen: number of held-out images with at least the excess of each chosen image, (k,).
        held: number m of held-out images.
        trials: number of trials of all tested images, chosen or not.
    """
    if not len(chosen) or not held:
        return len(chosen)
    ranks, innocent = null_counts(trials, held)
    others = len(chosen) - np.searchsorted(np.sort(chosen), ranks, side="left")
    return int(min(len(chosen), (innocent + others).min()))


@lru_cache(8)
def null_counts(tests: int, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks j, rising, and for each the bound B(j) on the innocent images above the j-th largest held-out one.

    Args:
        tests: number n of tested images.
        held: number m of held-out images.
    """
    random = np.random.default_rng([tests, held])
    ranks = np.unique(np.geomspace(1, min(held, _RANKS), 60).round().astype(int))
    ranked, other = (draw_null(random, ranks, tests, held) for _ in range(2))
    ranked = np.sort(ranked, axis=0)
    lowest = np.max([np.searchsorted(column, other[:, j]) for j, column in enumerate(ranked.T)], axis=0)
    needed = np.sort(lowest)[int(np.ceil(CONFIDENCE * (1 + _DRAWS))) - 1]  # below _DRAWS, as nine draws in ten are
    return ranks, ranked[min(needed, _DRAWS - 1)]


def draw_null(random: np.random.Generator, ranks: np.ndarray, tests: int, held: int) -> np.ndarray:
    """Draw how many of `tests` innocent images lie above the j-th largest held-out one for j in `ranks`.

    Returns:
        (draws, ranks) int.
    """
    gaps = random.standard_gamma(np.diff(ranks, prepend=0), (_DRAWS, len(ranks))).cumsum(1)
    uniform = gaps / (gaps[:, -1:] + random.standard_gamma(held + 1 - ranks[-1], (_DRAWS, 1)))
    counts, before = np.zeros((_DRAWS, len(ranks)), int), np.zeros(_DRAWS)
    for index in range(len(ranks)):
        seen = counts[:, index - 1] if index else np.zeros(_DRAWS, int)
        chance = np.clip((uniform[:, index] - before) / (1 - before), 0, 1)
        counts[:, index] = seen + random.binomial(tests - seen, chance)
        before = uniform[:, index]
    return counts
