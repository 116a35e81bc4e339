r"""Parameterizations: how a network's inputs and outputs relate to the expected noise at a point.

Networks are trained to predict the noise, the image, a velocity or the score. All of these are linear in the point y
and in the network's output F, with factors that depend on the noise level alone. So a parameterization is four scalars
for each noise level:

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
from typing import Any, Literal, Self

from torch import Tensor

from volgrowth.numerics.schedules import DDPMSchedule, Schedule, VESchedule

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction", "score", "negative_noise"]

# from (alpha, sigma): the factors of x and of the output in the expected noise
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
    """The four scalars of the module's docstring: float64 tensors of the levels' shape, or numbers for one level."""

    input: Any
    label: Any
    of_y: Any
    of_output: Any


class Parameterization(ABC):
    """The scalars by which a network's input and output give the expected noise.

    Attributes:
        schedule: the network's noise schedule, in its native time.
        noise_levels: lowest and highest noise level that the network was trained on.
    """

    schedule: Schedule
    noise_levels: tuple[float, float]

    @abstractmethod
    def __call__(self, noise_level: Tensor) -> Scales:
        """Return the scalars at noise levels, which are float64 of any shape."""


class Scheduled(Parameterization):
    """A network that takes x = alpha y and a label of its native time.

    Args:
        schedule: alpha and sigma at each time.
        prediction_type: what the network predicts, one of the names in the module's docstring.
        noise_levels: lowest and highest noise level that the network was trained on.
        label: function from native times, float64, to the labels that the network takes; by default the times.
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
        """Return the parameterization of a network whose labels are the steps of a DDPM table.

        Labels are real numbers between 0 and T - 1: noise levels between two steps get a label between them, and
        noise levels beyond the table are clamped to its ends.

        Args:
            schedule: the table, which also gives the trained range of noise levels.
            prediction_type: what the network predicts.
        """
        low, high = schedule.log_noise_levels[[0, -1]].exp().tolist()
        return cls(schedule, prediction_type, (low, high), lambda time: time.clamp(0, len(schedule) - 1))

    def __call__(self, noise_level: Tensor) -> Scales:
        time = self.schedule.time(noise_level)
        alpha, sigma = self.schedule(time)
        of_x, of_output = _FACTORS[self.prediction_type](alpha, sigma)
        return Scales(alpha, self.label(time), of_x * alpha, of_output)


class EDM(Parameterization):
    """A preconditioned network (arXiv 2206.00364).

    Args:
        sigma_data: standard deviation of the data that the preconditioning assumes.
        noise_levels: lowest and highest noise level that the network was trained on.
        sign: 1, or -1 for a network that was trained to predict v, which is -F if sigma_data is 1.
        label: function from noise levels, float64, to the labels that the network takes; by default log(level) / 4.
    """

    def __init__(
        self,
        sigma_data: float,
        noise_levels: tuple[float, float],
        sign: Literal[1, -1] = 1,
        label: Callable[[Tensor], Tensor] = lambda level: level.log() / 4,
    ):
        self.schedule = VESchedule()
        self.sigma_data, self.noise_levels, self.sign, self.label = sigma_data, noise_levels, sign, label

    def __call__(self, noise_level: Tensor) -> Scales:
        total = noise_level**2 + self.sigma_data**2
        return Scales(
            input=total.rsqrt(),
            label=self.label(noise_level),
            of_y=noise_level / total,
            of_output=-self.sign * self.sigma_data * total.rsqrt(),
        )
