r"""Volume growth along the probability flow from image to noise: the measurement this project exists for.

**Volume.** An image is a point x at the first time t_0. Small displacements u_1..u_k from it, the *tangents*, span a
parallelepiped, which the flow carries along with the point. One step of a solver maps displacements by its Jacobian A.
The columns of U are the tangents, orthonormal before the step; after it they are A U = Q R with Q orthonormal and R
upper triangular, so the k-dimensional volume has grown by the factor det R = prod_i R_ii. The next step starts with Q
(Benettin et al., Meccanica 15, 1980). Hence, in nats,

    log_volume = sum over steps and axes of log R_ii
    log_edges  = sum over steps and axes of log |A u_i|, with the same QR after each step

The code of Hasegawa & Yasuda (arXiv 2503.19429) sums the second. By Hadamard's inequality it is an upper bound of the
first, with equality for k = 1.

**Coordinates.** Steps are taken in y = x / alpha. A volume of k dimensions in x is alpha^k times that in y, so the log
volume in x is that in y plus k log(alpha_end / alpha_start), which is negative.

**Ceiling.** noise_level^2 times the Jacobian of an exact denoiser is a covariance, so no step that is short enough
stretches any axis more than it does for a point mass, whose log volume in y is log(level_end / level_start) per axis.
More than that is network error (`above_ceiling`). A step, or a stage of it, that turns a tangent round (u . A u < 0)
was too long for the curvature there, and its volume means nothing (`sign_flip`).
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
"""The schedule of arXiv 2503.19429."""

CEILING_TOLERANCE = 1e-3
"""Share of k log(level_end / level_start) by which a log volume may exceed the ceiling.

On exact denoisers, float32 states and differences of radius 0.05 stay below it.
"""


@dataclass(frozen=True)
class VolumeGrowth:
    """Growth of k-dimensional volume, in nats and cumulative over steps: the last entry is the whole growth.

    Attributes:
        log_volume: (B, steps) sum of log diag R over steps and axes, in the images' dtype.
        log_edges: (B, steps) sum of log edge lengths before orthogonalisation, in the images' dtype.
        endpoint: (B, *image) the images at the last time, in the coordinates that were asked for.
        ceiling: (steps,) float64, the largest log volume that an exact denoiser can show with this solver.
        above_ceiling: (B,) True if the log volume passed the ceiling at some step.
        sign_flip: (B,) True if a step or a stage of it reversed a tangent.
        nfe: network evaluations per image, for each step one for the image and one for each tangent. If `jvp` had to
            take tangents one by one (`numerics.tangents`), it is two for each tangent.
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
    """Measure log volume growth from image to noise (arXiv 2503.19429, alg. 1, with QR in place of edge lengths).

    Args:
        denoiser: the model.
        images: (B, *image) in [-1, 1], float32 or float64, taken as x at `times[0]`.
        schedule: defines x-coordinates and native time. The default is the published one, for every model: the
            flow depends on noise levels alone, not on the schedule that the model was trained with.
        times: (steps + 1,) native times with rising noise levels; by default the published
            `linspace(1e-3, 1.001, 1001)`.
        solver: `euler` in native time, the default, as published; `ddim`, `heun` and `multistep` step in the noise
            level, and are best on times that are uniform in log noise level.
        derivative: `jvp`, the default, is exact and costs as many evaluations; it is the only one for networks of less
            than float32. `difference` is the published one.
        radius: length of the displacement of a difference, in x-coordinates; 0.05 as published. `jvp` does not use it.
        tangents: (B, k, *image) directions to follow, orthonormalised here; by default random ones.
        num_tangents: how many random tangents, from 1, as published, to the dimension of an image.
        coordinates: `x`, the default, as published, or `y` for log volumes and endpoints in y-coordinates.
        generator: draws the random tangents, on the CPU so that every device draws the same; by default torch's
            global one.

    Returns:
        Log volumes after each step, the images at the last time, and marks of results that are not to be trusted.

    Raises:
        ValueError: shapes that do not fit, times without rising noise levels, an unknown solver, derivative or
            coordinates, a radius that is not positive, or differences of a network of less than float32.
        NotImplementedError: `jvp`, and torch has no forward-mode derivative of an operation of the network.
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
    volumes, edges, endpoint, sign_flip = _march(denoiser, stack, grid, solver, derivative, radius)
    k = frame.shape[1]

    drift = torch.zeros(len(grid) - 1, dtype=torch.float64)
    if coordinates == "x":
        drift = k * torch.tensor([node.alpha / grid[0].alpha for node in grid[1:]], dtype=torch.float64).log()
    ceiling = k * _point_mass_log_volume(grid, solver) + drift
    drift, limit = (_filled(each, volumes) for each in (drift, ceiling))
    log_volume = volumes + drift
    slack = CEILING_TOLERANCE * k * log(grid[-1].noise_level / grid[0].noise_level)
    return VolumeGrowth(
        log_volume=log_volume,
        log_edges=edges + drift,
        endpoint=endpoint * (grid[-1].alpha if coordinates == "x" else 1.0),
        ceiling=ceiling,
        above_ceiling=(log_volume > limit + slack).any(1),
        sign_flip=sign_flip,
        nfe=SOLVERS[solver].evaluations * evaluations(denoiser, k, derivative) * (len(grid) - 1),
    )


def _filled(numbers: Float[Tensor, "steps"], beside: Tensor) -> Float[Tensor, "steps"]:
    """Return numbers of the host beside a tensor, by no copy: a CUDA graph can record none."""
    return torch.stack([beside.new_full((), number) for number in numbers.tolist()])


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"unknown {name} {given!r}: expected one of {', '.join(known)}")


def _check_radius(denoiser: Denoiser, derivative: Derivative, radius: float) -> None:
    """Check that there is a displacement, and that the network's precision resolves a difference over it."""
    if not radius > 0:
        raise ValueError(f"radius is {radius}: expected more than 0")
    if derivative == "difference" and denoiser.precision in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"derivative 'difference' of a network in {denoiser.precision}: a displacement of {radius:g} is lost in "
            f"its rounding; expected 'jvp', or the network in float32"
        )


