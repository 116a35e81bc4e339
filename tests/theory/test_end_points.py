"""End points of flows against the statements of arXiv 2506.19031, in float64."""

from itertools import combinations
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal
from torch.testing import assert_close

import volgrowth as vg
from tests.support.simplexes import orthogonal, randn, scalar, simplex
from volgrowth.numerics.flow import decode, encode
from volgrowth.theory import (
    HybridDenoiser,
    MinNormDenoiser,
    classify,
    is_stable,
    probability_flow,
    score_flow,
    stable_sums,
    vertex_time,
)

PUBLISHED = {90.5: 32, 92.0: 26, 95.0: 16, 100.0: 6}


def subsets(count: int) -> list[tuple[int, ...]]:
    return [members for size in range(count + 1) for members in combinations(range(1, count + 1), size)]


def log_levels(low: float, high: float, steps: int) -> Tensor:
    return torch.linspace(scalar(low).log(), scalar(high).log(), steps + 1, dtype=torch.float64).exp()


@pytest.mark.parametrize(("coordinate", "rate"), [(0.0, -1.0), (1.0, -1.0), (0.5, 0.2 / 0.8)])
def test_ends_of_an_edge_attract_at_rate_1_and_its_middle_repels(coordinate: float, rate: float) -> None:
    denoiser = MinNormDenoiser(simplex([1.0], dimension=1), 1.0)
    point = denoiser.origin + coordinate * denoiser.directions[0]
    velocity = torch.func.jacrev(lambda y: (denoiser(y[None], scalar(0.1)) - y)[0])(point)
    assert_close(velocity, scalar(rate).reshape(1, 1), atol=1e-12, rtol=0)
    assert_close(denoiser(point[None], scalar(0.1))[0], point, atol=1e-12, rtol=0)


def test_the_middle_repels_exponentially() -> None:
    denoiser = MinNormDenoiser(simplex([1.0], dimension=1), 1.0)
    start = denoiser.origin + 0.51 * denoiser.directions
    reached = denoiser.coordinates(score_flow(denoiser, start, 0.1, 4.0, 1000)).item()
    assert reached - 0.5 == pytest.approx(0.01 * torch.tensor(0.25 * 4.0).exp().item(), rel=1e-2)


def test_every_corner_of_orthogonal_data_is_stable() -> None:
    denoiser = orthogonal(lengths=(1.0, 1.2, 1.5, 2.0), dimension=6)
    assert stable_sums(denoiser, 0.1) == subsets(4)
    corners = torch.stack([denoiser.vertex(members) for members in subsets(4)])
    assert_close(denoiser(corners, scalar(0.1)), corners, atol=1e-12, rtol=0)
    shaken = corners + 0.05 * randn(16, 6, seed=2)
    ends = classify(denoiser, score_flow(denoiser, shaken, 0.1, 20.0, 20), 1e-6)
    assert [end.members for end in ends] == subsets(4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), level=st.floats(0.2, 0.6))
def test_the_score_flow_ends_at_the_corner_nearest_to_its_start(seed: int, level: float) -> None:
    denoiser = orthogonal()
    start = denoiser.origin + 1.5 * randn(8, 5, seed=seed)
    start = start[((denoiser.coordinates(start) - denoiser.lengths / 2).abs() > 0.02).all(1)]
    corners = torch.stack([denoiser.vertex(members) for members in subsets(3)])
    nearest = torch.cdist(start, corners).argmin(1)
    ends = score_flow(denoiser, start, level, 400.0, 400)
    assert_close(ends, corners[nearest], atol=1e-9, rtol=0)
    assert [end.members for end in classify(denoiser, ends, 1e-8)] == [subsets(3)[k] for k in nearest]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), low=st.floats(1e-3, 0.3), steps=st.integers(1, 7))
def test_the_probability_flow_is_a_straight_line(seed: int, low: float, steps: int) -> None:
    """Any steps give y = h + (sigma / sigma_T) (y_T - h), and h does not change."""
    denoiser, top = orthogonal(), 0.6
    start = denoiser.origin + 1.5 * randn(6, 5, seed=seed)
    target = denoiser(start, scalar(top))
    levels = log_levels(low, top, steps)
    reached = probability_flow(denoiser, start, levels)
    assert_close(reached, target + low / top * (start - target), atol=1e-10, rtol=0)
    assert_close(decode(denoiser, start, levels), target, atol=1e-9, rtol=0)
    assert_close(encode(denoiser, reached, levels), start, atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), margin=st.floats(0.3, 2.0))
