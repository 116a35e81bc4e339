"""Rates of generation, on mixtures whose components have known weights."""

import math

import pytest
import torch
from torch import Tensor

from volgrowth.numerics.analytic import EmpiricalDenoiser
from volgrowth.numerics.denoisers import Denoiser, per_image
from volgrowth.numerics.flow import decode
from volgrowth.numerics.generation_rate import FEWEST, ROUND, generation_rate
from volgrowth.theory.min_norm import HybridDenoiser, MinNormDenoiser

LEVELS = torch.linspace(-3.5, 5, 80, dtype=torch.float64).exp()


class Mixture(Denoiser):
    """The posterior mean of N(points, spread^2 I), components with these weights; spread 0 for points."""

    dtype = torch.float64

    def __init__(self, dimension: int, weight: float, spread: float = 0.0):
        generator = torch.Generator().manual_seed(dimension)
        corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
        random = torch.randn(dimension, 4, generator=generator, dtype=torch.float64)
        self.points = corners if dimension == 2 else torch.linalg.qr(random)[0].T * dimension**0.5 / 2
        self.weights = torch.tensor([weight, *(((1 - weight) / 3),) * 3], dtype=torch.float64)
        self.spread = spread

    def __call__(self, y: Tensor, noise_level: Tensor) -> Tensor:
        variance = per_image(noise_level, y) ** 2 + self.spread**2
        near = -torch.cdist(y, self.points).square() / (2 * variance) + self.weights.log()
        mean = near.softmax(1) @ self.points
        return mean + self.spread**2 / variance * (y - mean)

    def returns(self, states: Tensor) -> Tensor:
        """Return which states are nearest to the first component."""
        return torch.cdist(states, self.points).argmin(1) == 0


@pytest.mark.parametrize("spread", [0.0, 0.1])
@pytest.mark.parametrize(("dimension", "weight"), [(2, 0.3), (16, 1e-2), (64, 1e-3), (256, 1e-5)])
def test_the_rate_is_the_component_weight(dimension: int, weight: float, spread: float) -> None:
    model, generator = Mixture(dimension, weight, spread), torch.Generator().manual_seed(1)
    found = generation_rate(model, model.points[0], model.returns, LEVELS, generator=generator)
    assert found.measurable
    assert found.returned >= FEWEST
    assert found.low < found.rate < found.high <= 2 * found.rate
    assert 1 / 2.5 < found.rate / weight < 2.5
    assert found.draws * weight < FEWEST or weight > 1e-2  # plain samples would not have found it


@pytest.mark.parametrize("dimension", [2, 256])
def test_with_many_draws_the_rate_is_exact(dimension: int) -> None:
    model, generator = Mixture(dimension, 0.3), torch.Generator().manual_seed(1)
    found = generation_rate(
        model, model.points[0], model.returns, LEVELS, factor=1.03, most_draws=20_000, generator=generator
    )
    assert found.rate == pytest.approx(0.3, rel=0.03)
    assert found.low < 0.3 < found.high


def test_intervals_hold() -> None:
    """Of 95% intervals few miss, though each search ends as soon as its interval is narrow enough."""
    model = Mixture(8, 0.05)
    held, truth = 0, plain_rate(model)
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)
        found = generation_rate(model, model.points[0], model.returns, LEVELS[::4], generator=generator)
        held += found.low < truth < found.high
    assert held >= 20


def test_rates_of_the_laboratory_are_those_of_many_samples() -> None:
    """Where it is known at what images a flow ends: at training points, and at corners that are none of them."""
    points = torch.cat([torch.zeros(1, 6), 4 * torch.eye(6)[:3] * torch.tensor([[1.0], [1.2], [1.4]])]).double()
    low = MinNormDenoiser(points, 1.0)
    model = HybridDenoiser(low, EmpiricalDenoiser(points), 0.9 * low.highest_level)
    model.dtype = torch.float64
    corners = torch.stack([low.vertex(members) for members in ((), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3))])
    levels = LEVELS[::4]
    noise = torch.randn(20_000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * levels[-1]
    ends = torch.cdist(decode(model, noise, levels), corners)
    share = torch.bincount(ends.argmin(1), minlength=len(corners)) / len(noise)
    assert share.min() > 0.01
    for corner, plain in enumerate(share.tolist()):

        def ends_there(states: Tensor, corner: int = corner) -> Tensor:
            return torch.cdist(states, corners).argmin(1) == corner

        found = generation_rate(
            model,
            corners[corner],
            ends_there,
            levels,
            factor=1.3,
            generator=torch.Generator().manual_seed(corner),
        )
        assert found.rate == pytest.approx(plain, rel=0.4)


def plain_rate(model: Mixture) -> float:
    """Return the share of many plain samples that return, by the coarser grid."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 8, dtype=torch.float64, generator=generator) * LEVELS[::4][-1]
    return float(model.returns(decode(model, noise, LEVELS[::4])).double().mean())


def test_what_never_returns_is_not_measurable() -> None:
    model = Mixture(16, 0.1)
    found = generation_rate(
        model, model.points[0], lambda states: torch.zeros(len(states), dtype=torch.bool), LEVELS, most_draws=4 * ROUND
    )
    assert not found.measurable
    assert all(math.isnan(value) for value in (found.rate, found.low, found.high))
    assert (found.draws, found.returned, found.effective) == (3 * ROUND, 0, 0)


def test_one_heavy_draw_is_not_measurable() -> None:
    """The image is made in one place of noise that no shift leads to: few draws outweigh all others."""
    model, generator = Mixture(16, 0.5), torch.Generator().manual_seed(1)
    far = lambda states: model.returns(states) & (torch.rand(len(states), generator=generator) < 0.02)  # noqa: E731
    found = generation_rate(model, model.points[0], far, LEVELS, most_draws=8 * ROUND, generator=generator)
    assert found.returned < 8 * ROUND
    assert not found.measurable


def test_settings_are_checked() -> None:
    model = Mixture(2, 0.5)
    with pytest.raises(ValueError, match=r"factor is 1\.0: expected above 1"):
        generation_rate(model, model.points[0], model.returns, LEVELS, factor=1.0)
    with pytest.raises(ValueError, match="there are 1 noise levels: expected at least 2"):
        generation_rate(model, model.points[0], model.returns, LEVELS[:1])


def test_the_same_generator_gives_the_same_rate() -> None:
    model = Mixture(8, 0.2)
    rates = [
        generation_rate(model, model.points[0], model.returns, LEVELS, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert rates[0] == rates[1]
