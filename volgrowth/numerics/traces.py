r"""Growth of full-dimensional volume by traces: how many directions have collapsed around an image.

**Rate.** In y-coordinates the probability flow is dy / dlog level = level e(y), with e the expected noise. The
divergence of this velocity is the rate at which the log volume of all D dimensions grows per unit of log noise level:

    rate(y, level) = level tr de/dy = D - tr dE[x_0|y]/dy            collapsed directions per e-fold of noise

A direction in which the posterior of x_0 has no spread counts 1, one in which it has the spread of the noise counts 0.

**Probes.** Hutchinson's estimate of a trace uses probes u of independent random signs: E[u . A u] = tr A. All images of
a call share the probes, so that their rates differ by their own geometry only. Each product u . (de/dy) u takes one
backward pass from the output to the input.

**Volume and likelihood.** The log volume is the integral of the rate over log level, by the trapezoidal rule on the
grid of levels. Mass is conserved along the flow, so

    log p(y at levels[0]) = log_volume + log p(endpoint at levels[-1])         (Liouville; Neural ODE, arXiv 1806.07366)

with p taken as N(0, levels[-1]^2 I) at the far end. D - rate is the trace term of FLIPD, an estimate of the local
intrinsic dimension (arXiv 2406.03537), which in these coordinates is D - rate + |e(y)|^2.

**Sharpness.** The same products give |(de/dy)^T u|^2, whose mean over probes is the squared Frobenius norm of de/dy.
The score is -e / level, so level de/dy is minus level^2 times the Hessian of the log density. `sharpness` is the norm
of that Hessian in units of the noise, which arXiv 2412.04140 found to be large around memorized images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, pi

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.flow import carry
from volgrowth.numerics.growth import check_images
from volgrowth.numerics.schedules import VESchedule
from volgrowth.numerics.solvers import Node, nodes


@dataclass(frozen=True)
class TraceGrowth:
    """Growth of full-dimensional volume along the flow, in y-coordinates and the images' dtype.

    Attributes:
        rate: (B, levels) D - tr dE[x_0|y]/dy, the mean over probes, in directions per e-fold of noise.
        probe_rates: (B, levels, probes) the estimate of each probe.
        noise_norm: (B, levels) length of the expected noise; noise_norm / level is the length of the score.
        sharpness: (B, levels) Frobenius norm of level de/dy, estimated from the probes; sqrt(D) for a point mass.
        log_volume: (B,) nats, the trapezoid of the rate over log noise level; 0 for a single level.
        log_likelihood: (B,) log density at `noise_levels[0]`, nats.
        endpoint: (B, *image) the images at the last level.
        other_rates: (B, levels, others) rates of the other denoisers at the same points, by the same probes.
        above_ceiling: (B,) True if a rate is above D: negative posterior variance on average, which is network error.
        nfe: network evaluations per image. A level costs one forward pass and one backward pass per probe, for each
            denoiser.
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


# share of D that a rate may exceed D by: a point mass has rate D exactly, and rounding must not mark it
CEILING_TOLERANCE = 1e-3


def trace_growth(
    denoiser: Denoiser,
    images: Images,
    noise_levels: Float[Tensor, "levels"],
    num_probes: int = 1,
    generator: torch.Generator | None = None,
    others: Sequence[Denoiser] = (),
) -> TraceGrowth:
    """Measure the rate of full-dimensional growth at each noise level along the flow that starts at the images.

    Args:
        denoiser: the model, whose flow carries the images.
        images: (B, *image) in [-1, 1], float32 or float64, taken as y at `noise_levels[0]`.
        noise_levels: (levels,) rising from above 0; a single level measures the rate at the images themselves.
        num_probes: probes per level, drawn afresh for each level. The default, one, is the cheapest: a mean over levels
            averages the noise of the estimate as more probes do.
        generator: draws the probes, on the CPU so that every device draws the same; by default torch's global one.
        others: denoisers of the same states, such as the model without its condition, whose rates are measured at the
            points of this flow. Rates are linear in the expected noise, so the rate of guidance
            noise = u + w (c - u) (arXiv 2207.12598) is rate_u + w (rate_c - rate_u) there, without a further
            evaluation.

    Returns:
        Rates, volume, likelihood and sharpness of each image.

    Raises:
        ValueError: images of another shape or dtype than the denoiser's, levels that do not rise, or no probes.
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


def _noise_and_rate(
    denoiser: Denoiser, y: Images, noise_level: float, probes: Float[Tensor, "probes *image"]
) -> tuple[Images, Float[Tensor, "batch probes"], Float[Tensor, "batch"]]:
    """Return the expected noise at y, level u . (de/dy) u for each probe u, and the sharpness."""
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
    """Return log N(y; 0, scale^2 I), nats."""
    flat = y.flatten(1)
    return -((flat / scale) ** 2).sum(1) / 2 - flat.shape[1] * (log(scale) + log(2 * pi) / 2)
