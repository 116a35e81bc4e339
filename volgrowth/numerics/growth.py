r"""Volume growth along the probability flow: the measurement this project exists for.

Images are points x at time t_0. Tangents u_1..u_k at a point span a small parallelepiped; the flow's step map has
Jacobian A, and after each step A U = Q R. The k-dimensional volume grows by the factor prod_i R_ii, so

    log_volume = sum over steps and axes of log R_ii                          nats
    log_edges  = sum over steps and axes of log |A u_i|, with QR after each step

The second is what the code of Hasegawa & Yasuda (arXiv 2503.19429) sums; by Hadamard it is an upper bound of the first,
with equality for k = 1. In y = x / alpha the log volume is smaller by k log(alpha_end / alpha_start).

**Ceiling.** noise_level^2 times the Jacobian of an exact denoiser is a covariance, so no step that is short enough
stretches any axis more than it does for a point mass, whose log volume in y is log(level_end / level_start) per axis.
More than that is network error (`above_ceiling`). Where a step, or a stage of it, turns a tangent round (u . A u < 0)
it was too long for the curvature there and its volume means nothing (`sign_flip`).
"""

from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.schedules import Schedule, VPSchedule
from volgrowth.numerics.solvers import SOLVERS, Node, nodes
from volgrowth.numerics.tangents import Derivative, Stack, evaluations, noise_stack, orthonormal

Coordinates = Literal["x", "y"]

PUBLISHED_SCHEDULE = VPSchedule(beta_min=0.1, beta_max=20.0)

# relative to k log(level ratio): float32 states and differences of radius .05 stay below it on exact denoisers
CEILING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class VolumeGrowth:
    """Growth of k-dimensional volume. Logs are cumulative over steps, in nats.

    Attributes:
        log_volume: (B, steps) sum of log diag R.
        log_edges: (B, steps) the same before orthogonalisation.
        endpoint: (B, *image) the images at the last time, in the coordinates asked for.
        ceiling: (steps,) the largest log volume an exact denoiser can show with this solver.
        above_ceiling: (B,) the log volume passed the ceiling at some step.
        sign_flip: (B,) a step or a stage of it reversed a tangent.
        nfe: network evaluations per image, one for the image and one for each tangent; two for each tangent where
            jvp had to take them one by one (`numerics.tangents`).
    """

    log_volume: Float[Tensor, "batch steps"]
    log_edges: Float[Tensor, "batch steps"]
    endpoint: Images
    ceiling: Float[Tensor, "steps"]
    above_ceiling: Bool[Tensor, "batch"]
    sign_flip: Bool[Tensor, "batch"]
    nfe: int


def volume_growth(
    denoiser: Denoiser,
    images: Images,
    schedule: Schedule = PUBLISHED_SCHEDULE,
    times: Float[Tensor, "nodes"] | None = None,
    solver: Literal["euler", "ddim", "heun", "multistep"] = "euler",
    derivative: Derivative = "jvp",
    radius: float = 0.05,
    tangents: Float[Tensor, "batch k *image"] | None = None,
    num_tangents: int = 1,
    coordinates: Coordinates = "x",
    generator: torch.Generator | None = None,
) -> VolumeGrowth:
    """Log volume growth from image to noise (arXiv 2503.19429, alg. 1, with QR in place of edge lengths).

    Args:
        denoiser: the model, in y-coordinates.
        images: (B, *image) in [-1, 1], float32 or float64, taken as x at `times[0]`.
        schedule: defines x and native time; by default the published one.
        times: (steps + 1,) increasing; default the published `linspace(1e-3, 1.001, 1001)`.
        solver: `euler` in native time, as published; `ddim`, `heun`, `multistep` in the noise level, best on
            times that are uniform in log noise level.
        derivative: `jvp`, exact, at the same price, and the only one for networks of less than float32;
            `difference`, as published, with `radius` in x-coordinates.
        tangents: directions to follow, orthonormalised here; random ones otherwise.
        num_tangents: how many random ones, at most the dimension of an image.
        generator: for the random tangents; on the CPU, so that every device draws the same.

    Raises:
        ValueError: shapes that do not fit, times without rising noise levels, an unknown solver, derivative or
            coordinates, a radius that is not positive, differences of a network of less than float32.
        NotImplementedError: jvp, and the network uses an operation that torch has no forward-mode derivative for.
    """
    _check_choice("solver", solver, tuple(SOLVERS))
    _check_choice("derivative", derivative, get_args(Derivative))
    _check_choice("coordinates", coordinates, get_args(Coordinates))
    _check_radius(denoiser, derivative, radius)
    check_images(denoiser, images)
    grid = nodes(schedule, torch.linspace(1e-3, 1.001, 1001, dtype=torch.float64) if times is None else times)
    if len(grid) < 2:
        raise ValueError("times has one entry: expected steps + 1 of them, two or more")
    frame = initial_tangents(images, tangents, num_tangents, generator)
    stack = torch.cat([(images / grid[0].alpha)[:, None], frame], 1)
    path = _march(denoiser, stack, grid, solver, derivative, radius)
    k = frame.shape[1]

    drift = torch.zeros(len(grid) - 1, dtype=torch.float64)
    if coordinates == "x":
        drift = k * torch.tensor([node.alpha / grid[0].alpha for node in grid[1:]], dtype=torch.float64).log()
    ceiling = k * _point_mass_log_volume(grid, solver) + drift
    # no copy here makes the host wait for the steps that the device is still at
    drift, limit = (
        each.to(path.log_volume.device, path.log_volume.dtype, non_blocking=True) for each in (drift, ceiling)
    )
    log_volume = path.log_volume + drift
    slack = CEILING_TOLERANCE * k * log(grid[-1].noise_level / grid[0].noise_level)
    return VolumeGrowth(
        log_volume=log_volume,
        log_edges=path.log_edges + drift,
        endpoint=path.endpoint * (grid[-1].alpha if coordinates == "x" else 1.0),
        ceiling=ceiling,
        above_ceiling=(log_volume > limit + slack).any(1),
        sign_flip=path.sign_flip,
        nfe=SOLVERS[solver].evaluations * evaluations(denoiser, k, derivative) * (len(grid) - 1),
    )


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")