def check_images(denoiser: Denoiser, images: Images) -> None:
    """Check that images are a batch of the denoiser's shape, in float32 or float64.

    Raises:
        ValueError: they are not; the sentence says what was given and what was expected.
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
    """Return orthonormal tangents at the images: the given ones, or uniformly random ones drawn on the CPU.

    Args:
        images: (B, *image).
        tangents: (B, k, *image); None for random ones.
        num_tangents: how many random ones.
        generator: draws the random ones.

    Returns:
        (B, k, *image), in the images' dtype and on their device.

    Raises:
        ValueError: tangents of another shape, or fewer than 1 or more than the image's dimension.
    """
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


@torch.no_grad()  # trainable weights must not chain the steps into one graph
def _march(
    denoiser: Denoiser, stack: Stack, grid: list[Node], name: str, derivative: Derivative, radius: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take every step of the grid in y-coordinates, with QR after each.

    Returns:
        Cumulative log volumes and log edges (B, steps), the endpoint (B, *image), and marks of reversed tangents (B,).
    """
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
    return torch.stack(volumes, 1).cumsum(1), torch.stack(edges, 1).cumsum(1), stack[:, 0], flipped


def _point_mass_log_volume(grid: list[Node], solver: str) -> Float[Tensor, "steps"]:
    """Return log volumes (steps,) per axis at a point mass, by the same discrete steps.

    The flow of a point mass at 0 is linear, e = y / level, so that its points move as its tangents do.
    """
    rule, memory, path = SOLVERS[solver](), None, [torch.ones(1, 1, dtype=torch.float64)]
    for t, s in pairwise(grid):
        moved, memory = rule.step(lambda y, node: y / node.noise_level, path[-1], t, s, memory)
        path.append(moved)
    return torch.cat(path[1:])[:, 0].log()
