"""The self-check of an audit: held-out images that calibrate each other."""

from collections.abc import Callable

import numpy as np
import pytest

from volgrowth.analysis.calibration import self_check
from volgrowth.analysis.calibration.self_check import CHECKED, check_halves
from volgrowth.analysis.calibration.tails import Tail

Draw = Callable[[np.random.Generator], np.ndarray]


@pytest.mark.parametrize(
    "draw",
    [
        lambda random: random.normal(size=900),
        lambda random: random.exponential(size=900),
        lambda random: random.standard_t(4, 900),
        lambda random: random.normal(size=100),
        lambda random: np.minimum(random.normal(size=900), 1.0),
        lambda random: np.zeros(900),
        lambda random: random.normal(size=2),
    ],
    ids=["light", "exponential", "heavy", "few", "saturated", "constant", "two"],
)
def test_held_out_images_keep_the_promise_among_themselves(draw: Draw) -> None:
    found = [check_halves(draw(np.random.default_rng(seed))) for seed in range(4)]
    assert all(each.holds for each in found)
    for index, level in enumerate(CHECKED):
        assert np.mean([each.realised[index] for each in found]) <= 1.5 * level
    assert np.mean([each.flagged for each in found]) <= 0.25


def test_a_tail_that_is_too_light_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cauchy evidence, and a tail that falls off as that of a normal distribution."""

    class Light(Tail):
        def p_values(self, excess: np.ndarray) -> np.ndarray:
            return np.where(excess > 1, 0.2 * np.exp(-(excess - 1)), 1.0)

        @property
        def threshold(self) -> float:
            return 1.0

    monkeypatch.setattr(self_check, "fit_tail", lambda held: Light(len(held), (), ()))
    found = check_halves(np.random.default_rng(0).standard_cauchy(1000))
    assert not found.holds
    assert found.flagged == 1
    assert found.realised[0] > found.allowed[0] > CHECKED[0]
