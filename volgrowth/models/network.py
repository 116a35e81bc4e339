r"""A trained network as a Denoiser.

noise(y, level) = of_y y + of_output F(input y, label), with the scalars of `volgrowth.models.parameterizations`; so
E[x_0 | y] = (1 - level of_y) y - level of_output F, where both are written without cancellation.

Networks made for images in [0, 1] see (y + 1) / 2 at half the noise level: the expected noise is the same.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Protocol

import torch
from torch import Tensor

from volgrowth.models.parameterizations import Parameterization, Scales
from volgrowth.numerics import Denoiser, Schedule
from volgrowth.numerics.denoisers import Condition, Images, NoiseLevel, per_image

Levels = Callable[[int], Tensor]


class Codec(Protocol):
    """Images to the space that the flow lives in, and back."""

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the images."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] as states (B, *state)."""

    def decode(self, states: Tensor) -> Tensor:
        """And back."""


class Conditioner(Protocol):
    """What users condition on becomes tensors for the network.

    Attributes:
        kind: `class` or `caption`.
        null: whether the network knows what no condition is.
    """

    kind: str
    null: bool

    def __call__(self, values: Sequence[Condition]) -> dict[str, Tensor]:
        """Keyword arguments of the network, each (len(values), ...); None is no condition.

        Raises:
            ModelError: a value is no condition of this model; None where it has no null condition.
        """

    def problem(self, value: Condition) -> str | None:
        """Why a value is no condition of this model; None where it is one."""

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        """Tokens of each value that the network never sees."""


class NetworkDenoiser(Denoiser):
    """A network with its parameterization.

    Args:
        network: (x (B, *image), labels (B,), **condition) -> output (B, *image).
        parameterization: what it is asked and what its output means.
        image_shape: shape of one state.
        precision: of the network's numbers; that of the states by default.
        whole_labels: round labels, for networks that look them up in a table.
        unit_range: the network's images are in [0, 1].
        codec: for networks whose states are not images.
        conditioner: for networks that take conditions; without one given they are asked for the null condition.
        sampling_levels: rising noise levels of the model's own sampler in so many steps.
    """

    kind = "network"

    def __init__(
        self,
        network: Callable[..., Tensor],
        parameterization: Parameterization,
        image_shape: tuple[int, ...],
        *,
        precision: torch.dtype | None = None,
        whole_labels: bool = False,
        unit_range: bool = False,
        codec: Codec | None = None,
        conditioner: Conditioner | None = None,
        sampling_levels: Levels | None = None,
    ):
        self.network, self.parameterization, self.image_shape = network, parameterization, image_shape
        self.precision, self.whole_labels, self.unit_range = precision, whole_labels, unit_range
        self.codec, self.conditioner, self._sampling_levels = codec, conditioner, sampling_levels
        self.schedule: Schedule = parameterization.schedule
        self.condition = conditioner.kind if conditioner else None
        self.has_null = conditioner is None or conditioner.null
        self._given: dict[str, Tensor] | None = None

    @property
    def noise_levels(self) -> tuple[float, float]:
        low, high = self.parameterization.noise_levels
        return (2 * low, 2 * high) if self.unit_range else (low, high)

    @property
    def pixel_shape(self) -> tuple[int, ...] | None:
        return self.codec.pixel_shape if self.codec else self.image_shape

    def embed(self, images: Images) -> Images:
        return self.codec.encode(images) if self.codec else images

    def render(self, states: Images) -> Images:
        return self.codec.decode(states) if self.codec else states

    def sampling_levels(self, steps: int) -> Tensor:
        if self._sampling_levels is None:
            return super().sampling_levels(steps)
        return self._sampling_levels(steps) * (2 if self.unit_range else 1)

    def given(self, values: Sequence[Condition]) -> Denoiser:
        if self.conditioner is None:
            return super().given(values)
        bound = copy(self)
        bound._given = self.conditioner(values)
        return bound

    def problem(self, value: Condition) -> str | None:
        return self.conditioner.problem(value) if self.conditioner else super().problem(value)

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        return self.conditioner.overflow(values) if self.conditioner else super().overflow(values)

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        if self.unit_range:
            y, noise_level = (y + 1) / 2, noise_level / 2
        output, scales = self._evaluate(y, noise_level)
        level = noise_level.to(scales.of_y)
        of_y, of_output = 1 - level * scales.of_y, -level * scales.of_output
        denoised = per_image(of_y, y) * y + per_image(of_output, y) * output
        return 2 * denoised - 1 if self.unit_range else denoised

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        if self.unit_range:
            y, noise_level = (y + 1) / 2, noise_level / 2
        output, scales = self._evaluate(y, noise_level)
        return per_image(scales.of_y, y) * y + per_image(scales.of_output, y) * output

    def _evaluate(self, y: Images, noise_level: NoiseLevel) -> tuple[Tensor, Scales]:
        """The network's output in the precision of y, and the scalars there."""
        scales = self.parameterization(noise_level.double().cpu())
        x = per_image(scales.input, y) * y
        output = self.network(x.to(self.precision or y.dtype), self._labels(scales, y), **self._conditions(y))
        return output.to(y.dtype), scales

    def _labels(self, scales: Scales, y: Tensor) -> Tensor:
        """In the precision of the states: in a low one, neighbouring labels are the same number."""
        if self.whole_labels:
            return scales.label.round().to(y.device, torch.long).expand(len(y))
        return scales.label.to(y.device, y.dtype).expand(len(y))

    def _conditions(self, y: Tensor) -> dict[str, Any]:
        """One for each of y, which may hold several points for each image that a condition was given for."""
        if self.conditioner is None:
            return {}
        if self._given is None:
            self._given = self.conditioner([None])
        return {name: tensor.repeat_interleave(len(y) // len(tensor), 0) for name, tensor in self._given.items()}
