"""The linear one-step denoiser."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from torch.testing import assert_close

import volgrowth as vg
from tests.support.simplexes import randn, scalar
from volgrowth.theory.linear import divergence, divergence_of_all, seen_always, seen_once


def centred(count: int, dimension: int, seed: int = 0) -> torch.Tensor:
    data = randn(count, dimension, seed=seed)
    return data - data.mean(0)


@pytest.mark.parametrize("count", [3, 20])
def test_every_noise_gives_the_linear_denoiser(count: int) -> None:
    data, y = centred(count, 6), randn(4, 6, seed=1)
    assert_close(y @ seen_always(data, 0.7).T, vg.LinearDenoiser(data)(y, scalar(0.7)), atol=1e-12, rtol=0)


def test_more_and_more_noises_of_each_sample_give_the_same() -> None:
    data, copies = centred(5, 4), 40_000
    weights = seen_once(data.repeat(copies, 1), randn(5 * copies, 4, seed=1), 0.7)
    assert_close(weights, seen_always(data, 0.7), atol=0.01, rtol=0)


def test_seen_once_it_interpolates_fewer_samples_than_dimensions() -> None:
    data, noise = randn(4, 6), randn(4, 6, seed=1)
    assert_close((data + 0.5 * noise) @ seen_once(data, noise, 0.5).T, data, atol=1e-10, rtol=0)


def test_divergence_is_that_of_the_gaussians() -> None:
    weights, eye = seen_always(randn(9, 4), 0.6), torch.eye(4, dtype=torch.float64)
    generated = MultivariateNormal(torch.zeros(4).double(), 2.36 * weights @ weights.T + 0.04 * eye)
    data = MultivariateNormal(torch.zeros(4).double(), 2.04 * eye)
    assert divergence(weights, 0.6, 2.0, 0.2) == pytest.approx(kl_divergence(generated, data).item() / 4, rel=1e-10)


def test_divergence_falls_from_as_many_samples_as_dimensions_on() -> None:
    """Seen once: a peak at n = D, and monotonic fall from there. Seen with every noise: no peak."""
    counts, dimension, level = [12, 20, 26, 30, 34, 45, 60, 120, 400], 30, 0.3

    def mean(count: int, once: bool) -> float:
        found = []
        for seed in range(8):
            data, noise = randn(count, dimension, seed=seed), randn(count, dimension, seed=100 + seed)
            weights = seen_once(data, noise, level) if once else seen_always(data, level)
            found.append(divergence(weights, level))
        return sum(found) / len(found)

    once, always = ([mean(count, kind) for count in counts] for kind in (True, False))
    peak = counts.index(dimension)
    assert max(once) == once[peak]
    assert once[peak:] == sorted(once[peak:], reverse=True)
    assert always == sorted(always, reverse=True)
    weights = seen_always(randn(200_000, 3), level)
    assert divergence(weights, level) == pytest.approx(divergence_of_all(level), rel=0.05)


def test_growth_is_the_same_for_every_image() -> None:
    denoiser = vg.LinearDenoiser(randn(9, 3))
    levels = torch.linspace(-3, 3, 60, dtype=torch.float64).exp()
    identity = torch.eye(3, dtype=torch.float64).expand(8, 3, 3)
    growth = vg.volume_growth(
        denoiser, 3 * randn(8, 3, seed=1), vg.VESchedule(), levels, "multistep", tangents=identity, coordinates="y"
    ).log_volume[:, -1]
    variances = denoiser.variances
    expected = ((variances + levels[-1] ** 2) / (variances + levels[0] ** 2)).log().sum() / 2
    assert_close(growth, growth[:1].expand(8), atol=1e-10, rtol=0)
    assert_close(growth[0], expected, atol=0.02, rtol=0)
