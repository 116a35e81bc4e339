r"""Bounds on false flags that hold for every cut at once, so also for one that was chosen after looking at the images.

A false-discovery rate is promised for a cut that was fixed beforehand. Of m held-out images and n tested ones let
V(j) be the number of innocent tested images with an excess above the j-th largest of the held-out ones. If innocent
and held-out images are exchangeable, the distribution of (V(1), V(2), ...) does not depend on that of the excess
(Gazin, Blanchard and Roquain, arXiv 2310.18108): with the order statistics of m uniform numbers, U(1) < U(2) < ...,

    V(j) = #{innocent images below U(j)}
    V(j) - V(j - 1) ~ Binomial(n - V(j - 1), (U(j) - U(j - 1)) / (1 - U(j - 1)))

if all n were innocent, which is the worst case. From draws of this process come bounds B(j) with

    P(V(j) <= B(j) for all j) >= `CONFIDENCE`

as in Song, Jin and Candes (arXiv 2605.20726): B(j) are the draws of one rank at each j, the smallest rank at which so
large a share of the draws lies below them everywhere. j takes the values of a geometric grid, since neighbouring ones
say nearly the same. If the k most suspicious images of a data set include k' of which B are innocent at most, then at
most B + (k - k') of the k are, and not more than of any larger set (Goeman and Solari, Statistical Science 26, 2011).
So each k gets the least of

    B(j) + max(k - k(j), 0)

over j, k(j) the number of tested images above the j-th largest held-out one. The bound divided by k is the share.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

CONFIDENCE = 0.9
"""Probability that all bounds hold at once."""
_DRAWS = 4000
_RANKS = 4096


def false_bounds(held_above: np.ndarray, held: int) -> np.ndarray:
    """Return the largest share of innocent images among all that are at least as suspicious as each image.

    Args:
        held_above: number of held-out images with at least the excess of each tested image, (n,): of distinct images,
            in any order. Images of one number are put in one set, whose order nobody knows.
        held: number m of held-out images.

    Returns:
        (n,) in [0, 1]; simultaneous for all images with the probability `CONFIDENCE`.
    """
    tests = len(held_above)
    if not tests or not held:
        return np.ones(tests)
    ranks, innocent = null_counts(tests, held)
    order = np.sort(held_above)
    included = np.searchsorted(order, ranks, side="left")  # k(j): images that fewer than j held-out ones exceed
    k = np.searchsorted(order, held_above, side="right")
    sizes, inverse = np.unique(k, return_inverse=True)
    bound = np.minimum(sizes, (innocent[:, None] + np.maximum(sizes - included[:, None], 0)).min(0))
    return (bound / sizes)[inverse]


def innocent_among(bound: np.ndarray, held_above: np.ndarray, counts: Sequence[int]) -> list[int]:
    """Return how many of the first k images are innocent, at most, for each k of `counts`, at most n.

    Args:
        bound: of each tested image, as `false_bounds` returns them, (n,).
        held_above: as there, (n,).
        counts: numbers k of images, in the order of `held_above`.
    """
    order = np.argsort(held_above, kind="stable")
    sizes = np.searchsorted(held_above[order], held_above[order], side="right")
    most = np.rint(bound[order] * sizes).astype(int)
    before = np.searchsorted(held_above[order], held_above[order], side="left")
    known = np.where(before > 0, most[before - 1], 0)  # innocent images in the sets before
    return [int(min(most[k - 1], known[k - 1] + k - before[k - 1])) for k in counts]


@lru_cache(8)
def null_counts(tests: int, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks j, rising, and for each the bound B(j) on the innocent images above the j-th largest held-out one.

    Args:
        tests: number n of tested images.
        held: number m of held-out images.
    """
    random = np.random.default_rng([tests, held])
    ranks = np.unique(np.geomspace(1, min(held, _RANKS), 60).round().astype(int))
    gaps = random.standard_gamma(np.diff(ranks, prepend=0), (_DRAWS, len(ranks))).cumsum(1)
    uniform = gaps / (gaps[:, -1:] + random.standard_gamma(held + 1 - ranks[-1], (_DRAWS, 1)))
    counts, before = np.zeros((_DRAWS, len(ranks)), int), np.zeros(_DRAWS)
    for index in range(len(ranks)):
        seen = counts[:, index - 1] if index else np.zeros(_DRAWS, int)
        chance = np.clip((uniform[:, index] - before) / (1 - before), 0, 1)
        counts[:, index] = seen + random.binomial(tests - seen, chance)
        before = uniform[:, index]
    ordered = np.sort(counts, axis=0)
    lowest = np.array([np.searchsorted(column, counts[:, j]) for j, column in enumerate(ordered.T)])
    needed = np.sort(lowest.max(0))[int(np.ceil(CONFIDENCE * _DRAWS)) - 1]  # the rank that covers so many draws
    return ranks, ordered[needed]
