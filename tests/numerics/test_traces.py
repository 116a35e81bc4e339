import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.support.networks import Counting, Scaled, Smooth, UNet, jacobian, log_levels, randn, seeded
from volgrowth.numerics import Denoiser, EmpiricalDenoiser, GaussianDenoiser, LinearDenoiser, trace_growth

LEVELS = torch.tensor([0.1, 0.18, 0.5], dtype=torch.float64)


def test_diagonal_jacobians_need_one_probe() -> None:
    """Rademacher probes measure the trace of a diagonal matrix without error: D - sum v / (v + level^2)."""
    variance = torch.tensor([0.0, 0.01, 0.3, 2.0], dtype=torch.float64)
    h = trace_growth(GaussianDenoiser(0.2, variance), randn(3, 4), LEVELS)
    expected = 4 - (variance / (variance + LEVELS[:, None] ** 2)).sum(1)
    assert_close(h.rate, expected.expand(3, 3), rtol=0, atol=1e-12)
    assert_close(h.probe_rates, expected[:, None].expand(3, 3, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("denoiser", [Smooth(6), EmpiricalDenoiser(randn(4, 2, 3))])
def test_a_probe_measures_its_quadratic_form(denoiser: Denoiser) -> None:
    """Against the dense Jacobian and probes drawn as documented: (probes, *image), afresh for each level."""
    level, images = torch.tensor(0.7, dtype=torch.float64), randn(3, 2, 3, seed=5)
    h = trace_growth(denoiser, images, level[None], num_probes=400, generator=seeded(1))
    dense = 0.7 * jacobian(lambda y: denoiser.noise(y, level), images)
    trace = dense.diagonal(dim1=1, dim2=2).sum(1)
    symmetric = (dense + dense.mT) / 2
    off = symmetric - torch.diag_embed(symmetric.diagonal(dim1=1, dim2=2))
    deviation = (2 * (off**2).sum((1, 2))).sqrt()  # of u . A u for Rademacher u
    assert ((h.rate[:, 0] - trace).abs() < 4 * deviation / math.sqrt(400)).all()
    spread = h.probe_rates[:, 0].std(1)
    assert_close(spread, deviation, rtol=0.2, atol=0)
    assert_close(h.rate, h.probe_rates.mean(2), rtol=1e-12, atol=0)


def test_the_exact_trace_is_the_mean_over_all_signs() -> None:
    """In two dimensions the four sign vectors give the trace exactly; every probe is one of their values."""
    level, images = torch.tensor(0.7, dtype=torch.float64), randn(3, 2)
    dense = 0.7 * jacobian(lambda y: Smooth(2).noise(y, level), images)
    trace, cross = dense.diagonal(dim1=1, dim2=2).sum(1), dense[:, 0, 1] + dense[:, 1, 0]
    probes = trace_growth(Smooth(2), images, level[None], num_probes=16, generator=seeded()).probe_rates[:, 0]
    same = (probes - (trace + cross)[:, None]).abs() < 1e-12
    opposite = (probes - (trace - cross)[:, None]).abs() < 1e-12
    assert (same ^ opposite).all()
    assert same.any()
    assert opposite.any()
    assert (same == same[0]).all()  # all images share their probes


def test_log_volume_is_the_closed_form() -> None:
    variance = torch.tensor([0.01, 0.3, 2.0], dtype=torch.float64)
    exact = 0.5 * ((variance + 16.0) / (variance + 0.01)).log().sum()
    errors = []
    for steps in (40, 80):
        h = trace_growth(GaussianDenoiser(0.0, variance), randn(2, 3), log_levels(0.1, 4.0, steps))
        errors.append((h.log_volume - exact).abs().max().item())
    assert errors[1] < 1e-3
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    "denoiser",
    [
        GaussianDenoiser(0.2, torch.tensor([0.01, 0.3])),
        EmpiricalDenoiser(randn(4, 2) / 2),
        LinearDenoiser(randn(9, 2)),
    ],
)
def test_log_likelihood_is_log_prob(denoiser: GaussianDenoiser | EmpiricalDenoiser | LinearDenoiser) -> None:
    """At a far end so noisy that the data's own spread is lost in it; many probes stand for the trace."""
    images = randn(3, 2, seed=5) / 2
    h = trace_growth(denoiser, images, log_levels(0.4, 300.0, 60), num_probes=50, generator=seeded())
    exact = denoiser.log_prob(images, torch.tensor(0.4, dtype=torch.float64))
    assert_close(h.log_likelihood, exact, rtol=0, atol=0.05)


def test_the_endpoint_follows_the_flow() -> None:
    variance, images = torch.tensor([0.01, 0.3, 2.0], dtype=torch.float64), randn(2, 3)
    h = trace_growth(GaussianDenoiser(0.2, variance), images, log_levels(0.1, 4.0, 200))
    expected = 0.2 + (images - 0.2) * ((variance + 16.0) / (variance + 0.01)).sqrt()
    assert_close(h.endpoint, expected, rtol=1e-3, atol=1e-3)


def test_a_single_level() -> None:
    images = randn(2, 3)
    h = trace_growth(Smooth(3), images, LEVELS[1:2], num_probes=2, generator=seeded())
    assert h.rate.shape == (2, 1)
    assert h.log_volume.tolist() == [0.0, 0.0]
    assert_close(h.endpoint, images, rtol=0, atol=0)
    expected = -(images**2).sum(1) / (2 * 0.18**2) - 3 * math.log(0.18 * math.sqrt(2 * math.pi))
    assert_close(h.log_likelihood, expected, rtol=1e-12, atol=0)


def test_nfe_counts_forward_and_backward_passes() -> None:
    counting = Counting(Smooth(3))
    h = trace_growth(counting, randn(2, 3), LEVELS, num_probes=4)
    assert counting.calls == 3  # one forward a level, and each probe adds a backward
    assert counting.rows == 2 * 3
    assert h.nfe == 3 + 3 * 4


def test_probes_come_from_the_generator_and_change_with_the_level() -> None:
    class Constant(Denoiser):
        """de/dy is the same matrix / level everywhere, so only the probe changes a rate."""

        def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
            return (y.flatten(1) @ randn(16, 16)).reshape(y.shape) / noise_level.to(y)

    first, again, other = (
        trace_growth(Constant(), randn(2, 16), log_levels(0.1, 0.2, 3), generator=seeded(seed)).rate
        for seed in (1, 1, 2)
    )
    assert first.tolist() == again.tolist()
    assert (first - other).abs().min() > 1e-6
    assert first[0].unique().numel() == 4
    assert_close(first[0], first[1])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(cut=st.integers(0, 5), order=st.permutations(range(5)))
def test_batches_do_not_matter(cut: int, order: list[int]) -> None:
    images = randn(5, 1, 2, 3)

    def rates(images: Tensor) -> Tensor:
        h = trace_growth(Smooth(6), images, LEVELS, num_probes=2, generator=seeded())
        return torch.cat([h.rate, h.log_volume[:, None], h.log_likelihood[:, None], h.endpoint.flatten(1)], 1)

    whole = rates(images)
    assert_close(torch.cat([rates(images[:cut]), rates(images[cut:])]), whole, rtol=1e-11, atol=1e-11)
    assert_close(rates(images[order]), whole[order], rtol=1e-11, atol=1e-11)


def test_memory_format_does_not_matter() -> None:
    images = randn(2, 2, 8, 8)
    plain = trace_growth(UNet(channels=2), images, LEVELS[:2], generator=seeded())
    channels_last = images.to(memory_format=torch.channels_last)
    assert not channels_last.is_contiguous()
    other = trace_growth(UNet(channels=2), channels_last, LEVELS[:2], generator=seeded())
    assert_close(other.rate, plain.rate, rtol=1e-9, atol=1e-9)


def test_float32_agrees() -> None:
    double = trace_growth(Smooth(6), randn(3, 6), LEVELS, num_probes=2, generator=seeded())
    single = trace_growth(Smooth(6), randn(3, 6).float(), LEVELS, num_probes=2, generator=seeded())
    assert single.rate.dtype == torch.float32
    assert_close(single.rate.double(), double.rate, rtol=1e-5, atol=1e-5)
    assert_close(single.log_likelihood.double(), double.log_likelihood, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ceiling_is_a_point_mass(dtype: torch.dtype) -> None:
    images = randn(2, 6).to(dtype)
    assert trace_growth(Scaled(1.0), images, LEVELS).above_ceiling.tolist() == [False, False]
    assert trace_growth(Scaled(1.01), images, LEVELS).above_ceiling.tolist() == [True, True]


def test_the_flow_of_a_trainable_network_is_detached() -> None:
    h = trace_growth(UNet(), randn(1, 1, 8, 8), LEVELS[:2])
    assert not any(value.requires_grad for value in (h.rate, h.log_volume, h.log_likelihood, h.endpoint))


def test_no_images_make_no_rows() -> None:
    h = trace_growth(Smooth(3), randn(0, 3), LEVELS, num_probes=2)
    assert h.probe_rates.shape == (0, 3, 2)
    assert h.log_likelihood.shape == (0,)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="num_probes is 0: expected at least 1"):
        trace_growth(Smooth(3), randn(1, 3), LEVELS, num_probes=0)
    with pytest.raises(ValueError, match=r"entry 1 of the grid, 0\.18.* after 0\.5: expected"):
        trace_growth(Smooth(3), randn(1, 3), LEVELS.flip(0))
    with pytest.raises(ValueError, match=r"images have shape \(1, 3\): expected \(B, 1, 8, 8\)"):
        trace_growth(UNet(), randn(1, 3), LEVELS)
    with pytest.raises(ValueError, match=r"images are torch.float16: expected float32 or float64"):
        trace_growth(Smooth(3), randn(1, 3).half(), LEVELS)
