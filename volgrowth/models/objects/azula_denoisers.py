"""azula's denoisers: they take x_t and a time in [0, 1], and their schedule says what the time means."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.objects.preparing import ImageShape, Module, ValueRange, network_denoiser
from volgrowth.models.parameterizations import EDM, Parameterization, Scheduled
from volgrowth.numerics import Schedule

_HALVINGS = 60


class AzulaSchedule(Schedule):
    """A schedule of azula on t in [0, 1]; the time of a noise level is found by bisection.

    Args:
        given: function from times to the scales of signal and noise.
    """

    def __init__(self, given: Callable[[Tensor], tuple[Tensor, Tensor]]):
        self.given = given

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.given(t)

    def time(self, noise_level: Tensor) -> Tensor:
        low, high = torch.zeros_like(noise_level), torch.ones_like(noise_level)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = self.noise_level(middle) > noise_level
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2


class _Mean(Module):
    """The mean of the posterior that a denoiser of azula returns."""

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        mean: Tensor = self.inner(x, times).mean
        return mean


class _MeanOfEach(Module):
    """The same for azula's `GaussianDenoiser`, which takes one time at a time."""

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        return torch.cat([self.inner(x[k : k + 1], time).mean for k, time in enumerate(times)])


def from_azula(denoiser: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of one of azula's, in y-coordinates.

    `KarrasDenoiser` has EDM's preconditioning for data of deviation 1, with the label log(noise_level); its backbone is
    called without azula's own scalars, which lose digits at low noise. Others are asked for their mean.
    """
    schedule, kind = AzulaSchedule(denoiser.schedule), type(denoiser).__name__
    low, high = schedule.noise_level(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    network: torch.nn.Module
    parameterization: Parameterization
    if kind == "KarrasDenoiser":
        network, parameterization = denoiser.backbone, EDM(1.0, (low, high), label=torch.log)
    else:
        network = (_MeanOfEach if kind == "GaussianDenoiser" else _Mean)(denoiser)
        parameterization = Scheduled(schedule, "sample", (low, high))
    return network_denoiser(
        network,
        parameterization,
        image_shape,
        value_range,
        kind,
        sampling_levels=lambda steps: schedule.noise_level(torch.linspace(0, 1, steps + 1, dtype=torch.float64)),
    )
