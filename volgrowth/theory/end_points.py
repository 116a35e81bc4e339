r"""End points of the flows of a min-norm denoiser.

Two flows start at y and follow the denoiser h (arXiv 2506.19031). r is time, and T is the variance sigma_T^2 that the
second starts from:

    score flow           dy/dr = h(y) - y            at one noise level, so with one rho
    probability flow     dy/dr = h_rho(r)(y) - y     with r = log(sigma_T / sigma) and rho = a sigma

**Score flow.** Take orthogonal data and the coordinate t = u_n . (y - x_0) along an edge. Both ends of the edge, t = 0
and t = l, attract at rate 1, and its middle repels: dt/dr = 2 rho / (l - 2 rho) (t - l / 2) on the ramp. So every
corner of the box

    x_0 + sum over n in I of (x_n - x_0)        training point if I has at most one member, *virtual point* if more

is stable, and a flow ends at the corner nearest to its start. On an obtuse simplex the corner I has
t_n = l_n - sum over m in I without n of |u_n . u_m| l_m for n in I, and t_n <= 0 for the others, so it is stable iff

    sum over m in I, m != n, of |u_n . u_m| l_m <= rho      for every n in I.

**Probability flow.** On orthogonal data phi_n(t_n) does not change along the flow. Off the ramp phi_n is constant, and
t / rho or (l - t) / rho keeps its value; on the ramp t - l/2 is proportional to l - 2 rho. So the flow is a straight
line,

    y = h + (sigma / sigma_T) (y_T - h)         with h = h(y_T) at sigma_T

and ends at h, which a single step finds. The end is a corner iff no t_n is on a ramp at the start, that is, iff
T >= tau = max_n [min(t_n, l_n - t_n)_+ / a]^2. Otherwise it is another point of the box: with so little noise, the flow
stops before it reaches one end of the edge.

**Frequency.** A flow that has reached sigma next to the training point x_k is at y = x_k + sigma e with e ~ N(0, I).
Each t_n is off the ramp with probability Phi(a), independently, so among N training points

    P(the flow ends at x_k) = Phi(a)^(N - 1)        which falls with N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.flow import carry
from volgrowth.numerics.schedules import VESchedule
from volgrowth.numerics.solvers import Node, nodes
from volgrowth.theory.min_norm import MinNormDenoiser

Kind = Literal["origin", "training", "virtual", "manifold", "other"]
KINDS: tuple[Kind, ...] = ("origin", "training", "virtual", "manifold", "other")


@torch.no_grad()
def score_flow(denoiser: Denoiser, y: Images, noise_level: float, duration: float, steps: int) -> Images:
    """Follow the score flow from y.

    In each step the distance to h(y) shrinks by the factor exp(-duration / steps), which is exact where h is constant.

    Args:
        denoiser: h.
        y: (B, *image), y-coordinates.
        noise_level: the level at which h is evaluated throughout.
        duration: time of the flow, in units of r.
        steps: number of steps.

    Returns:
        The points reached, (B, *image).
    """
    level = torch.tensor(noise_level, dtype=torch.float64)
    kept = torch.tensor(-duration / steps, dtype=torch.float64).exp().item()
    for _ in range(steps):
        denoised = denoiser(y, level)
        y = denoised + kept * (y - denoised)
    return y


@torch.no_grad()
def probability_flow(denoiser: Denoiser, y: Images, noise_levels: Float[Tensor, "nodes"]) -> Images:
    """Follow the probability flow down from the last noise level to the first.

    `volgrowth.numerics.flow.decode` then denoises the points that it has reached; here their noise stays.

    Args:
        denoiser: h.
        y: (B, *image), y-coordinates of the last noise level.
        noise_levels: (nodes,) rising.

    Returns:
        The points reached, (B, *image), y-coordinates of the first noise level.
    """

    def noise(y: Images, node: Node) -> Images:
        return denoiser.noise(y, torch.tensor(node.noise_level, dtype=torch.float64))

    return carry(noise, y, nodes(VESchedule(), noise_levels)[::-1])


def vertex_time(denoiser: MinNormDenoiser, y: Images) -> Float[Tensor, "batch"]:
    """Return tau (B,): on orthogonal data the probability flow from y at variance T ends at a corner iff T >= tau."""
    t = denoiser.coordinates(y)
    on_ramp = torch.minimum(t, denoiser.lengths.to(t) - t).clamp(min=0)
    return (on_ramp.amax(1) / denoiser.margin) ** 2


def is_stable(denoiser: MinNormDenoiser, members: Sequence[int], noise_level: float) -> bool:
    """Return True if the corner of these points (1 .. N) is a stable point of the score flow at this noise level."""
    chosen = [n - 1 for n in members]
    pulled = denoiser.gram[chosen][:, chosen].abs().fill_diagonal_(0) @ denoiser.lengths[chosen]
    return bool((pulled <= denoiser.rho(torch.tensor(noise_level))).all())


def stable_sums(denoiser: MinNormDenoiser, noise_level: float) -> list[tuple[int, ...]]:
    """Return the sets of points whose corner is stable, the empty set for x_0 among them; all 2^N sets are tried."""
    indices = range(1, len(denoiser.lengths) + 1)
    subsets = (members for size in range(len(indices) + 1) for members in combinations(indices, size))
    return [members for members in subsets if is_stable(denoiser, members, noise_level)]


@dataclass(frozen=True)
class EndPoint:
    """The place of a point among the training points of a min-norm denoiser.

    Attributes:
        kind: `origin` for x_0; `training` for another training point; `virtual` for a corner of two or more;
            `manifold` for another point of the box that the edges span; `other` for the rest.
        members: the points (1 .. N) of the corner, or those along whose edges a manifold point lies.
    """

    kind: Kind
    members: tuple[int, ...]


def classify(denoiser: MinNormDenoiser, y: Images, tolerance: float) -> list[EndPoint]:
    """Say which kind of point each of some points is.

    With y - x_0 = sum_n b_n u_n + rest, the nearest corner is found by rounding every b_n to 0 or l_n, the nearest
    point of the box by clamping b_n to [0, l_n].

    Args:
        denoiser: h, which holds the training points.
        y: (B, *image).
        tolerance: largest difference of a pixel at which a point counts as being there.
    """
    centred = y.double().flatten(1) - denoiser.origin
    t = centred @ denoiser.directions.T
    coefficients = torch.linalg.solve(denoiser.gram, t.T).T
    high = coefficients > denoiser.lengths / 2
    boxed = coefficients.clamp(min=0).minimum(denoiser.lengths)
    corner, inside = (
        (centred - weights @ denoiser.directions).abs().amax(1) <= tolerance
        for weights in (high * denoiser.lengths, boxed)
    )
    ends = []
    for k in range(len(y)):
        there = high[k] if corner[k] else coefficients[k] > tolerance
        members = tuple((there.nonzero()[:, 0] + 1).tolist())
        if corner[k]:
            kinds: tuple[Kind, ...] = ("origin", "training", "virtual")
            ends.append(EndPoint(kinds[min(len(members), 2)], members))
        else:
            ends.append(EndPoint("manifold" if inside[k] else "other", members if inside[k] else ()))
    return ends
