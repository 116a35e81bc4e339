"""p-values beyond the held-out images: never too small, and small enough to flag one image among very many."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import false_discovery_control, genpareto, norm

from volgrowth.analysis.calibration.tails import ROWS_LEAST, SHARES, fit_tail

Draw = Callable[[np.random.Generator, int], np.ndarray]
POPULATIONS = {
    "bounded": genpareto(-0.3),
    "light": norm(),
    "exponential": genpareto(0.0),
    "heavy": genpareto(0.2),
}


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("rows", [400, 5000])
def test_the_limit_lies_above_the_true_chance_as_often_as_promised(name: str, rows: int) -> None:
    """An upper limit at 90% confidence, here at the chances 1e-3 to 1e-6, far beyond what can be counted."""
    population, random = POPULATIONS[name], np.random.default_rng(3)
    far = population.isf(np.array([1e-3, 1e-4, 1e-5, 1e-6]))
    held = []
    for _ in range(60):
        tail = fit_tail(population.rvs(rows, random_state=random))
        if tail is not None:
            held.append(tail.p_values(far) >= [1e-3, 1e-4, 1e-5, 1e-6])
    assert len(held) > 45
    share = np.mean(held, 0)
    assert (share >= 0.9 - 3 * np.sqrt(0.09 / len(held))).all(), share


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_promised_rate_is_kept_where_conformal_p_values_flag_nothing(name: str) -> None:
    """40 memorized images among 20,000 and 500 held-out ones: counting alone needs 400 to flag any."""
    population, random = POPULATIONS[name], np.random.default_rng(5)
    false, power = [], []
    for _ in range(40):
        held, excess = (population.rvs(count, random_state=random) for count in (500, 20_000))
        excess[:40] = max(population.isf(1e-8), 8)
        tail = fit_tail(held)
        assert tail is None or tail.threshold > np.quantile(held, 0.89)
        p_value = np.ones(len(excess)) if tail is None else tail.p_values(excess)
        flags = false_discovery_control(p_value) <= 0.1
        false.append(flags[40:].sum() / max(flags.sum(), 1))
        power.append(flags[:40].mean())
    assert np.mean(false) <= 0.1 + 3 * np.std(false) / np.sqrt(len(false))
    assert np.mean(power) > 0.2


def test_a_few_unusual_images_among_many_do_not_break_the_promise() -> None:
    """One held-out image in a hundred varies three times as much: the bulk alone would extrapolate far too little."""
    random, false = np.random.default_rng(7), []

    def draw(count: int) -> np.ndarray:
        return random.normal(size=count) * np.where(random.random(count) < 0.01, 3.0, 1.0)

    for _ in range(30):
        tail, excess = fit_tail(draw(10_000)), draw(100_000)
        excess[:50] = 15
        p_value = np.ones(len(excess)) if tail is None else tail.p_values(excess)
        flags = false_discovery_control(p_value) <= 0.1
        false.append(flags[50:].sum() / max(flags.sum(), 1))
    assert np.mean(false) <= 0.1 + 3 * np.std(false) / np.sqrt(len(false))


@pytest.mark.parametrize("name", POPULATIONS)
def test_few_held_out_images_borrow_the_tail_of_the_audited_ones(name: str) -> None:
    """16 memorized images among 20,000 with 400 held out: the tail of 40 images leaves room for all of them."""
    population, random = POPULATIONS[name], np.random.default_rng(11)
    false, power, alone, borrowed = [], [], [], []
    for _ in range(20):
        held, excess = (population.rvs(count, random_state=random) for count in (400, 20_000))
        excess[:16] = max(population.isf(1e-9), 8)
        tail, own = fit_tail(held, excess), fit_tail(held)
        flags, by_own = (
            np.zeros(len(excess), bool) if one is None else false_discovery_control(one.p_values(excess)) <= 0.1
            for one in (tail, own)
        )
        borrowed.append(tail is not None and tail.audited is not None)
        false.append(flags[16:].sum() / max(flags.sum(), 1))
        power.append(flags[:16].mean())
        alone.append(by_own[:16].mean())
    assert np.mean(borrowed) > 0.7
    assert np.mean(false) <= 0.1 + 3 * np.std(false) / np.sqrt(len(false))
    assert np.mean(power) >= max(0.6, np.mean(alone))


def test_the_audited_tail_is_not_used_where_it_may_not_hold() -> None:
    random = np.random.default_rng(2)
    audited = random.normal(size=20_000)
    usual = fit_tail(random.normal(size=400), audited)
    assert usual is not None
    assert usual.audited is not None
    further = fit_tail(np.concatenate([random.normal(size=392), np.full(8, 6.0) + np.arange(8) / 9]), audited)
    assert further is None or further.audited is None  # held-out images lie where it says that none should
    few = fit_tail(random.normal(size=400), audited[:9_000])
    assert few is not None
    assert few.audited is None
    enough = fit_tail(random.normal(size=2_500), audited)
    assert enough is not None
    assert enough.audited is None


def test_many_memorized_images_make_no_p_value_smaller_than_it_may_be() -> None:
    """A tenth of the audited images is memorized: their tail is far too heavy, and that of the held-out ones counts."""
    random = np.random.default_rng(4)
    held, audited = random.normal(size=400), random.normal(size=20_000)
    audited[:2_000] += 6
    tail, own = fit_tail(held, audited), fit_tail(held)
    assert tail is not None
    assert own is not None
    far = np.linspace(2, 9, 20)
    assert (tail.p_values(far) >= norm.sf(far)).all()
    assert np.allclose(tail.p_values(far), own.p_values(far))


def test_p_values_fall_from_that_of_the_threshold_and_are_never_nothing() -> None:
    held = np.random.default_rng(0).normal(size=2000)
    tail = fit_tail(held)
    assert tail is not None
    excess = np.concatenate([[-5.0, tail.threshold], np.linspace(tail.threshold, 60, 500)[1:]])
    p_value = tail.p_values(excess)
    assert p_value[:2].tolist() == [1, 1]
    assert (np.diff(p_value[2:]) <= 0).all()
    above = int((held > tail.threshold).sum())
    assert p_value[2] == pytest.approx((1 + above) / 2001, rel=0.3)
    assert p_value.min() > 0


@pytest.mark.parametrize(
    "held",
    [
        np.zeros(1000),  # saturated
        np.repeat(np.arange(10.0), 100),  # nothing above the quantile but ties
        np.where(np.arange(1000) < 985, np.arange(1000) / 1000, 1e6),  # some that no such tail reaches
        np.random.default_rng(0).normal(size=ROWS_LEAST - 1),  # too few
        np.concatenate([np.full(950, -np.inf), np.arange(50.0)]),  # most were not measured
    ],
    ids=["saturated", "ties", "outliers", "few", "unmeasured"],
)
def test_no_tail_is_made_up(held: np.ndarray) -> None:
    tail = fit_tail(held)
    assert tail is None or (tail.refused and tail.p_values(held[-1:])[0] > 1e-3)


def test_rounded_scores_have_a_tail_as_long_as_they_differ() -> None:
    held = np.random.default_rng(0).normal(size=1000)
    assert fit_tail(held.round(4)) is not None
    assert fit_tail(held.round(0)) is None


def test_more_held_out_images_are_looked_at_further_out() -> None:
    held = np.random.default_rng(1).exponential(size=30_000)
    tail = fit_tail(held)
    assert tail is not None
    assert len(tail.fits) + len(tail.refused) == len(SHARES)
    assert [fit.threshold for fit in tail.fits] == sorted(fit.threshold for fit in tail.fits)
    assert all(0 <= fit.shape < 0.3 for fit in tail.fits)
