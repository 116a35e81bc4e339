import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.testing import assert_close

from tests.support.networks import randn
from volgrowth.numerics import EmpiricalDenoiser, GaussianDenoiser, LinearDenoiser

LEVELS = [0.05, 0.7, 20.0]
Exact = GaussianDenoiser | EmpiricalDenoiser | LinearDenoiser


def exact_denoisers() -> list[Exact]:
    """Return exact denoisers of states of shape (2, 3); the linear ones of fewer and of more images than dimensions."""
    return [
        GaussianDenoiser(randn(2, 3), randn(2, 3, seed=1) ** 2),
        EmpiricalDenoiser(randn(5, 2, 3), weights=torch.tensor([1.0, 2.0, 0.5, 1.0, 0.0], dtype=torch.float64)),
        LinearDenoiser(randn(4, 2, 3)),
        LinearDenoiser(randn(20, 2, 3)),
    ]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("denoiser", exact_denoisers())
def test_tweedie(denoiser: Exact, level: float) -> None:
    noise_level = torch.tensor(level, dtype=torch.float64)
    y = (randn(4, 2, 3, seed=7) * (1 + level)).requires_grad_()
    (score,) = torch.autograd.grad(denoiser.log_prob(y, noise_level).sum(), y)
    y = y.detach()
    assert_close(denoiser.noise(y, noise_level), -level * score, rtol=1e-9, atol=1e-9)
    assert_close(denoiser(y, noise_level), y + level**2 * score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("denoiser", exact_denoisers())
def test_a_level_for_each_image(denoiser: Exact) -> None:
    y, levels = randn(3, 2, 3, seed=7), torch.tensor(LEVELS, dtype=torch.float64)
    for function in (denoiser, denoiser.noise, denoiser.log_prob):
        alone = torch.cat([function(y[i : i + 1], levels[i]) for i in range(3)])
        assert_close(function(y, levels), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_gaussian_density(level: float) -> None:
    mean, variance, y = randn(6), randn(6, seed=1) ** 2, randn(4, 6, seed=7)
    expected = Independent(Normal(mean, (variance + level**2).sqrt()), 1).log_prob(y)
    actual = GaussianDenoiser(mean, variance).log_prob(y, torch.tensor(level, dtype=torch.float64))
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_mixture_density(level: float) -> None:
    points, weights, y = randn(5, 6), randn(5, seed=1).exp(), randn(4, 6, seed=7)
    components = Independent(Normal(points, torch.full_like(points, level)), 1)
    expected = MixtureSameFamily(Categorical(weights), components).log_prob(y)
    actual = EmpiricalDenoiser(points, weights).log_prob(y, torch.tensor(level, dtype=torch.float64))
    assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 4, 20])
@pytest.mark.parametrize("level", LEVELS)
def test_linear_denoiser_is_the_dense_formula(level: float, count: int) -> None:
    data, y, noise_level = randn(count, 6), randn(4, 6, seed=7), torch.tensor(level, dtype=torch.float64)
    mean = data.mean(0)
    covariance = (data - mean).T @ (data - mean) / count
    total = covariance + level**2 * torch.eye(6, dtype=torch.float64)
    denoiser = LinearDenoiser(data)
    assert_close(denoiser(y, noise_level), mean + (y - mean) @ (covariance @ total.inverse()).T, rtol=1e-9, atol=1e-9)
    expected = MultivariateNormal(mean, total).log_prob(y)
    assert_close(denoiser.log_prob(y, noise_level), expected, rtol=1e-9, atol=1e-9)


def test_weights_count_duplicates() -> None:
    points, y, level = randn(3, 4), randn(5, 4, seed=7), torch.tensor(0.8, dtype=torch.float64)
    repeated = EmpiricalDenoiser(points[[0, 1, 1, 1, 2]])
    weighted = EmpiricalDenoiser(points, torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64))
    assert_close(weighted(y, level), repeated(y, level), rtol=1e-12, atol=1e-12)
    assert_close(weighted.log_prob(y, level), repeated.log_prob(y, level), rtol=1e-12, atol=1e-12)


def test_near_its_nearest_point_a_mixture_is_that_point() -> None:
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    level = torch.tensor(0.05, dtype=torch.float64)
    assert_close(EmpiricalDenoiser(points)(y, level), points[1:], rtol=0, atol=1e-12)


def test_on_the_ridge_a_mixture_is_the_midpoint() -> None:
    points = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    level = torch.tensor(0.05, dtype=torch.float64)
    middle = torch.tensor([[0.0, 0.25]], dtype=torch.float64)
    assert_close(EmpiricalDenoiser(points)(middle, level), middle, rtol=0, atol=1e-12)


@pytest.mark.parametrize("denoiser", exact_denoisers())
def test_float32_keeps_its_digits(denoiser: Exact) -> None:
    # close to the data and at a small level, where y - E[x_0 | y] cancels
    level = torch.tensor(0.01, dtype=torch.float64)
    base = (
        randn(4, 2, 3)
        if not isinstance(denoiser, LinearDenoiser)
        else denoiser.mean.reshape(2, 3) + (randn(4, denoiser.axes.shape[0], seed=3) @ denoiser.axes).reshape(4, 2, 3)
    )
    y = (base + 0.01 * randn(4, 2, 3, seed=7)).float()
    for function in (denoiser.noise, denoiser.log_prob):
        exact = function(y.double(), level)
        actual = function(y, level.float())
        assert actual.dtype == torch.float32
        # y itself carries 6e-8 and the level divides it
        assert_close(actual.double(), exact, rtol=1e-4, atol=1e-4 * max(1.0, exact.abs().max().item()))


def test_broadcast_mean_and_variance() -> None:
    y, level = randn(2, 3), torch.tensor(2.0, dtype=torch.float64)
    broadcast = GaussianDenoiser(0.5, torch.tensor([1.0, 2.0, 3.0]))
    full = GaussianDenoiser(torch.full((3,), 0.5), torch.tensor([1.0, 2.0, 3.0]))
    assert_close(broadcast.log_prob(y, level), full.log_prob(y, level))
    # mean + v / (v + 4) (y - mean), by hand
    assert math.isclose(broadcast(y, level)[0, 2], 0.5 + 3 / 7 * (y[0, 2].item() - 0.5), rel_tol=1e-12)


def test_negative_variance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"variance goes down to -0\.5: expected none below 0"):
        GaussianDenoiser(0.0, torch.tensor([1.0, -0.5]))


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [math.nan, 1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"weights are \[.*\]: expected 2, none below 0 and not all 0"):
        EmpiricalDenoiser(randn(2, 3), Tensor(weights).double())
