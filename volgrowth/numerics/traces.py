r"""Full-dimensional growth by traces: how many directions have collapsed around an image.

In y-coordinates the log volume of all D dimensions grows, per unit of log noise_level, at the rate

    rate(y, level) = D - tr dE[x_0|y]/dy = level tr de/dy            collapsed directions per e-fold of noise

since dy/dlog level = level e(y). Hutchinson's estimate of the trace uses probes u with independent signs,
E[u . A u] = tr A, shared by all images of a call, so that images differ by their own geometry only. u . (de/dy) u comes
from one backward pass to the input per probe. Along a grid of levels the trapezoid of the rate in log level is the log
volume, and

    log p(y at levels[0]) = log_volume + log p(endpoint at levels[-1])         (Liouville; Neural ODE, arXiv 1806.07366)

with p taken as N(0, levels[-1]^2 I) at the far end. D - rate is the trace term of FLIPD, an estimate of the local
intrinsic dimension (arXiv 2406.03537), which in these coordinates is D - rate + |e(y)|^2.

The same product gives |(de/dy)^T u|^2, whose mean over probes is the squared Frobenius norm of de/dy. With the score
-e / level, level de/dy is minus level^2 times the Hessian of the log density: `sharpness` is the length of that Hessian
in units of the noise, what arXiv 2412.04140 calls sharp around memorized images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, pi

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.growth import check_images
from volgrowth.numerics.schedules import VESchedule
from volgrowth.numerics.solvers import Multistep, Node, nodes


@dataclass(frozen=True)
class TraceGrowth:
    """Growth of full-dimensional volume along the flow, y-coordinates.

    Attributes:
        rate: (B, levels) D - tr dE[x_0|y]/dy, mean over probes.
        probe_rates: (B, levels, probes) what each probe said.
        noise_norm: (B, levels) length of the expected noise; noise_norm / level is that of the score.
        sharpness: (B, levels) Frobenius norm of level de/dy, estimated from the probes; sqrt(D) for a point mass.
        log_volume: (B,) nats, trapezoid of the rate in log noise level; 0 for a single level.
        log_likelihood: (B,) log density at `noise_levels[0]`, nats.
        endpoint: (B, *image) the images at the last level.
        other_rates: (B, levels, others) rates of the other denoisers at the same points, by the same probes.
        above_ceiling: (B,) a rate is above D: negative posterior variance on average, which is network error.
        nfe: network evaluations per image: one forward and one backward per probe, level and denoiser.
    """

    rate: Float[Tensor, "batch levels"]
    probe_rates: Float[Tensor, "batch levels probes"]
    noise_norm: Float[Tensor, "batch levels"]
    sharpness: Float[Tensor, "batch levels"]
    log_volume: Float[Tensor, "batch"]
    log_likelihood: Float[Tensor, "batch"]
    endpoint: Images
    other_rates: Float[Tensor, "batch levels others"]
    above_ceiling: Bool[Tensor, "batch"]
    nfe: int


# of D, for rounding: a point mass has rate D exactly
CEILING_TOLERANCE = 1e-3


def trace_growth(
    denoiser: Denoiser,
    images: Images,
    noise_levels: Float[Tensor, "levels"],
    num_probes: int = 1,
    generator: torch.Generator | None = None,
    others: Sequence[Denoiser] = (),
) -> TraceGrowth:
    """Rate of full-dimensional growth at each noise level along the flow that starts at the images.

    Rates of `others`, such as the same network without its condition, are measured at the points of this flow. Rates
    are linear in the expected noise, so that of guidance by w (arXiv 2207.12598), noise = u + w (c - u), is
    rate_u + w (rate_c - rate_u) there, at no evaluation more.

    Args:
        images: (B, *image) in [-1, 1], float32 or float64, taken as y at `noise_levels[0]`.
        noise_levels: (levels,) rising from above 0; one level measures the rate at the images themselves.
        num_probes: probes per level, drawn afresh for each level.
        generator: for the probes; on the CPU, so that every device draws the same.
        others: denoisers of the same states.

    Raises:
        ValueError: shapes that do not fit, levels that do not rise, no probes.
    """
    check_images(denoiser, images)
    if num_probes < 1:
        raise ValueError(f"num_probes is {num_probes}: expected at least 1")
    grid = nodes(VESchedule(), noise_levels)
    measured, aside = [], list[Tensor]()

    def noise(y: Images, node: Node) -> Images:
        probes = torch.randint(0, 2, (num_probes, *y.shape[1:]), generator=generator)
        probes = probes.to(y.device, y.dtype, non_blocking=True) * 2 - 1
        measured.append(_noise_and_rate(denoiser, y, node.noise_level, probes))
        aside.extend(_noise_and_rate(other, y, node.noise_level, probes)[1].mean(1) for other in others)
        return measured[-1][0]

    y = carry(noise, images, grid)
    noise(y, grid[-1])
    noises, rates, sharps = zip(*measured, strict=True)
    probe_rates = torch.stack(rates, 1)
    rate = probe_rates.mean(2)
    log_levels = torch.tensor([node.noise_level for node in grid], dtype=torch.float64).log()
    log_volume = torch.trapezoid(rate, log_levels.to(rate.device, rate.dtype, non_blocking=True), dim=1)
    dimension = images.shape[1:].numel()
    return TraceGrowth(
        rate=rate,
        probe_rates=probe_rates,
        noise_norm=torch.stack([each.flatten(1).norm(dim=1) for each in noises], 1),
        sharpness=torch.stack(sharps, 1),
        log_volume=log_volume,
        log_likelihood=log_volume + _log_normal(y, grid[-1].noise_level),
        endpoint=y,
        other_rates=torch.stack([*aside], 1).reshape(len(y), len(grid), -1) if others else rate[:, :, None][:, :, :0],
        above_ceiling=(rate > dimension * (1 + CEILING_TOLERANCE)).any(1),
        nfe=len(grid) * (1 + num_probes) * (1 + len(others)),
    )


def carry(noise: Callable[[Images, Node], Images], y: Images, grid: list[Node]) -> Images:
    """Images carried along the flow from the first to the last node by multistep.

    `noise` gives the expected noise at the images and a node, and is asked once at each node but the last.
    """
    solver, memory, stack = Multistep(), None, y[:, None]
    for t, s in pairwise(grid):
        stack, memory = solver.step(lambda points, node: noise(points[:, 0], node)[:, None], stack, t, s, memory)
    return stack[:, 0]


def _noise_and_rate(
    denoiser: Denoiser, y: Images, noise_level: float, probes: Float[Tensor, "probes *image"]
) -> tuple[Images, Float[Tensor, "batch probes"], Float[Tensor, "batch"]]:
    """The expected noise at y, level * u . (de/dy) u for Rademacher probes u, and the sharpness."""
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        noise = denoiser.noise(point, torch.tensor(noise_level, dtype=torch.float64))
        rates, squares = [], []
        for probe in probes:
            # images of a batch do not mix, so one backward pass serves them all
            (product,) = torch.autograd.grad(noise, point, probe.expand_as(noise), retain_graph=True)
            rates.append(noise_level * (product * probe).flatten(1).sum(1))
            squares.append((noise_level * product).flatten(1).square().sum(1))
    return noise.detach(), torch.stack(rates, 1), torch.stack(squares, 1).mean(1).sqrt()


def _log_normal(y: Images, scale: float) -> Float[Tensor, "batch"]:
    """log N(y; 0, scale^2 I)."""
    flat = y.flatten(1)
    return -((flat / scale) ** 2).sum(1) / 2 - flat.shape[1] * (log(scale) + log(2 * pi) / 2)
