"""The promise of an error rate, simulated: realised false discoveries and power over tails of every kind.

The excess of innocent images, held out and audited alike, is drawn from a population whose tail is bounded, light,
exponential or heavy, or light but for one image in a hundred that varies three times as much. Memorized images lie
around a value that one innocent image in 1e9 would reach. Each line of the table is the mean over `DRAWS` audits.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import genpareto, norm

from volgrowth.analysis.calibration.error_rates import FDR, q_values
from volgrowth.analysis.calibration.expected_scores import FOLDS, Excess
from volgrowth.analysis.calibration.false_bounds import false_bounds
from volgrowth.analysis.calibration.p_values import held_out_p_values
from volgrowth.analysis.calibration.tails import fit_tail

DRAWS = 20
FAR = 1e-9
SPREAD = 0.15
SIZES = (
    (300, 10_000, 40),
    (400, 20_000, 16),
    (1_000, 100_000, 200),
    (10_000, 100_000, 50),
    (10_000, 1_000_000, 350),
    (100_000, 1_000_000, 350),
)
"""Held-out images, audited images, and how many of these are memorized."""
UNUSUAL = "light, 1% unusual"
POPULATIONS = {
    "bounded (shape -0.3)": genpareto(-0.3),
    "light (normal)": norm(),
    "exponential": genpareto(0),
    "heavy (shape 0.2)": genpareto(0.2),
    UNUSUAL: norm(),
}


class Realised(NamedTuple):
    """The outcome of one simulated audit: shares of false flags and of memorized images found, and if bounds held."""

    false: float
    power: float
    false_counting: float
    power_counting: float
    bounds_hold: bool


def draw(name: str, count: int, random: np.random.Generator) -> np.ndarray:
    """Return the excess of so many innocent images of a population, (count,)."""
    excess = POPULATIONS[name].rvs(count, random_state=random)
    return excess * np.where(random.random(count) < 0.01, 3.0, 1.0) if name == UNUSUAL else excess


def simulate(name: str, held: int, tests: int, memorized: int, random: np.random.Generator) -> Realised:
    """Simulate one audit."""
    far = max(float(POPULATIONS[name].isf(FAR)) * (3 if name == UNUSUAL else 1), 6.0)
    excess, known = draw(name, tests, random), draw(name, held, random)
    excess[:memorized] = random.normal(far, SPREAD * far, memorized)
    both = Excess(np.repeat(excess[None], FOLDS, 0), known, np.arange(held) % FOLDS)
    p_values = held_out_p_values(both, fit_tail(known, excess))
    content = np.arange(tests)
    shares = list[float]()
    for p_value in (p_values.used, p_values.conformal):
        flags = q_values(p_value, content) <= FDR
        shares += [flags[memorized:].sum() / max(flags.sum(), 1), flags[:memorized].mean()]
    above = np.rint(p_values.conformal * (1 + held)).astype(int) - 1
    return Realised(shares[0], shares[1], shares[2], shares[3], _bounds_hold(above, held, memorized))


def _bounds_hold(above: np.ndarray, held: int, memorized: int) -> bool:
    """Return whether the bounds on false flags hold at every cut, given how many held-out images exceed each image."""
    order = np.argsort(above, kind="stable")
    sizes = np.searchsorted(above[order], above[order], side="right")
    innocent = np.cumsum(order >= memorized)[sizes - 1]
    return bool((false_bounds(above, held)[order] >= innocent / sizes - 1e-9).all())


def simulate_promises(draws: int = DRAWS, largest: int = 1_000_000) -> Iterator[dict[str, Any]]:
    """Yield a row of the page for each population and size.

    Args:
        draws: audits to average over.
        largest: number of audited images up to which sizes are simulated.
    """
    random = np.random.default_rng(0)
    for name in POPULATIONS:
        for held, tests, memorized in SIZES:
            if tests > largest:
                continue
            audits = [simulate(name, held, tests, memorized, random) for _ in range(draws)]
            mean = Realised(*np.mean(audits, 0))
            yield {
                "tail of the innocent": name,
                "held out": held,
                "audited": tests,
                "memorized": memorized,
                f"FDR realised, {FDR:.0%} promised": mean.false,
                "power": mean.power,
                "FDR by counting": mean.false_counting,
                "power by counting": mean.power_counting,
                "bounds held": f"{sum(audit.bounds_hold for audit in audits)} of {draws}",
            }
