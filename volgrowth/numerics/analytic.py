r"""Denoisers that are known exactly, with the density whose probability flow they drive.

For data with a density p_0, y = x_0 + s e has the density p_s = p_0 * N(0, s^2 I), and by Tweedie's formula

    E[x_0 | y] = y + s^2 grad log p_s(y)

Each class here takes data for which p_s can be written down. Its method `log_prob(y, noise_level)` returns log p_s(y)
in nats, (B,) in y's dtype, for points (B, *image) and a noise level of shape () or (B,). Along the flow of an
exact denoiser the log volume of all dimensions grows by log p(y_start) - log p(y_end) (Liouville), and so the numerics
of this package are checked. All classes work in any float dtype and on any device, in y-coordinates, and carry no
schedule.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images, NoiseLevel, per_image

LOG_2PI = math.log(2 * math.pi)


class GaussianDenoiser(Denoiser):
    """Data N(mean, diag(variance)): E[x_0 | y] = mean + variance / (variance + noise_level^2) (y - mean).

    Args:
        mean: a number, or a tensor that broadcasts against one image.
        variance: a number, or a tensor that broadcasts against one image, 0 or more; all 0 is a point mass.

    Raises:
        ValueError: a variance is below 0.
    """

    kind = "gaussian"

    def __init__(self, mean: Float[Tensor, "..."] | float, variance: Float[Tensor, "..."] | float):
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.variance = torch.as_tensor(variance, dtype=torch.float64)
        if (self.variance < 0).any():
            raise ValueError(f"variance goes down to {self.variance.min().item()}: expected none below 0")

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        mean, variance = self.mean.to(y), self.variance.to(y)
        return mean + variance / (variance + per_image(noise_level, y) ** 2) * (y - mean)

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        level = per_image(noise_level, y)
        return level / (self.variance.to(y) + level**2) * (y - self.mean.to(y))

    def log_prob(self, y: Images, noise_level: NoiseLevel) -> Float[Tensor, "batch"]:
        """Return log N(y; mean, diag(variance) + noise_level^2 I), (B,) nats, for y (B, *image)."""
        total = (self.variance.to(y) + per_image(noise_level, y) ** 2).expand_as(y)
        return -((y - self.mean.to(y)) ** 2 / total + total.log() + LOG_2PI).flatten(1).sum(1) / 2


class EmpiricalDenoiser(Denoiser):
    """Data that is a finite set of points: the mean of the points, weighted by how likely each of them led to y.

    A diffusion model of unlimited capacity learns this denoiser from a finite training set. At noise level s the
    density is the Gaussian mixture sum_n w_n N(y; x_n, s^2 I), so that

        E[x_0 | y] = sum_n p_n x_n,      p_n proportional to w_n exp(-|y - x_n|^2 / (2 s^2))

    Args:
        points: x_n, (N, *image).
        weights: w_n, (N,), 0 or more and not all 0, scaled to sum 1 here; they can count duplicates. By default all
            points weigh the same.

    Raises:
        ValueError: weights of another shape, below 0, or all 0.
    """

    kind = "empirical"

    def __init__(self, points: Float[Tensor, "points *image"], weights: Float[Tensor, "points"] | None = None):
        self.points = points
        weights = torch.ones(len(points), dtype=points.dtype) if weights is None else weights
        if weights.shape != (len(points),) or (weights < 0).any() or not weights.sum() > 0:
            raise ValueError(f"weights are {weights.tolist()}: expected {len(points)}, none below 0 and not all 0")
        self.log_weights = weights.log().log_softmax(0)
        self.image_shape = tuple(points.shape[1:])

    def _differences(self, y: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor]:
        """Return y - x_n, (B, N, D), and log of weight times likelihood up to a constant, (B, N)."""
        differences = y.flatten(1)[:, None] - self.points.to(y).flatten(1)
        level = noise_level.to(y).reshape(-1, 1)
        return differences, self.log_weights.to(y) - (differences**2).sum(2) / (2 * level**2)

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        _, logits = self._differences(y, noise_level)
        return (logits.softmax(1) @ self.points.to(y).flatten(1)).reshape(y.shape)

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        differences, logits = self._differences(y, noise_level)
        mean = (logits.softmax(1)[:, None] @ differences)[:, 0].reshape(y.shape)
        return mean / per_image(noise_level, y)

    def log_prob(self, y: Images, noise_level: NoiseLevel) -> Float[Tensor, "batch"]:
        """Return log sum_n w_n N(y; x_n, noise_level^2 I), (B,) nats, for y (B, *image)."""
        _, logits = self._differences(y, noise_level)
        dimension = y[0].numel()
        return logits.logsumexp(1) - dimension * (noise_level.to(y).log() + LOG_2PI / 2)


class LinearDenoiser(Denoiser):
    """The best linear denoiser of a data set: that of a Gaussian with the data's mean m and covariance S.

    E[x_0 | y] = m + W (y - m) with W = S (S + noise_level^2 I)^-1, computed by the singular vectors of the centred
    data.

    Args:
        data: (N, *image); m and S are computed in its dtype, with S divided by N.
    """

    kind = "linear"

    def __init__(self, data: Float[Tensor, "points *image"]):
        self.image_shape = tuple(data.shape[1:])
        flat = data.flatten(1)
        self.mean = flat.mean(0)
        _, singular_values, self.axes = torch.linalg.svd(flat - self.mean, full_matrices=False)
        self.variances = singular_values**2 / len(data)

    def _centred(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return y - m, (B, D), and its coefficients on the data's axes, (B, r)."""
        centred = y.flatten(1) - self.mean.to(y)
        return centred, centred @ self.axes.to(y).T

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        _, coefficients = self._centred(y)
        variances = self.variances.to(y)
        shrunk = coefficients * variances / (variances + noise_level.to(y).reshape(-1, 1) ** 2)
        return (self.mean.to(y) + shrunk @ self.axes.to(y)).reshape(y.shape)

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        centred, coefficients = self._centred(y)
        variances, axes, level = self.variances.to(y), self.axes.to(y), noise_level.to(y).reshape(-1, 1)
        outside = centred - coefficients @ axes
        inside = coefficients * level**2 / (variances + level**2)
        return ((outside + inside @ axes) / level).reshape(y.shape)

    def log_prob(self, y: Images, noise_level: NoiseLevel) -> Float[Tensor, "batch"]:
        """Return log N(y; m, S + noise_level^2 I), (B,) nats, for y (B, *image)."""
        centred, coefficients = self._centred(y)
        level = noise_level.to(y).reshape(-1, 1)
        total = self.variances.to(y) + level**2
        outside = ((centred - coefficients @ self.axes.to(y)) ** 2).sum(1)
        missing = centred.shape[1] - coefficients.shape[1]
        log_det = total.log().sum(1) + missing * 2 * level[:, 0].log()
        quadratic = (coefficients**2 / total).sum(1) + outside / level[:, 0] ** 2
        return -(quadratic + log_det + centred.shape[1] * LOG_2PI) / 2
