"""Samplers, on Gaussian data where every one of their steps is linear and known."""

from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch.testing import assert_close

from volgrowth.numerics import GaussianDenoiser, VESchedule
from volgrowth.numerics.flow import ddim_sample, decode

VARIANCES = torch.tensor([0.0, 0.01, 0.25, 4.0], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)


def model() -> GaussianDenoiser:
    denoiser = GaussianDenoiser(MEAN, VARIANCES)
    denoiser.schedule = VESchedule()
    return denoiser


def expected_variance(levels: list[float], eta: float) -> torch.Tensor:
    """Return the samples' variance: each step maps y - mean to c (y - mean) + v z."""
    variance = torch.full_like(VARIANCES, levels[-1] ** 2)
    for t, s in pairwise(reversed(levels)):
        fresh = eta * s * sqrt(t**2 - s**2) / t
        weight = VARIANCES / (VARIANCES + t**2)
        variance = (weight + sqrt(s**2 - fresh**2) / t * (1 - weight)) ** 2 * variance + fresh**2
    return (VARIANCES / (VARIANCES + levels[0] ** 2)) ** 2 * variance


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_have_the_variance_that_the_steps_give(eta: float) -> None:
    levels = torch.linspace(-4, 4, 9, dtype=torch.float64).exp()
    noise = torch.randn(40_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = MEAN + levels[-1] * noise
    drawn = decode(model(), y, levels, eta, torch.Generator().manual_seed(1))
    assert_close(drawn.mean(0), MEAN, atol=0.03, rtol=0)
    assert_close(drawn.var(0), expected_variance(levels.tolist(), eta), atol=1e-12, rtol=0.03)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_short_steps_give_the_data(eta: float) -> None:
    times = torch.linspace(-6, 5, 600, dtype=torch.float64).exp()
    noise = torch.randn(20_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = ddim_sample(model(), times[-1] * noise, times, eta, torch.Generator().manual_seed(1))
    assert_close(drawn.var(0), VARIANCES, atol=1e-5, rtol=0.05)


def test_an_ancestral_step_keeps_the_noise_of_a_point_mass() -> None:
    """At a point mass y_s = x_0 + s e for every s, whatever was drawn before."""
    denoiser = GaussianDenoiser(0.0, 0.0)
    y = 3.0 * torch.randn(100_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = []

    class Watched(GaussianDenoiser):
        def noise(self, y: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
            seen.append((noise_level.item(), y.std().item()))
            return denoiser.noise(y, noise_level)

    levels = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64)
    decode(Watched(0.0, 0.0), y, levels, 1.0, torch.Generator().manual_seed(1))
    assert [level for level, _ in seen] == [3.0, 1.0, 0.5]
    for level, spread in seen:
        assert spread == pytest.approx(level, rel=0.02)


def test_the_flow_needs_no_generator_and_ancestral_sampling_repeats_with_one() -> None:
    times = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    noise = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ddim_sample(model(), noise, times), ddim_sample(model(), noise, times))
    first, second, third = (
        ddim_sample(model(), noise, times, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_what_cannot_be_sampled_is_said() -> None:
    noise, times = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0.1, 1.0])
    with pytest.raises(ValueError, match=r"eta is 2\.0: expected 0"):
        ddim_sample(model(), noise, times, 2.0)
    with pytest.raises(ValueError, match="no schedule"):
        ddim_sample(GaussianDenoiser(0.0, 1.0), noise, times)
