r"""Noise schedules: how much signal and how much noise a time t stands for.

A noisy image is x_t = alpha_t x_0 + sigma_t e with e ~ N(0, I). A schedule is the pair (alpha_t, sigma_t); everything
else follows from it. With y_t = x_t / alpha_t and the noise level sigma_t / alpha_t,

    y_t = x_0 + noise_level(t) e           noise_level(t) is the standard deviation of the noise on y_t
    dx/dt = (alpha'/alpha) x + alpha noise_level' e(x, t)        the probability flow ODE in native time

where e(x, t) is the expected noise (Song et al., arXiv 2011.13456, eq. 13, written for any alpha and sigma).

Schedules are functions of float64 scalars on the CPU: a step of a solver needs a few numbers and no device. A new
schedule writes `__call__` and its inverse, `time`.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

Times = Float[Tensor, "*times"]


class Schedule(ABC):
    """A noise schedule: signal and noise scale at each native time, and the time of a noise level."""

    @abstractmethod
    def __call__(self, t: Times) -> tuple[Times, Times]:
        """Return the scales of signal and noise.

        Args:
            t: native times, float64 of any shape.

        Returns:
            alpha_t and sigma_t, of t's shape and dtype.
        """

    @abstractmethod
    def time(self, noise_level: Times) -> Times:
        """Return the native time at which sigma_t / alpha_t equals `noise_level`, of its shape and dtype."""

    def noise_level(self, t: Times) -> Times:
        """Return sigma_t / alpha_t at native times t, of t's shape and dtype."""
        alpha, sigma = self(t)
        return sigma / alpha


class VPSchedule(Schedule):
    """Variance preserving SDE with a linear beta on t in [0, 1] (arXiv 2011.13456, eq. 32-33).

    log alpha_t = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2 and sigma_t^2 = 1 - alpha_t^2.

    Args:
        beta_min: beta at t = 0; 0.1 as in the paper, for images in [-1, 1].
        beta_max: beta at t = 1; 20 as in the paper, which leaves a signal of alpha_1 = 0.0066.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        self.beta_min, self.beta_max = beta_min, beta_max

    def __call__(self, t: Times) -> tuple[Times, Times]:
        log_alpha = -(self.beta_max - self.beta_min) * t**2 / 4 - self.beta_min * t / 2
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()

    def time(self, noise_level: Times) -> Times:
        # a t^2 / 2 + b t = log(1 + noise_level^2), in the form that keeps its digits for small t
        a, b = self.beta_max - self.beta_min, self.beta_min
        c = torch.log1p(noise_level**2)
        return 2 * c / (b + (b**2 + 2 * a * c).sqrt())


class DDPMSchedule(Schedule):
    """A discrete DDPM table on t = 0, 1, ..., T - 1 (arXiv 2006.11239), with alpha_t^2 = alphas_cumprod[t].

    Between entries, and beyond the ends, log noise_level is linear in t. A network with a sinusoidal time embedding can
    be evaluated there, between two of its training steps.

    Args:
        alphas_cumprod: (T,) table of alpha_t^2, which falls strictly within (0, 1); kept in float64.

    Attributes:
        log_noise_levels: (T,) float64, log of the noise level at each step, rising.

    Raises:
        ValueError: the table has fewer than two entries or does not fall strictly within (0, 1).
    """

    def __init__(self, alphas_cumprod: Float[Tensor, "steps"]):
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu")
        if table.ndim != 1 or len(table) < 2 or not (table.diff() < 0).all() or table[0] >= 1 or table[-1] <= 0:
            raise ValueError("alphas_cumprod must be a table of two or more numbers that fall strictly within (0, 1)")
        self.log_noise_levels = (((1 - table) / table).log() / 2).contiguous()

    def __len__(self) -> int:
        return len(self.log_noise_levels)

    def __call__(self, t: Times) -> tuple[Times, Times]:
        knots = torch.arange(len(self), dtype=torch.float64)
        noise_level = _interpolate(t, knots, self.log_noise_levels).exp()
        alpha = (1 + noise_level**2).rsqrt()
        return alpha, noise_level * alpha

    def time(self, noise_level: Times) -> Times:
        knots = torch.arange(len(self), dtype=torch.float64)
        return _interpolate(noise_level.log(), self.log_noise_levels, knots)


class VESchedule(Schedule):
    """Variance exploding, with the noise level itself as time (arXiv 2206.00364): alpha_t = 1 and sigma_t = t."""

    def __call__(self, t: Times) -> tuple[Times, Times]:
        return torch.ones_like(t), t

    def time(self, noise_level: Times) -> Times:
        return noise_level


class FlowMatchingSchedule(Schedule):
    """Straight paths from data to noise on t in [0, 1) (arXiv 2210.02747): alpha_t = 1 - t and sigma_t = t."""

    def __call__(self, t: Times) -> tuple[Times, Times]:
        return 1 - t, t

    def time(self, noise_level: Times) -> Times:
        return noise_level / (1 + noise_level)


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Return the piecewise linear function through (knots, values) at x, extrapolated from the outermost pieces."""
    left = (torch.searchsorted(knots, x.detach().contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
    slope = (values[left + 1] - values[left]) / (knots[left + 1] - knots[left])
    return values[left] + slope * (x - knots[left])
