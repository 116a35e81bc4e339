"""Bounds on false flags for every cut at once."""

import numpy as np
import pytest

from volgrowth.analysis.calibration.false_bounds import (
    CONFIDENCE,
    draw_null,
    false_bounds,
    innocent_among,
    null_counts,
)


def held_above(excess: np.ndarray, held: np.ndarray) -> np.ndarray:
    return len(held) - np.searchsorted(np.sort(held), excess, side="left")


def false_shares(above: np.ndarray, innocent: np.ndarray) -> np.ndarray:
    """The true share of innocent images among all with as few held-out ones above them."""
    order = np.argsort(above, kind="stable")
    cut = np.searchsorted(above[order], above, side="right")
    return np.cumsum(innocent[order])[cut - 1] / cut


@pytest.mark.parametrize(("tests", "held", "memorized"), [(300, 300, 0), (300, 1000, 40), (2000, 200, 100)])
def test_all_bounds_hold_at_once_as_often_as_promised(tests: int, held: int, memorized: int) -> None:
    random, kept, draws = np.random.default_rng(tests + held), 0, 300
    for _ in range(draws):
        excess = random.normal(size=tests)
        excess[:memorized] += random.uniform(0, 8, memorized)
        above = held_above(excess, random.normal(size=held))
        kept += bool((false_bounds(above, held) >= false_shares(above, np.arange(tests) >= memorized) - 1e-9).all())
    assert kept / draws >= CONFIDENCE - 3 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / draws)


def test_clear_flags_have_a_small_bound_and_doubtful_ones_a_large_one() -> None:
    random = np.random.default_rng(0)
    held, excess = random.normal(size=5000), random.normal(size=1000)
    excess[:60] += 20
    bound = false_bounds(held_above(excess, held), 5000)
    assert bound[:60].max() < 0.1
    assert np.median(bound[60:]) > 0.8
    assert ((bound >= 0) & (bound <= 1)).all()


def test_a_larger_set_never_has_fewer_false_flags() -> None:
    random = np.random.default_rng(1)
    held, excess = random.normal(size=500), random.normal(size=800)
    excess[:30] += 6
    above = held_above(excess, held)
    bound = false_bounds(above, 500)
    order = np.argsort(above, kind="stable")
    sizes = np.searchsorted(above[order], above[order], side="right")
    counts = np.rint(bound[order] * sizes)
    assert (np.diff(counts) >= 0).all()


def test_any_choice_has_a_bound_and_the_most_suspicious_have_that_of_their_column() -> None:
    random = np.random.default_rng(3)
    held, excess = random.normal(size=2000), random.normal(size=500)
    excess[:40] += 8
    above = held_above(excess, held)
    bound = false_bounds(above, 2000)
    for cut in np.unique(above)[:30]:
        chosen = above <= cut
        assert innocent_among(above[chosen], 2000, 500) == round(bound[above == cut][0] * chosen.sum())
    assert innocent_among(above[:40], 2000, 500) <= 4
    assert innocent_among(above[20:60], 2000, 500) >= 20, "all that were chosen by chance may be innocent"
    assert innocent_among(above[:0], 2000, 500) == 0


def test_what_the_held_out_images_cannot_tell_is_not_bounded() -> None:
    """A hundred tests for each held-out image: as many innocent ones may lie beyond all of them."""
    ranks, innocent = null_counts(40, 10)
    assert ranks[0] == 1
    assert false_bounds(np.zeros(40, int), 10).tolist() == [min(innocent[0], 40) / 40] * 40
    few = false_bounds(np.concatenate([np.zeros(20, int), np.full(1980, 15)]), 20)
    assert few[:20].min() == 1


def test_nothing_to_bound() -> None:
    assert false_bounds(np.empty(0, int), 100).shape == (0,)
    assert false_bounds(np.zeros(3, int), 0).tolist() == [1, 1, 1]


def test_the_bounds_hold_on_draws_that_they_were_not_made_of() -> None:
    """If the rank came from the draws that are ranked, they would hold less often."""
    kept, before = [], []
    for tests, held in ((300, 300), (300, 1000), (2000, 200), (2000, 3000), (10_000, 1000), (100, 5000)):
        ranks, innocent = null_counts(tests, held)
        draws = draw_null(np.random.default_rng([1, tests, held]), ranks, tests, held)
        kept.append((draws <= innocent).all(1).mean())
        # fewer draws at a time, so that what they hide from themselves is larger than the noise of this test
        for own in np.split(draw_null(np.random.default_rng([2, tests, held]), ranks, tests, held), 20):
            ordered = np.sort(own, axis=0)
            lowest = np.max([np.searchsorted(column, own[:, j]) for j, column in enumerate(ordered.T)], axis=0)
            reused = ordered[np.sort(lowest)[int(np.ceil(CONFIDENCE * len(own))) - 1]]
            before.append((draws <= reused).all(1).mean())
    error = np.sqrt(2 * CONFIDENCE * (1 - CONFIDENCE) / len(draws) / len(kept))
    assert np.mean(kept) >= CONFIDENCE - 3 * error
    assert np.mean(before) < np.mean(kept) - 3 * error
