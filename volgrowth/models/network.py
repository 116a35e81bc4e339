r"""A trained network as a Denoiser: the one place where eps, v and x_0 outputs are converted.

The network sees x = alpha y and its own time label. With (alpha, sigma) at the time t whose noise level is asked for:

    epsilon        noise = output
    v_prediction   noise = alpha output + sigma x         since v = alpha e - sigma x_0   (arXiv 2202.00512)
    sample         E[x_0 | y] = output
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from volgrowth.numerics import DDPMSchedule, Denoiser
from volgrowth.numerics.denoisers import Images, NoiseLevel, per_image

PredictionType = Literal["epsilon", "v_prediction", "sample"]


class NetworkDenoiser(Denoiser):
    """A network trained on a DDPM table.

    Args:
        network: (x (B, *image), labels (B,)) -> output (B, *image).
        schedule: the table it was trained on; time t is its label, so labels run from 0 to T - 1 and are clamped
            to that range where a noise level lies outside.
        prediction_type: what the output means.
        image_shape: shape of one image.
        whole_labels: round labels, for networks that look them up in a table.
    """

    kind = "network"

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        schedule: DDPMSchedule,
        prediction_type: PredictionType,
        image_shape: tuple[int, ...],
        *,
        whole_labels: bool = False,
    ):
        self.network, self.prediction_type, self.whole_labels = network, prediction_type, whole_labels
        self.schedule: DDPMSchedule = schedule
        self.image_shape = image_shape

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        if self.prediction_type == "sample":
            return self._evaluate(y, noise_level)[0]
        return y - per_image(noise_level, y) * self.noise(y, noise_level)

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        output, x, alpha, sigma = self._evaluate(y, noise_level)
        if self.prediction_type == "epsilon":
            return output
        if self.prediction_type == "v_prediction":
            return alpha * output + sigma * x
        return (y - output) / per_image(noise_level, y)

    def _evaluate(self, y: Images, noise_level: NoiseLevel) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The network's output, the x it saw, and alpha and sigma there."""
        time = self.schedule.time(noise_level.double().cpu())
        alpha, sigma = (per_image(scale, y) for scale in self.schedule(time))
        label = time.clamp(0, len(self.schedule) - 1)
        label = label.round() if self.whole_labels else label
        x = alpha * y
        labels = label.to(y.device, torch.long if self.whole_labels else y.dtype).expand(len(y))
        return self.network(x, labels), x, alpha, sigma
