r"""The shallow ReLU denoiser of minimum norm: a network for which it is known what it memorizes.

Consider all networks h(y) = sum_k a_k [w_k . y + b_k]_+ + V y + c that map every noisy copy of a training point, up to
a distance rho, to that point. The one with the smallest sum of |a_k|^2 + |w_k|^2 is known in closed form if the points
x_0, x_1, .. x_N form an obtuse simplex (Zeno et al., arXiv 2506.19031; arXiv 2311.06748). With

    u_n = (x_n - x_0) / l_n,    l_n = |x_n - x_0|,    u_n . u_m <= 0 for n != m

it is a sum of ramps, one along each edge at x_0, flat within rho of both of its ends:

    h(y) = x_0 + sum_n u_n phi_n(u_n . (y - x_0))
    phi_n(t) = l_n / (l_n - 2 rho) ([t - rho]_+ - [t - (l_n - rho)]_+)

Here rho = margin * noise_level, so that a share Phi(margin) of Gaussian noise stays within rho along one edge. The ramp
needs rho < min l_n / 2, so the network is defined only below the noise level `highest_level`, the low-noise regime of
the source. Above that level noise mixes the training points up, and no network interpolates them.

h is piecewise linear, with the Jacobian sum_n phi_n' u_n u_n^T and phi_n' either 0 or l_n / (l_n - 2 rho).
"""

from math import acos, degrees, isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images, NoiseLevel

# rounding in the cosine of an angle that should be 90 degrees, for points in float32
ROUNDING = 1e-6