def _check_radius(denoiser: Denoiser, derivative: Derivative, radius: float) -> None:
    """A difference needs a displacement, and a network that resolves it."""
    if not radius > 0:
        raise ValueError(f"radius is {radius}: expected more than 0")
    if derivative == "difference" and denoiser.precision in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"derivative 'difference' of a network in {denoiser.precision}: a displacement of {radius:g} is lost in "
            f"its rounding; expected 'jvp', or the network in float32"
        )


def check_images(denoiser: Denoiser, images: Images) -> None:
    """Images must be a float batch of the denoiser's shape.

    Raises:
        ValueError: saying what was given and what was expected.
    """
    expected = denoiser.image_shape
    if images.ndim < 2 or (expected is not None and tuple(images.shape[1:]) != expected):
        shape = "(B, *image)" if expected is None else f"(B, {', '.join(map(str, expected))})"
        raise ValueError(f"images have shape {tuple(images.shape)}: expected {shape}")
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"images are {images.dtype}: expected float32 or float64, since states and sums stay there")


def initial_tangents(
    images: Images, tangents: Tensor | None, num_tangents: int, generator: torch.Generator | None
) -> Float[Tensor, "batch k *image"]:
    """Orthonormal tangents at the images: the given ones, or a uniformly random frame drawn on the CPU."""
    dimension = images.shape[1:].numel()
    if tangents is None:
        if not 1 <= num_tangents <= dimension:
            raise ValueError(f"num_tangents is {num_tangents}: expected 1 to {dimension}, the image's dimension")
        shape = (len(images), num_tangents, *images.shape[1:])
        tangents = torch.randn(shape, generator=generator, dtype=images.dtype)
    elif tangents.ndim != images.ndim + 1 or tangents.shape[2:] != images.shape[1:] or len(tangents) != len(images):
        raise ValueError(
            f"tangents have shape {tuple(tangents.shape)}: expected "
            f"({len(images)}, k, {', '.join(map(str, images.shape[1:]))})"
        )
    elif not 1 <= tangents.shape[1] <= dimension:
        raise ValueError(f"{tangents.shape[1]} tangents in {dimension} dimensions: expected 1 to {dimension}")
    return orthonormal(tangents.to(images))[0]


@dataclass(frozen=True)
class _Path:
    log_volume: Tensor
    log_edges: Tensor
    endpoint: Tensor
    sign_flip: Tensor


@torch.no_grad()  # trainable weights must not chain the steps into one graph
def _march(
    denoiser: Denoiser, stack: Stack, grid: list[Node], name: str, derivative: Derivative, radius: float
) -> _Path:
    """Take every step of the grid in y-coordinates, re-orthonormalising after each."""

    frame = stack[:, 1:]
    flipped = torch.zeros(len(stack), dtype=torch.bool, device=stack.device)

    def watch(tangents: Tensor) -> None:
        flipped.logical_or_(((tangents * frame).flatten(2).sum(2) < 0).any(1))

    def evaluate(stack: Stack, node: Node) -> Stack:
        watch(stack[:, 1:])  # a stage in mid-step can turn round where the whole step, as heun's, turns back
        # the published displacement has length `radius` in x = alpha y
        return noise_stack(denoiser, stack, node.noise_level, derivative, radius / node.alpha)

    solver, memory = SOLVERS[name](), None
    volumes, edges = [], []
    for t, s in pairwise(grid):
        stack, memory = solver.step(evaluate, stack, t, s, memory)
        moved = stack[:, 1:]
        watch(moved)
        frame, r = orthonormal(moved)
        volumes.append(r.diagonal(dim1=1, dim2=2).log().sum(1))
        edges.append(moved.flatten(2).norm(dim=2).log().sum(1))
        stack = torch.cat([stack[:, :1], frame], 1)
        memory = memory and memory.reframed(r)
    return _Path(torch.stack(volumes, 1).cumsum(1), torch.stack(edges, 1).cumsum(1), stack[:, 0], flipped)


def _point_mass_log_volume(grid: list[Node], solver: str) -> Float[Tensor, "steps"]:
    """Log volume per axis at a point mass, by the same discrete steps: log(level_s / level_t), or Euler's product.

    The flow of a point mass at 0 is linear, e = y / level, so that its points move as its tangents do.
    """
    rule, memory, path = SOLVERS[solver](), None, [torch.ones(1, 1, dtype=torch.float64)]
    for t, s in pairwise(grid):
        moved, memory = rule.step(lambda y, node: y / node.noise_level, path[-1], t, s, memory)
        path.append(moved)
    return torch.cat(path[1:])[:, 0].log()
