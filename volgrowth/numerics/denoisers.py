"""The one contract that carries every model family.

For x_t = alpha_t x_0 + sigma_t e let y = x_t / alpha_t and noise_level = sigma_t / alpha_t, so y = x_0 + noise_level e.
A denoiser is the posterior mean E[x_0 | y]; the noise it expects, (y - E[x_0 | y]) / noise_level, is the velocity of
the probability flow in these coordinates:

    dy / dnoise_level = noise(y, noise_level)

so that a DDIM step is an Euler step of this ODE (arXiv 2010.02502, eq. 14; arXiv 2206.00364, eq. 4). By Tweedie the
score is -noise / noise_level, and noise_level^2 times the denoiser's Jacobian is the posterior covariance of x_0.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.schedules import Schedule

Images = Float[Tensor, "batch *image"]
NoiseLevel = Float[Tensor, "*one_or_batch"]


class Denoiser:
    """E[x_0 | y]. A subclass writes `__call__`, and `noise` where it knows it without the cancellation.

    Attributes:
        schedule: the model's own schedule, None where there is none.
        image_shape: shape of one image, None where any will do.
        device, dtype: where and in which precision images are taken.
    """

    schedule: Schedule | None = None
    image_shape: tuple[int, ...] | None = None
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    kind: ClassVar[str] = "denoiser"

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        """Posterior mean of the clean images, (B, *image), for `noise_level` of shape () or (B,)."""
        raise NotImplementedError

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        """Expected noise (y - E[x_0 | y]) / noise_level, (B, *image), of unit scale."""
        return (y - self(y, noise_level)) / per_image(noise_level, y)


def per_image(scalar: NoiseLevel, images: Images) -> Tensor:
    """A scalar of shape () or (B,) in the images' precision, shaped to broadcast over (B, *image)."""
    return scalar.to(images).reshape(-1, *(1,) * (images.ndim - 1))
