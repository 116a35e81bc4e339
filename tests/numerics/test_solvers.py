import math
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.support.networks import SOLVERS, Smooth, SolverName, encode, log_levels, randn
from volgrowth.numerics import (
    DDPMSchedule,
    EmpiricalDenoiser,
    FlowMatchingSchedule,
    GaussianDenoiser,
    Schedule,
    VESchedule,
    VPSchedule,
    volume_growth,
)
from volgrowth.numerics.solvers import nodes

VP = VPSchedule(0.1, 20.0)
Product = Callable[[float, list[float], list[float]], float]


def vp_levels(times: list[float]) -> list[float]:
    return [math.sqrt(math.expm1(19.9 * t * t / 2 + 0.1 * t)) for t in times]


def euler(v: float, t: list[float], s: list[float]) -> float:
    """In x: dx/dt = -beta/2 (x + score), score = -(x - alpha mean) / (alpha^2 v + sigma^2)."""
    product = 1.0
    for i in range(len(t) - 1):
        beta, alpha2 = 0.1 + 19.9 * t[i], 1 / (1 + s[i] ** 2)
        product *= 1 - (t[i + 1] - t[i]) * beta / 2 * (1 - 1 / (alpha2 * v + 1 - alpha2))
    return product * math.sqrt((1 + s[-1] ** 2) / (1 + s[0] ** 2))


def ddim(v: float, t: list[float], s: list[float]) -> float:
    return math.prod(1 + (b - a) * a / (v + a * a) for a, b in pairwise(s))


def heun(v: float, t: list[float], s: list[float]) -> float:
    product = 1.0
    for a, b in pairwise(s):
        first = a / (v + a * a)
        product *= 1 + (b - a) / 2 * (first + b / (v + b * b) * (1 + (b - a) * first))
    return product


def multistep(v: float, t: list[float], s: list[float]) -> float:
    y, clean = [1.0], []
    for i in range(len(s) - 1):
        clean.append(v / (v + s[i] ** 2) * y[i])
        middle = clean[i]
        if i:
            r = math.log(s[i] / s[i - 1]) / math.log(s[i + 1] / s[i])
            middle = (1 + 1 / (2 * r)) * clean[i] - 1 / (2 * r) * clean[i - 1]
        y.append(s[i + 1] / s[i] * y[i] + (1 - s[i + 1] / s[i]) * middle)
    return y[-1]


PRODUCTS: dict[str, Product] = {"euler": euler, "ddim": ddim, "heun": heun, "multistep": multistep}


@pytest.mark.parametrize("solver", SOLVERS)
def test_gaussian_steps_are_their_products(solver: SolverName) -> None:
    """The discrete map of a diagonal Gaussian is known exactly, axis by axis; the grid is not uniform."""
    times = [0.01, 0.03, 0.1, 0.2, 0.25, 0.5, 0.7, 1.0]
    variance = torch.tensor([0.0, 1e-4, 0.3, 7.0], dtype=torch.float64)
    images = randn(3, 4)
    # euler moves alpha * mean by Euler steps too, so only a mean of 0 keeps to the product
    mean = randn(4, seed=1) * (solver != "euler")
    factors = [PRODUCTS[solver](v, times, vp_levels(times)) for v in variance.tolist()]
    growth = volume_growth(
        GaussianDenoiser(mean, variance),
        images,
        VP,
        torch.tensor(times, dtype=torch.float64),
        solver=solver,
        num_tangents=4,
        coordinates="y",
    )
    expected = sum(math.log(factor) for factor in factors)
    assert_close(growth.log_volume[:, -1], torch.full((3,), expected, dtype=torch.float64), rtol=0, atol=1e-9)
    y = images / VP(torch.tensor(times[0], dtype=torch.float64))[0]
    expected_y = mean + (y - mean) * torch.tensor(factors, dtype=torch.float64)
    assert_close(growth.endpoint, expected_y, rtol=1e-10, atol=1e-10)


def richardson(values: list[float], first_power: int) -> float:
    """Extrapolate values at 1, 2, 4, ... times as many steps, whose error is a power series in the step."""
    power = first_power
    while len(values) > 1:
        values = [b + (b - a) / (2**power - 1) for a, b in pairwise(values)]
        power += 1
    return values[0]


def test_gaussian_flow_is_the_closed_form() -> None:
    """1/2 sum log((variance + level_1^2) / (variance + level_0^2)) to 1e-9, whatever the image."""
    variance, images = torch.tensor([0.05, 2.0], dtype=torch.float64), randn(2, 2)
    exact = 0.5 * sum(math.log((v + 2.25) / (v + 0.09)) for v in variance.tolist())
    volumes = []
    for steps in (4, 8, 16, 32, 64):
        growth = volume_growth(
            GaussianDenoiser(0.3, variance),
            images,
            VESchedule(),
            log_levels(0.3, 1.5, steps),
            solver="heun",
            num_tangents=2,
        )
        volumes.append(growth.log_volume[:, -1].tolist())
    for column in zip(*volumes, strict=True):
        assert abs(column[-1] - exact) > 1e-7  # the extrapolation has something to do
        assert math.isclose(richardson(list(column), 2), exact, rel_tol=0, abs_tol=1e-9)


