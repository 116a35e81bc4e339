"""The sampler that stops early."""

from math import exp, pi

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import volgrowth as vg
from tests.support.simplexes import randn, scalar
from volgrowth.numerics.flow import decode
from volgrowth.theory import inertia_sample, probability_flow
from volgrowth.theory.inertia import memorized_ratio, memorized_share, stopped


def circle(count: int) -> Tensor:
    angles = torch.linspace(0, 2 * pi, count + 1, dtype=torch.float64)[:-1]
    points = torch.zeros(count, 10, dtype=torch.float64)
    points[:, 0], points[:, 1] = angles.cos(), angles.sin()
    return points


LEVELS = torch.linspace(-7, 2.3, 60, dtype=torch.float64).exp()


def test_it_is_the_flow_up_to_the_stop_and_one_posterior_mean() -> None:
    denoiser, y = vg.EmpiricalDenoiser(randn(6, 4)), 10 * randn(20, 4, seed=1)
    grid = stopped(LEVELS, 0.3)
    assert grid[0] == 0.3
    assert (grid.diff() > 0).all()
    reached = inertia_sample(denoiser, y, LEVELS, 0.3)
    assert torch.equal(reached, decode(denoiser, y, grid))
    fine = torch.linspace(scalar(0.3).log(), 2.3, 400, dtype=torch.float64).exp()
    blurred = probability_flow(denoiser, y, fine)
    assert_close(inertia_sample(denoiser, y, fine, 0.3), denoiser(blurred, scalar(0.3)), atol=0.02, rtol=0)


def test_its_step_is_along_the_score() -> None:
    denoiser, level = vg.EmpiricalDenoiser(randn(6, 4)), scalar(0.3)
    y = randn(5, 4, seed=1).requires_grad_()
    (score,) = torch.autograd.grad(denoiser.log_prob(y, level).sum(), y)
    assert_close(denoiser(y, level), y + level**2 * score, atol=1e-10, rtol=0)


def test_a_gaussian_loses_what_the_last_step_takes_off() -> None:
    """Stopped at s the variance is v + s^2, and the posterior mean multiplies by v / (v + s^2)."""
    denoiser = vg.GaussianDenoiser(0.0, 0.5)
    top = exp(2.3)
    y = (0.5 + top**2) ** 0.5 * randn(20_000, 1)
    fine = torch.linspace(-7, 2.3, 400, dtype=torch.float64).exp()
    for stop in (0.1, 1.0):
        variance = inertia_sample(denoiser, y, fine, stop).var().item()
        assert variance == pytest.approx(0.25 / (0.5 + stop**2), rel=0.03)


def test_a_small_stop_memorizes_and_a_large_one_leaves_the_manifold() -> None:
    points, y = circle(100), 10 * randn(500, 10)
    denoiser = vg.EmpiricalDenoiser(points)
    shares, distances = [], []
    for stop in (0.003, 0.03, 0.1, 0.3):
        reached = inertia_sample(denoiser, y, LEVELS, stop)
        shares.append(memorized_share(reached, points, 1e-3))
        distances.append((reached[:, :2].norm(dim=1) - 1).abs().mean().item())
        assert reached[:, 2:].abs().max() < 1e-12  # means of points stay in their plane
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert shares[2] < 0.001
    assert distances == sorted(distances)
    assert distances[2] == pytest.approx(0.1**2 / 2, rel=0.1)  # the mean of an arc of width s lies s^2 / 2 inside


def test_shares_count_what_is_near() -> None:
    training = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    samples = torch.tensor([[0.0, 1e-9], [0.2, 0.0], [0.4, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert memorized_share(samples, training, 1e-6) == 0.5
    assert memorized_ratio(samples, training) == 0.75


@pytest.mark.parametrize("stop", [0.0, 50.0])
def test_where_it_cannot_stop_is_said(stop: float) -> None:
    with pytest.raises(ValueError, match=r"the sampler stops at .*: expected above 0 and below 9\.97"):
        stopped(LEVELS, stop)
