"""The closed form: what it does at its points, off them, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import volgrowth as vg
from tests.support.simplexes import orthogonal, randn, rotation, scalar, simplex
from volgrowth.theory import HybridDenoiser, MinNormDenoiser

ANGLES = st.sampled_from([90.0, 91.0, 95.0, 100.0])


@settings(max_examples=25, deadline=None)
@given(angle=ANGLES, level=st.floats(0.01, 0.6), seed=st.integers(0, 1000))
def test_noisy_copies_within_rho_go_back_to_their_point(angle: float, level: float, seed: int) -> None:
    points = simplex([1.0, 1.3, 2.0], angle, dimension=6, seed=seed)
    denoiser = MinNormDenoiser(points, 0.8)
    directions = randn(40, 6, seed=seed)
    noise = directions / directions.norm(dim=1, keepdim=True) * denoiser.rho(scalar(level))
    noisy = points.repeat_interleave(10, 0) + noise
    assert_close(denoiser(noisy, scalar(level)), points.repeat_interleave(10, 0), atol=1e-12, rtol=0)


def test_it_is_a_shallow_relu_network() -> None:
    """The sum over 2 N units a [w . y + b]_+ with the signs and slopes of the formula, written out."""
    denoiser, level = orthogonal(), scalar(0.3)
    y, rho = randn(50, 5, seed=3) * 2, 0.24
    expected = denoiser.origin.repeat(50, 1)
    for u, length in zip(denoiser.directions, denoiser.lengths, strict=True):
        t = (y - denoiser.origin) @ u
        slope = length / (length - 2 * rho)
        expected += (slope * (torch.relu(t - rho) - torch.relu(t - (length - rho))))[:, None] * u
    assert_close(denoiser(y, level), expected, atol=1e-12, rtol=0)


def test_its_middle_maps_to_the_middle_and_its_jacobian_is_the_slope_of_the_ramps() -> None:
    denoiser, level = orthogonal(), scalar(0.3)
    middle = denoiser.points.double()[:1] + (denoiser.points[1] - denoiser.points[0]) / 2
    assert_close(denoiser(middle, level), middle, atol=1e-12, rtol=0)
    jacobian = torch.func.jacrev(lambda y: denoiser(y[None], level)[0])(middle[0])
    expected = 1.0 / (1.0 - 0.48) * torch.outer(denoiser.directions[0], denoiser.directions[0])
    assert_close(jacobian, expected, atol=1e-12, rtol=0)


def test_images_rotate_with_their_points() -> None:
    points, turn, y = simplex([1.0, 2.0], 95.0, dimension=6), rotation(6, 5), randn(8, 6)
    plain, turned = MinNormDenoiser(points, 1.0), MinNormDenoiser((points @ turn).reshape(3, 1, 2, 3), 1.0)
    assert turned.image_shape == (1, 2, 3)
    moved = turned((y @ turn).reshape(8, 1, 2, 3), scalar(0.2))
    assert_close(moved.flatten(1), plain(y, scalar(0.2)) @ turn, atol=1e-12, rtol=0)


def test_a_level_for_each_image() -> None:
    denoiser, y = orthogonal(), randn(3, 5)
    for model in (denoiser, HybridDenoiser(denoiser, vg.EmpiricalDenoiser(denoiser.points), 0.3)):
        levels = torch.tensor([0.1, 0.25, 0.5], dtype=torch.float64)
        alone = torch.cat([model(y[k : k + 1], levels[k]) for k in range(3)])
        assert_close(model(y, levels), alone, atol=1e-12, rtol=0)
        noise = torch.cat([model.noise(y[k : k + 1], levels[k]) for k in range(3)])
        assert_close(model.noise(y, levels), noise, atol=1e-12, rtol=0)


def test_a_hybrid_is_one_below_its_level_and_the_other_above() -> None:
    low = orthogonal()
    high = vg.EmpiricalDenoiser(low.points)
    hybrid, y = HybridDenoiser(low, high, 0.5), randn(4, 5)
    assert hybrid.image_shape == (5,)
    assert torch.equal(hybrid(y, scalar(0.5)), low(y, scalar(0.5)))
    assert torch.equal(hybrid.noise(y, scalar(7.0)), high.noise(y, scalar(7.0)))
    with pytest.raises(ValueError, match=r"low takes images \(5,\), high \(6,\): expected the same shape"):
        HybridDenoiser(low, vg.EmpiricalDenoiser(randn(2, 6)), 0.5)


def test_an_acute_pair_is_named_with_its_angle() -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, math.cos(1.0), math.sin(1.0)]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"points 2 and 3 are at an angle of 57\.30 degrees .* expected at least 90"):
        MinNormDenoiser(points, 1.0)


def test_float32_points_that_are_orthogonal_but_for_rounding_are_taken() -> None:
    denoiser = MinNormDenoiser(simplex([1.0] * 20, dimension=60).float(), 1.0)
    assert denoiser(randn(2, 60).float(), torch.tensor(0.1)).dtype == torch.float32


@pytest.mark.parametrize(
    ("points", "margin", "message"),
    [
        ([[0.0], [1.0]], 0.0, "margin is 0.0: expected a number above 0"),
        ([[0.0], [1.0]], math.inf, "margin is inf: expected"),
        ([[0.0]], 1.0, r"shape \(1, 1\): expected \(N \+ 1, \*image\), two or more"),
        ([[0.0, 1.0], [0.0, 1.0]], 1.0, "point 1 equals point 0: expected each point once"),
        ([[0.0], [1.0], [-1.0]], 1.0, "2 edges at point 0 span 1 dimensions: expected a simplex"),
    ],
)
def test_what_is_no_simplex_is_refused(points: list[list[float]], margin: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MinNormDenoiser(torch.tensor(points, dtype=torch.float64), margin)


def test_above_its_highest_level_it_refuses_and_says_what_does_not() -> None:
    denoiser = orthogonal()
    assert denoiser.highest_level == pytest.approx(1 / 1.6)
    denoiser(randn(1, 5), scalar(0.624))
    with pytest.raises(ValueError, match=r"noise level 0\.7 has margin 0\.56: .* below 0\.625; .* HybridDenoiser"):
        denoiser(randn(1, 5), scalar(0.7))
