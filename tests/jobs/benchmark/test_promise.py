"""The simulated promise: its audits are those of the package, and its table says what they gave."""

import numpy as np
import pytest

from jobs.benchmark.promise import POPULATIONS, SIZES, draw, simulate, simulate_promises


@pytest.mark.parametrize("name", POPULATIONS)
def test_a_population_has_no_memorized_images_by_itself(name: str) -> None:
    excess = draw(name, 100_000, np.random.default_rng(0))
    assert np.isfinite(excess).all()
    assert len(np.unique(excess)) == 100_000


def test_a_tail_finds_what_counting_cannot_and_keeps_the_promise() -> None:
    random = np.random.default_rng(1)
    audits = [simulate("light (normal)", 1000, 20_000, 40, random) for _ in range(10)]
    assert np.mean([audit.power for audit in audits]) > 0.5 > np.mean([audit.power_counting for audit in audits])
    assert np.mean([audit.false for audit in audits]) < 0.1


def test_every_population_has_a_line_for_each_size() -> None:
    rows = list(simulate_promises(draws=1, largest=10_000))
    assert len(rows) == len(POPULATIONS) * sum(tests <= 10_000 for _, tests, _ in SIZES)
    assert all(row["bounds held"] in ("0 of 1", "1 of 1") for row in rows)
