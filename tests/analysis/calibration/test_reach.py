"""What an audit could see, against audits of made-up evidence."""

import numpy as np
import pytest

from volgrowth.analysis.calibration.error_rates import FDR, q_values
from volgrowth.analysis.calibration.evidence import REPRODUCED
from volgrowth.analysis.calibration.reach import reach
from volgrowth.analysis.calibration.tails import fit_tail


@pytest.mark.parametrize("held", [400, 2000])
def test_about_as_few_are_seen_as_the_plan_says(held: int) -> None:
    """Light tails, of which p-values at `REPRODUCED` scatter: half of the audits flag one and a half times as many."""
    tests, planned = 20_000, reach(20_000, held)
    assert planned.with_tail is not None
    assert planned.with_tail[1] < planned.with_tail[0] / 2 < planned.by_counting / 4
    seen, many = 0, int(np.ceil(1.5 * planned.with_tail[0]))
    for seed in range(20):
        tail = fit_tail(np.random.default_rng(seed).normal(size=held))
        if tail is None:
            continue
        p_value = np.where(np.arange(tests) < many, tail.p_values(np.array([REPRODUCED]))[0], 1.0)
        seen += bool((q_values(p_value, np.arange(tests)) <= FDR).any())
    assert seen >= 10


def test_by_counting_the_plan_is_exact() -> None:
    for fewest, flagged in ((reach(1000, 99).by_counting, True), (reach(1000, 99).by_counting - 1, False)):
        p_value = np.where(np.arange(1000) < fewest, 1 / 100, 1.0)
        assert bool((q_values(p_value, np.arange(1000)) <= FDR + 1e-12).any()) == flagged
    assert reach(1000, 99).with_tail is None
    assert reach(10, 10_000_000).with_tail == (1, 1)
