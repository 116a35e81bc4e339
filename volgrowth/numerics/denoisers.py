"""The one contract that carries every model family.

For x_t = alpha_t x_0 + sigma_t e let y = x_t / alpha_t and noise_level = sigma_t / alpha_t, so y = x_0 + noise_level e.
A denoiser is the posterior mean E[x_0 | y]; the noise it expects, (y - E[x_0 | y]) / noise_level, is the velocity of
the probability flow in these coordinates:

    dy / dnoise_level = noise(y, noise_level)

so that a DDIM step is an Euler step of this ODE (arXiv 2010.02502, eq. 14; arXiv 2206.00364, eq. 4). By Tweedie the
score is -noise / noise_level, and noise_level^2 times the denoiser's Jacobian is the posterior covariance of x_0.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.schedules import DDPMSchedule, Schedule

Images = Float[Tensor, "batch *image"]
NoiseLevel = Float[Tensor, "*one_or_batch"]
Condition = str | int | None


class Denoiser:
    """E[x_0 | y]. A subclass writes `__call__`, and `noise` where it knows it without the cancellation.

    What follows from there has an answer for models of plain images without conditions; models whose states are
    latents or that take conditions say more.

    Attributes:
        schedule: the model's own schedule, None where there is none.
        image_shape: shape of one state y, None where any will do.
        device, dtype: where and in which precision states are taken: float32 or float64.
        precision: of the network's own numbers; None for that of the states.
        condition: what `given` takes: `class`, `caption`, or None for nothing.
        has_null: whether the denoiser itself, without `given`, is the model without a condition.
    """

    schedule: Schedule | None = None
    image_shape: tuple[int, ...] | None = None
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    precision: torch.dtype | None = None
    condition: str | None = None
    has_null: bool = True
    kind: ClassVar[str] = "denoiser"

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        """Posterior mean of the clean states, (B, *image), for `noise_level` of shape () or (B,)."""
        raise NotImplementedError

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        """Expected noise (y - E[x_0 | y]) / noise_level, (B, *image), of unit scale."""
        return (y - self(y, noise_level)) / per_image(noise_level, y)

    @property
    def noise_levels(self) -> tuple[float, float] | None:
        """Lowest and highest that the model was trained on, None where any will do."""
        if not isinstance(self.schedule, DDPMSchedule):
            return None
        low, high = self.schedule.log_noise_levels[[0, -1]].exp().tolist()
        return low, high

    @property
    def pixel_shape(self) -> tuple[int, ...] | None:
        """Shape of one image: that of a state, unless states are latents."""
        return self.image_shape

    def embed(self, images: Images) -> Images:
        """States of images (B, C, H, W) in [-1, 1]."""
        return images

    def render(self, states: Images) -> Images:
        """Images of states."""
        return states

    def given(self, values: Sequence[Condition]) -> "Denoiser":
        """The denoiser under conditions, one for each image of the batches that it will see.

        Raises:
            ValueError: the model takes none, or not these.
        """
        raise ValueError(f"a {self.kind} denoiser takes no conditions: expected a class- or text-conditional model")

    def problem(self, value: Condition) -> str | None:
        """Why the model cannot be given this condition; None where it can."""
        return f"a {self.kind} denoiser takes no conditions"

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        """Of each condition, the tokens that are cut since the model does not see so many."""
        return [0] * len(values)

    def sampling_levels(self, steps: int) -> Float[Tensor, "nodes"]:
        """Rising noise levels of the model's sampler in so many steps.

        Raises:
            ValueError: the model has no schedule to sample with.
        """
        if not isinstance(self.schedule, DDPMSchedule):
            raise ValueError("the denoiser has no DDPM schedule: expected one, or a sampling_levels of its own")
        times = torch.linspace(0, len(self.schedule) - 1, steps + 1, dtype=torch.float64).round()
        return self.schedule.noise_level(times)


class GuidedDenoiser(Denoiser):
    """Classifier-free guidance (arXiv 2207.12598): noise = u + scale (c - u) with c conditional and u unconditional.

    scale 0 is the unconditional flow, 1 the conditional one; what samplers call guidance scale.
    """

    kind = "guided"

    def __init__(self, conditional: Denoiser, unconditional: Denoiser, scale: float):
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale
        self.schedule, self.image_shape = conditional.schedule, conditional.image_shape
        self.device, self.dtype, self.precision = conditional.device, conditional.dtype, conditional.precision
        # states, images and the sampler's levels are those of the one model behind both
        self.embed, self.render = conditional.embed, conditional.render  # type: ignore[method-assign]
        self.sampling_levels = conditional.sampling_levels  # type: ignore[method-assign]

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        return y - per_image(noise_level, y) * self.noise(y, noise_level)

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        without = self.unconditional.noise(y, noise_level)
        return without + self.scale * (self.conditional.noise(y, noise_level) - without)


def per_image(scalar: NoiseLevel, images: Images) -> Tensor:
    """A scalar of shape () or (B,) in the images' precision, shaped to broadcast over (B, *image)."""
    if scalar.ndim == 0:  # stays on the host: kernels take it as an argument, and no copy makes anybody wait
        return scalar.to(images.dtype)
    return scalar.to(images).reshape(-1, *(1,) * (images.ndim - 1))