class MinNormDenoiser(Denoiser):
    """The shallow ReLU denoiser h of minimum norm, in y-coordinates (arXiv 2506.19031; arXiv 2311.06748).

    h(y) = x_0 + sum_n u_n phi_n(u_n . (y - x_0)) with u_n = (x_n - x_0) / l_n and l_n = |x_n - x_0|. The ramp phi_n is
    0 up to rho, l_n from l_n - rho on, and linear between the two, with rho = margin * noise_level.

    Args:
        points: (N + 1, *image) training points, the first of them x_0. The edges x_n - x_0 must be linearly
            independent, at angles of 90 degrees (orthogonal data) or more (an obtuse simplex) to each other.
        margin: rho in units of the noise level, above 0.

    Attributes:
        origin: (D,) x_0, float64.
        directions, lengths: (N, D) u_n and (N,) l_n, float64.
        gram: (N, N) u_n . u_m, float64.
        highest_level: the noise level at which 2 rho is the length of the shortest edge. Levels must be below it.

    Raises:
        ValueError: fewer than two points, equal ones, two edges at an acute angle, dependent edges, or a margin that
            is not positive; when called, a noise level that is not below `highest_level`.
    """

    kind = "min-norm"

    def __init__(self, points: Float[Tensor, "points *image"], margin: float):
        if not (isfinite(margin) and margin > 0):
            raise ValueError(f"margin is {margin}: expected a number above 0, in units of the noise level")
        if points.ndim < 2 or len(points) < 2:
            raise ValueError(f"points have shape {tuple(points.shape)}: expected (N + 1, *image), two or more of them")
        self.points, self.margin = points, margin
        self.image_shape = tuple(points.shape[1:])
        flat = points.double().flatten(1)
        self.origin, edges = flat[0], flat[1:] - flat[0]
        self.lengths = edges.norm(dim=1)
        if not (self.lengths > 0).all():
            raise ValueError(f"point {int(self.lengths.argmin()) + 1} equals point 0: expected each point once")
        self.directions = edges / self.lengths[:, None]
        self.gram = self.directions @ self.directions.T
        self._check_angles()
        self.highest_level = self.lengths.min().item() / (2 * margin)

    def _check_angles(self) -> None:
        """Check that no two edges are at an acute angle, and that edges are independent."""
        cosines = self.gram.triu(1)
        if cosines.max() > ROUNDING:
            n, m = divmod(int(cosines.argmax()), len(cosines))
            angle = degrees(acos(min(1.0, cosines[n, m].item())))
            raise ValueError(
                f"points {n + 1} and {m + 1} are at an angle of {angle:.2f} degrees seen from point 0: "
                f"expected at least 90 between any two; leave one of them out, or put another point first"
            )
        rank = int(torch.linalg.matrix_rank(self.directions))
        if rank < len(self.directions):
            raise ValueError(
                f"the {len(self.directions)} edges at point 0 span {rank} dimensions: expected a simplex, "
                f"as many dimensions as edges; leave points out"
            )

    def rho(self, noise_level: NoiseLevel) -> Tensor:
        """Return margin * noise_level, float64, of noise_level's shape; raise ValueError if it is too large."""
        rho = self.margin * torch.as_tensor(noise_level, dtype=torch.float64)
        if (2 * rho >= self.lengths.min()).any():
            raise ValueError(
                f"noise level {rho.max().item() / self.margin:g} has margin {rho.max().item():g}: expected less than "
                f"half of the shortest edge, levels below {self.highest_level:g}; above them use a HybridDenoiser"
            )
        return rho

    def coordinates(self, y: Images) -> Float[Tensor, "batch edges"]:
        """Return t_n = u_n . (y - x_0), the position of y along each edge, (B, N)."""
        return (y.flatten(1) - self.origin.to(y)) @ self.directions.to(y).T

    def ramps(self, t: Float[Tensor, "batch edges"], noise_level: NoiseLevel) -> Float[Tensor, "batch edges"]:
        """Return phi_n(t_n), (B, N)."""
        rho, lengths = self.rho(noise_level).to(t).reshape(-1, 1), self.lengths.to(t)
        flat = lengths - 2 * rho
        return lengths / flat * (t - rho).clamp(min=0).minimum(flat)

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        ramps = self.ramps(self.coordinates(y), noise_level)
        return (self.origin.to(y) + ramps @ self.directions.to(y)).reshape(y.shape)

    def vertex(self, members: tuple[int, ...]) -> Float[Tensor, "*image"]:
        """Return x_0 + sum over n in `members` of (x_n - x_0), a corner of the box that the edges span.

        Args:
            members: numbers n, from 1 to N. None gives x_0, one gives a training point, more give a *virtual point*.

        Returns:
            One state, of the shape of a training point, float64.
        """
        edges = self.lengths[:, None] * self.directions
        chosen = edges[[n - 1 for n in members]].sum(0)
        return (self.origin + chosen).reshape(self.points.shape[1:])


class HybridDenoiser(Denoiser):
    """One denoiser at low noise levels and another at high ones.

    With a min-norm denoiser as `low` and the posterior mean of the training points as `high`, it averages training
    points at levels where noise mixes them up, and interpolates them at levels where noise does not.

    Args:
        low: used up to the noise level `switch`.
        high: used above it.
        switch: a noise level.

    Raises:
        ValueError: the two take images of different shapes.
    """

    kind = "hybrid"

    def __init__(self, low: Denoiser, high: Denoiser, switch: float):
        if None not in (low.image_shape, high.image_shape) and low.image_shape != high.image_shape:
            raise ValueError(f"low takes images {low.image_shape}, high {high.image_shape}: expected the same shape")
        self.low, self.high, self.switch = low, high, switch
        self.image_shape = low.image_shape or high.image_shape

    def _choose(self, name: str, y: Images, noise_level: NoiseLevel) -> Images:
        """Call the method `name` of the denoiser in charge of each image's noise level."""
        low = torch.as_tensor(noise_level) <= self.switch
        if low.all() or not low.any():
            return getattr(self.low if low.all() else self.high, name)(y, noise_level)
        below = getattr(self.low, name)(y, noise_level.clamp(max=self.switch))
        above = getattr(self.high, name)(y, noise_level)
        return torch.where(low.reshape(-1, *(1,) * (y.ndim - 1)), below, above)

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        return self._choose("__call__", y, noise_level)

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        return self._choose("noise", y, noise_level)