def test_the_flow_reaches_a_corner_iff_the_variance_is_above_tau(seed: int, margin: float) -> None:
    denoiser = orthogonal(margin)
    start = denoiser.origin + 1.2 * randn(30, 5, seed=seed)
    top = 0.8 * denoiser.highest_level
    ends = classify(denoiser, decode(denoiser, start, log_levels(1e-3, top, 5)), 1e-8)
    expected = vertex_time(denoiser, start) <= top**2
    assert [end.kind in ("origin", "training", "virtual") for end in ends] == expected.tolist()
    assert all(end.kind != "other" for end in ends)


def test_just_above_tau_is_a_corner_and_just_below_is_not() -> None:
    denoiser = orthogonal(1.0)
    y = (denoiser.origin + denoiser.directions.T @ torch.tensor([0.3, 1.6, 0.1], dtype=torch.float64))[None]
    tau = vertex_time(denoiser, y)
    assert_close(tau, scalar(0.09)[None], atol=1e-12, rtol=0)
    for factor, kind, members in ((1.001, "training", (2,)), (0.999, "manifold", (1, 2))):
        level = sqrt(0.09 * factor)
        (end,) = classify(denoiser, decode(denoiser, y, torch.tensor([1e-3, level], dtype=torch.float64)), 1e-9)
        assert end.kind == kind
        # 1e-3 of the third edge is nothing, as is the rest of the first one
        assert end.members == members


@pytest.mark.parametrize(("angle", "count"), PUBLISHED.items())
def test_as_many_sums_of_obtuse_data_are_stable_as_published(angle: float, count: int) -> None:
    denoiser = MinNormDenoiser(simplex([1.0] * 5, angle), 1.0)
    assert len(stable_sums(denoiser, 0.1)) == count


@pytest.mark.parametrize("angle", PUBLISHED)
def test_the_criterion_is_what_the_flow_does(angle: float) -> None:
    """Corners that are stable are fixed and come back from a push; the others are left."""
    denoiser = MinNormDenoiser(simplex([1.0, 1.1, 0.9, 1.2], angle), 1.0)
    corners = torch.stack([denoiser.vertex(members) for members in subsets(4)])
    fixed = (denoiser(corners, scalar(0.1)) - corners).abs().amax(1) < 1e-12
    assert fixed.tolist() == [is_stable(denoiser, members, 0.1) for members in subsets(4)]
    back = score_flow(denoiser, corners + 1e-3 * randn(16, 4), 0.1, 40.0, 400)
    returned = (back - corners).abs().amax(1) < 1e-9
    assert returned.tolist() == fixed.tolist()


@pytest.mark.parametrize("count", [2, 8])
def test_memorization_by_the_hybrid_flow_falls_with_the_number_of_points(count: int) -> None:
    """Exact posterior mean above sigma = .1, min-norm below: Phi(a)^(N - 1) of the samples are training points."""
    margin, samples = 1.5, 2000
    low = MinNormDenoiser(simplex([2.0] * (count - 1), dimension=12), margin)
    hybrid = HybridDenoiser(low, vg.EmpiricalDenoiser(low.points), 0.1)
    noise = randn(samples, 12, seed=1)
    chosen = torch.randint(count, (samples,), generator=torch.Generator().manual_seed(2))
    drawn = decode(hybrid, low.points[chosen] + 5.0 * noise, log_levels(1e-3, 5.0, 400))
    ends = classify(low, drawn, 1e-6)
    share = sum(end.kind in ("origin", "training") for end in ends) / samples
    expected = Normal(0.0, 1.0).cdf(torch.tensor(margin)).item() ** (count - 1)
    assert share == pytest.approx(expected, abs=4 * sqrt(expected * (1 - expected) / samples))


def test_kinds_and_members_of_points() -> None:
    denoiser = orthogonal()
    first, second, third = denoiser.points[1:] - denoiser.points[0]
    off = torch.linalg.svd(denoiser.directions)[2][3]
    y = denoiser.points[0] + torch.stack(
        [0 * first, second, first + third, 0.3 * first + second, 1.2 * first, second + 0.1 * off]
    )
    ends = classify(denoiser, y, 1e-6)
    kinds = ["origin", "training", "virtual", "manifold", "other", "other"]
    assert [end.kind for end in ends] == kinds
    assert [end.members for end in ends] == [(), (2,), (1, 3), (1, 2), (), ()]
    assert_close(denoiser.vertex((1, 3)), y[2], atol=1e-12, rtol=0)
