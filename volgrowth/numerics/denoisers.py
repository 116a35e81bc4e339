r"""The denoiser, the one contract that every model family is brought to.

For x_t = alpha_t x_0 + sigma_t e let y = x_t / alpha_t and noise_level = sigma_t / alpha_t, so that

    y = x_0 + noise_level e,      e ~ N(0, I)

These are *y-coordinates*. A denoiser is the posterior mean E[x_0 | y]. The expected noise,
(y - E[x_0 | y]) / noise_level, is the velocity of the probability flow in these coordinates:

    dy / dnoise_level = noise(y, noise_level)

so that a DDIM step is an Euler step of this ODE (arXiv 2010.02502, eq. 14; arXiv 2206.00364, eq. 4). By Tweedie's
formula the score is -noise / noise_level, and noise_level^2 times the denoiser's Jacobian is the posterior covariance
of x_0.
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
    """Base class of denoisers: a subclass writes `__call__`, the posterior mean E[x_0 | y].

    A subclass also writes `noise` if it knows the expected noise without the cancellation in y - E[x_0 | y]. The other
    methods have defaults for models of plain images without conditions; models whose states are latents, or that take
    conditions, write them too. There are no constructor arguments.

    Attributes:
        schedule: the model's own schedule; None if it has none, as analytic denoisers.
        image_shape: shape of one state y; None if any shape will do.
        device: where states must be.
        dtype: precision of states and of all sums: float32 or float64.
        precision: precision of the network's own numbers; None for that of the states.
        condition: the kind of condition that `given` takes: `class`, `caption`, or None for none.
        has_null: True if the denoiser without `given` is the unconditional model.
        kind: what the manifest calls this kind of denoiser.
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
        """Return the posterior mean E[x_0 | y] of the clean states.

        Args:
            y: noisy states (B, *image), in y-coordinates.
            noise_level: standard deviation of their noise, shape () or (B,), above 0.

        Returns:
            (B, *image), of y's dtype and device.
        """
        raise NotImplementedError(f"{type(self).__name__} has no __call__: expected one that returns E[x_0 | y]")

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        """Return the expected noise (y - E[x_0 | y]) / noise_level, which is of unit scale.

        Args:
            y: noisy states (B, *image), in y-coordinates.
            noise_level: standard deviation of their noise, shape () or (B,), above 0.

        Returns:
            (B, *image), of y's dtype and device.
        """
        return (y - self(y, noise_level)) / per_image(noise_level, y)

    @property
    def noise_levels(self) -> tuple[float, float] | None:
        """Lowest and highest noise level that the model was trained on; None if any will do."""
        if not isinstance(self.schedule, DDPMSchedule):
            return None
        low, high = self.schedule.log_noise_levels[[0, -1]].exp().tolist()
        return low, high

    @property
    def pixel_shape(self) -> tuple[int, ...] | None:
        """Shape of one image: that of a state, unless states are latents."""
        return self.image_shape

    def embed(self, images: Images) -> Images:
        """Return the states of images (B, C, H, W) in [-1, 1]; by default the images themselves."""
        return images

    def render(self, states: Images) -> Images:
        """Return the images (B, C, H, W) of states (B, *image_shape); by default the states themselves."""
        return states

    def given(self, values: Sequence[Condition]) -> "Denoiser":
        """Return the denoiser under conditions.

        Args:
            values: one condition for each image of the batches that it will be called with.

        Raises:
            ValueError: the model takes no conditions, or not these.
        """
        raise ValueError(f"a {self.kind} denoiser takes no conditions: expected a class- or text-conditional model")

    def problem(self, value: Condition) -> str | None:
        """Return why the model cannot be given this condition, or None if it can."""
        return f"a {self.kind} denoiser takes no conditions"

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        """Return for each condition how many of its tokens are cut off because the model reads no more."""
        return [0] * len(values)

    def sampling_levels(self, steps: int) -> Float[Tensor, "nodes"]:
        """Return the noise levels at which the model's own sampler evaluates it.

        Args:
            steps: how many steps the sampler takes.

        Returns:
            Rising noise levels, float64. By default `steps` + 1 evenly spaced steps of a DDPM table.

        Raises:
            ValueError: the model has no DDPM schedule, so that there is no default.
        """
        if not isinstance(self.schedule, DDPMSchedule):
            raise ValueError("the denoiser has no DDPM schedule: expected one, or a sampling_levels of its own")
        times = torch.linspace(0, len(self.schedule) - 1, steps + 1, dtype=torch.float64).round()
        return self.schedule.noise_level(times)


class GuidedDenoiser(Denoiser):
    """Classifier-free guidance (arXiv 2207.12598): noise = u + scale (c - u), c conditional and u unconditional.

    Args:
        conditional: the model under conditions, which also supplies schedule, states and sampling levels.
        unconditional: the same model without conditions.
        scale: what samplers call the guidance scale; 0 gives the unconditional flow, 1 the conditional one.
    """

    kind = "guided"

    def __init__(self, conditional: Denoiser, unconditional: Denoiser, scale: float):
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale
        self.schedule, self.image_shape = conditional.schedule, conditional.image_shape
        self.device, self.dtype, self.precision = conditional.device, conditional.dtype, conditional.precision
        self.embed, self.render = conditional.embed, conditional.render  # type: ignore[method-assign]
        self.sampling_levels = conditional.sampling_levels  # type: ignore[method-assign]

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        return y - per_image(noise_level, y) * self.noise(y, noise_level)

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        without = self.unconditional.noise(y, noise_level)
        return without + self.scale * (self.conditional.noise(y, noise_level) - without)


def per_image(scalar: NoiseLevel, images: Images) -> Tensor:
    """Shape one number, or one number per image, so that it broadcasts over a batch.

    Args:
        scalar: shape () or (B,).
        images: (B, *image).

    Returns:
        A tensor in the images' dtype: () on the scalar's own device, or (B, 1, ..., 1) on that of the images.
    """
    if scalar.ndim == 0:  # stays on the host: kernels take it as an argument, and no copy makes anybody wait
        return scalar.to(images.dtype)
    return scalar.to(images).reshape(-1, *(1,) * (images.ndim - 1))