def test_mixture_flow_is_the_ratio_of_densities() -> None:
    """log det = log p_0(x_0) - log p_1(x_1) to 1e-9 (Liouville)."""
    mixture, images = EmpiricalDenoiser(randn(4, 2)), randn(3, 2, seed=5)
    runs = [
        volume_growth(mixture, images, VESchedule(), log_levels(1.0, 2.0, steps), solver="heun", num_tangents=2)
        for steps in (4, 8, 16, 32, 64)
    ]
    assert max(run.sign_flip.any() for run in runs) == 0
    levels = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for i in range(3):
        volume = richardson([run.log_volume[i, -1].item() for run in runs], 2)
        end = torch.tensor(
            [[richardson([run.endpoint[i, j].item() for run in runs], 2) for j in range(2)]],
            dtype=torch.float64,
        )
        exact = mixture.log_prob(images[i : i + 1], levels[0]) - mixture.log_prob(end, levels[1])
        assert math.isclose(volume, exact.item(), rel_tol=0, abs_tol=1e-9)


@cache
def full_volume(data: str, solver: SolverName, steps: int) -> float:
    denoiser: GaussianDenoiser | EmpiricalDenoiser = EmpiricalDenoiser(randn(4, 2))
    if data == "gaussian":
        denoiser = GaussianDenoiser(0.3, torch.tensor([0.05, 0.5], dtype=torch.float64))
    times = torch.linspace(0.3, 0.5, steps + 1, dtype=torch.float64)
    if solver != "euler":
        low, high = VP.noise_level(times[[0, -1]]).tolist()
        times = VP.time(log_levels(low, high, steps))
    growth = volume_growth(denoiser, randn(1, 2, seed=5), VP, times, solver=solver, num_tangents=2)
    return growth.log_volume[0, -1].item()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("multistep", 2)])
@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_observed_order(solver: SolverName, order: int, data: str) -> None:
    exact = richardson([full_volume(data, "heun", steps) for steps in (4, 8, 16, 32)], 2)
    errors = [abs(full_volume(data, solver, steps) - exact) for steps in (24, 48)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", ["ddim", "heun", "multistep"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_point_mass_is_exact_in_any_number_of_steps(solver: SolverName, steps: int) -> None:
    target, images = randn(3, seed=1), randn(2, 3)
    grid = torch.cat([torch.tensor([0.01]), torch.rand(steps - 1).sort().values + 0.02, torch.tensor([40.0])]).double()
    growth = volume_growth(GaussianDenoiser(target, 0.0), images, VESchedule(), grid, solver=solver, num_tangents=3)
    exact = 3 * (grid[1:] / grid[0]).log()
    assert_close(growth.log_volume, exact.expand(2, steps), rtol=0, atol=1e-9)
    assert_close(growth.endpoint, target + (images - target) * grid[-1] / grid[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", SOLVERS)
def test_points_move_as_in_x(solver: SolverName) -> None:
    """Against a second implementation that never leaves x, on a network without structure and an uneven grid."""
    times = torch.tensor([0.02, 0.05, 0.2, 0.3, 0.6, 0.95], dtype=torch.float64)
    images = randn(3, 2, 3)
    growth = volume_growth(Smooth(6), images, VP, times, solver=solver)
    assert_close(growth.endpoint, encode(Smooth(6), images, VP, times, solver), rtol=1e-10, atol=1e-10)


TABLE = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100, dtype=torch.float64), 0)


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (VP, [0.001, 0.3, 1.0]),
        (DDPMSchedule(TABLE), [0.4, 31.7, 98.2]),
        (VESchedule(), [0.01, 3.0]),
        (FlowMatchingSchedule(), [0.01, 0.5, 0.9]),
    ],
)
def test_nodes_hold_the_rates(schedule: Schedule, times: list[float]) -> None:
    t, h = torch.tensor(times, dtype=torch.float64), 1e-6

    def central(function: Callable[[Tensor], Tensor]) -> Tensor:
        return (function(t + h) - function(t - h)) / (2 * h)

    grid = nodes(schedule, t)
    rates = torch.tensor([[node.log_alpha_rate, node.noise_level_rate] for node in grid], dtype=torch.float64)
    expected = torch.stack([central(lambda t: schedule(t)[0].log()), central(schedule.noise_level)], 1)
    assert_close(rates, expected, rtol=1e-5, atol=1e-8)
    states = torch.tensor([[node.time, node.alpha, node.noise_level] for node in grid], dtype=torch.float64)
    assert_close(states, torch.stack([t, schedule(t)[0], schedule.noise_level(t)], 1), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("schedule", "times", "message"),
    [
        (VP, [0.0, 0.5], "entry 0 of the grid, 0.0, has noise level 0.0 after 0.0"),
        (VP, [0.1, 0.5, 0.5], "entry 2 of the grid, 0.5, has noise level"),
        (VESchedule(), [1.0, 2.0, 1.5], "entry 2 of the grid, 1.5, has noise level 1.5 after 2.0"),
        (VESchedule(), [1.0, math.nan], "entry 1 of the grid, nan, has noise level nan after 1.0"),
        (FlowMatchingSchedule(), [0.5, 1.0], "entry 1 of the grid, 1.0, has noise level inf after 1.0"),
        (VESchedule(), [], "the grid has shape (0,)"),
        (VESchedule(), [[1.0, 2.0]], "the grid has shape (1, 2)"),
        (VESchedule(), 1.0, "the grid has shape ()"),
    ],
)
def test_a_grid_that_does_not_rise_is_refused(schedule: Schedule, times: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message) + ".*: expected"):
        nodes(schedule, torch.tensor(times, dtype=torch.float64))
