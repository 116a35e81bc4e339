r"""Preconditionings: how NVlabs' networks are evaluated at a noise level, and what their outputs mean.

With s the noise level and D(x; s) = c_skip x + c_out F(c_in x; c_noise) (arXiv 2206.00364, eq. 7 and table 1):

                    c_skip          c_out                c_in               c_noise
    EDMPrecond      d^2/(s^2+d^2)   s d/sqrt(s^2+d^2)    1/sqrt(s^2+d^2)    log(s)/4        d = sigma_data
    VPPrecond       1               -s                   1/sqrt(s^2+1)      (M - 1) t(s)    DDPM++ on the VP SDE
    VEPrecond       1               s                    1                  log(s/2)        NCSN++ on the VE SDE
    iDDPMPrecond    1               -s                   1/sqrt(s^2+1)      M - 1 - j(s)    ADM on the cosine table

So the second and the fourth predict e of x = alpha x_0 + sigma e, with alpha = 1/sqrt(s^2+1), and the third -e.

The cosine table has M levels, from u_M = 0 (arXiv 2102.09672; 2206.00364, appendix C.3.1):

    u_{j-1}^2 = (u_j^2 + 1) / max(a_{j-1} / a_j, C_1) - 1,    a_j = sin^2(pi j / (2 M (C_2 + 1)))

NVlabs' j(s) is the nearest entry. Here the label equals NVlabs' at the entries and is linear in log s between them, as
for every table in this package. Samples are drawn at entries.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from math import inf, pi, sin, sqrt

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor

from volgrowth.models.parameterizations import EDM, Parameterization, Scheduled
from volgrowth.numerics import DDPMSchedule, VESchedule, VPSchedule

# NVlabs' sampler (arXiv 2206.00364, eq. 5 and table 1)
LOWEST, HIGHEST, RHO = 0.002, 80.0, 7


class Preconditioning(BaseModel, ABC):
    """The preconditioning's entries of config.json, under NVlabs' names and with NVlabs' defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def parameterization(self) -> Parameterization:
        """Return the preconditioning as four scalars of the noise level.

        Raises:
            ValueError: the lowest noise level is not below the highest.
        """

    def outputs(self, channels: int) -> int:
        """Return the channels of the network's output, for images of `channels` channels."""
        return channels

    def sampling_levels(self, steps: int) -> Tensor:
        """Return the rising noise levels of the sampler, (steps,) float64, evenly spaced in s^(1/7)."""
        low, high = self.parameterization().noise_levels
        return karras_levels(max(low, LOWEST), min(high, HIGHEST), steps)


class EDMPrecond(Preconditioning):
    """EDM's preconditioning. config.json must give `sigma_data`, since the weights do not tell it."""

    sigma_min: float = Field(0, ge=0)
    sigma_max: PositiveFloat = inf
    sigma_data: PositiveFloat

    def parameterization(self) -> Parameterization:
        return EDM(self.sigma_data, _ordered(max(self.sigma_min, LOWEST), min(self.sigma_max, HIGHEST)))


class VPPrecond(Preconditioning):
    """The VP SDE, beta(t) = beta_min + beta_d t, from time epsilon_t."""

    beta_d: PositiveFloat = 19.9
    beta_min: PositiveFloat = 0.1
    M: PositiveInt = 1000
    epsilon_t: float = Field(1e-5, gt=0, lt=1)

    def parameterization(self) -> Parameterization:
        schedule = VPSchedule(self.beta_min, self.beta_d + self.beta_min)
        low, high = schedule.noise_level(torch.tensor([self.epsilon_t, 1], dtype=torch.float64)).tolist()
        return Scheduled(schedule, "epsilon", (low, high), lambda time: (self.M - 1) * time)


class VEPrecond(Preconditioning):
    """Preconditioning of networks that were trained on the variance-exploding SDE."""

    sigma_min: PositiveFloat = 0.02
    sigma_max: float = Field(100, gt=0, lt=inf)

    def parameterization(self) -> Parameterization:
        levels = _ordered(self.sigma_min, self.sigma_max)
        return Scheduled(VESchedule(), "negative_noise", levels, lambda level: (level / 2).log())


class IDDPMPrecond(Preconditioning):
    """Improved DDPM. The network also predicts a variance, in further channels, which nothing here uses."""

    C_1: PositiveFloat = 0.001
    C_2: PositiveFloat = 0.008
    M: int = Field(1000, ge=2)

    def parameterization(self) -> Parameterization:
        levels, last = self.levels, self.M - 1
        schedule = DDPMSchedule(1 / (1 + levels**2))
        low, high = levels[[0, -1]].tolist()
        return Scheduled(schedule, "epsilon", (low, high), lambda time: time.clamp(0, last))

    def outputs(self, channels: int) -> int:
        return 2 * channels

    @cached_property
    def levels(self) -> Tensor:
        """u_{M-1} to u_0, rising, (M,) float64."""
        share = [sin(pi * j / (2 * self.M * (self.C_2 + 1))) ** 2 for j in range(self.M + 1)]
        levels = [0.0]
        for j in range(self.M, 0, -1):
            levels.append(sqrt((levels[-1] ** 2 + 1) / max(share[j - 1] / share[j], self.C_1) - 1))
        return torch.tensor(levels[1:], dtype=torch.float64)

    def sampling_levels(self, steps: int) -> Tensor:
        wanted = super().sampling_levels(steps)
        return self.levels[(wanted[:, None] - self.levels).abs().argmin(1)].unique()


PRECONDITIONINGS: dict[str, type[Preconditioning]] = {
    "EDMPrecond": EDMPrecond,
    "VPPrecond": VPPrecond,
    "VEPrecond": VEPrecond,
    "iDDPMPrecond": IDDPMPrecond,
}


def karras_levels(low: float, high: float, steps: int) -> Tensor:
    """Return rising noise levels from `low` to `high`, (steps,) float64, evenly spaced in s^(1/7)."""
    roots = torch.linspace(high ** (1 / RHO), low ** (1 / RHO), steps, dtype=torch.float64).flip(0)
    return roots**RHO


def _ordered(low: float, high: float) -> tuple[float, float]:
    """Return a range of noise levels, or raise ValueError if it is empty."""
    if low >= high:
        raise ValueError(f"noise levels run from {low:g} to {high:g}")
    return low, high
