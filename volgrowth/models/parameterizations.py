r"""What a network is asked and what its output means: the one place where inputs, labels and outputs are converted.

Every model family in use is linear in the point and in the network's output F, with factors that depend on the noise
level alone. So a family is four scalars of the noise level:

    noise(y, level) = of_y y + of_output F(input y, label)

The network sees x = alpha y, with (alpha, sigma) of x = alpha x_0 + sigma e at that level:

    epsilon          noise = F                           F = e                        (DDPM, arXiv 2006.11239)
    v_prediction     noise = sigma x + alpha F           F = alpha e - sigma x_0      (arXiv 2202.00512)
    sample           noise = (x - alpha F) / sigma       F = x_0
    flow_prediction  noise = x + alpha F                 F = e - x_0, alpha + sigma = 1   (arXiv 2210.02747)
    score            noise = -sigma F                    F = grad log p(x)            (score SDE, arXiv 2011.13456)
    negative_noise   noise = -F                          F = -e

or, preconditioned (EDM, arXiv 2206.00364, eq. 7 and table 1), with s = sigma_data and level the noise level:

    E[x_0 | y] = s^2/(level^2 + s^2) y + level s/sqrt(level^2 + s^2) F(y / sqrt(level^2 + s^2), log(level)/4)
    noise      = level/(level^2 + s^2) y - s/sqrt(level^2 + s^2) F
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self, get_args

from torch import Tensor

from volgrowth.numerics.schedules import DDPMSchedule, Schedule, VESchedule

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction", "score", "negative_noise"]
PREDICTION_TYPES = get_args(PredictionType)

# (factor of x, factor of the output) from (alpha, sigma)
_FACTORS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "epsilon": lambda alpha, sigma: (0 * alpha, 1 + 0 * alpha),
    "v_prediction": lambda alpha, sigma: (sigma, alpha),
    "sample": lambda alpha, sigma: (1 / sigma, -alpha / sigma),
    "flow_prediction": lambda alpha, sigma: (1 + 0 * alpha, alpha),
    "score": lambda alpha, sigma: (0 * alpha, -sigma),
    "negative_noise": lambda alpha, sigma: (0 * alpha, -1 + 0 * alpha),
}


@dataclass(frozen=True)
class Scales:
    """The four scalars at some noise levels, float64, each of the levels' shape."""

    input: Tensor
    label: Tensor
    of_y: Tensor
    of_output: Tensor


class Parameterization(ABC):
    """How a network is asked for the expected noise.

    Attributes:
        schedule: native times.
        noise_levels: lowest and highest that the network was trained on.
    """

    schedule: Schedule
    noise_levels: tuple[float, float]

    @abstractmethod
    def __call__(self, noise_level: Tensor) -> Scales:
        """The scalars at noise levels, float64."""


class Scheduled(Parameterization):
    """A network that sees x = alpha y and a label of its native time.

    Args:
        schedule: alpha and sigma of the times.
        prediction_type: what the output means.
        label: of native times; the time itself by default.
        noise_levels: lowest and highest that the network was trained on.
    """

    def __init__(
        self,
        schedule: Schedule,
        prediction_type: PredictionType,
        noise_levels: tuple[float, float],
        label: Callable[[Tensor], Tensor] = lambda time: time,
    ):
        self.schedule, self.prediction_type = schedule, prediction_type
        self.noise_levels, self.label = noise_levels, label

    @classmethod
    def on_table(cls, schedule: DDPMSchedule, prediction_type: PredictionType) -> Self:
        """Of a network whose labels are the steps of a DDPM table, from 0 to T - 1, between them, and never beyond."""
        low, high = schedule.log_noise_levels[[0, -1]].exp().tolist()
        return cls(schedule, prediction_type, (low, high), lambda time: time.clamp(0, len(schedule) - 1))

    def __call__(self, noise_level: Tensor) -> Scales:
        time = self.schedule.time(noise_level)
        alpha, sigma = self.schedule(time)
        of_x, of_output = _FACTORS[self.prediction_type](alpha, sigma)
        return Scales(alpha, self.label(time), of_x * alpha, of_output)


class EDM(Parameterization):
    """A preconditioned network, whose label is log(noise_level) / 4.

    Args:
        sigma_data: standard deviation of the data.
        noise_levels: lowest and highest that the network was trained on.
        sign: of the output; -1 for networks that were trained to predict v, which is -F where sigma_data is 1.
    """

    def __init__(self, sigma_data: float, noise_levels: tuple[float, float], sign: Literal[1, -1] = 1):
        self.schedule = VESchedule()
        self.sigma_data, self.noise_levels, self.sign = sigma_data, noise_levels, sign

    def __call__(self, noise_level: Tensor) -> Scales:
        total = noise_level**2 + self.sigma_data**2
        return Scales(
            input=total.rsqrt(),
            label=noise_level.log() / 4,
            of_y=noise_level / total,
            of_output=-self.sign * self.sigma_data * total.rsqrt(),
        )
