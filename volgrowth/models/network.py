r"""A trained network as a Denoiser.

noise(y, level) = of_y y + of_output F(input y, label), with the scalars of `volgrowth.models.parameterizations`; so
E[x_0 | y] = (1 - level of_y) y - level of_output F, where both are written without cancellation.

Networks made for images in [0, 1] see (y + 1) / 2 at half the noise level: the expected noise is the same.
"""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Protocol

import torch
from torch import Tensor

from volgrowth.models.parameterizations import Parameterization, Scales
from volgrowth.numerics import Denoiser, Schedule
from volgrowth.numerics.denoisers import Condition, Images, NoiseLevel, per_image

Levels = Callable[[int], Tensor]
Network = Callable[..., Tensor]

log = logging.getLogger("volgrowth")


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

    def compiled(self) -> "NetworkDenoiser":
        """The same with the network compiled: for evaluations and backward passes, not for forward mode."""
        faster = copy(self)
        faster.network = Compiled(self.network)
        return faster

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
            return scales.label.round().to(y.device, torch.long, non_blocking=True).expand(len(y))
        return scales.label.to(y.device, y.dtype, non_blocking=True).expand(len(y))

    def _conditions(self, y: Tensor) -> dict[str, Any]:
        """One for each of y, which may hold several points for each image that a condition was given for."""
        if self.conditioner is None:
            return {}
        if self._given is None:
            self._given = self.conditioner([None])
        return {name: tensor.repeat_interleave(len(y) // len(tensor), 0) for name, tensor in self._given.items()}


class Compiled:
    """A network compiled by torch.compile, for each shape that it meets, with and without derivatives.

    At the first sight of one, both networks run. Where the compiled one fails or differs by more than rounding, the
    network itself is used from then on, and the log says so once. That happens: on a CPU, torch 2.13 compiles
    google/ddpm-cifar10-32's network to one with the right output and a gradient that is off by 21%.

    Attributes:
        problem: why the network itself is used; None where it is not.
    """

    TOLERANCE, LOW_TOLERANCE = 5e-3, 0.1
    """Of the largest number, in float32, which may be TF32 inside, and in low precisions: far beyond rounding."""

    def __init__(self, network: Network):
        import torch._functorch.config as autograd

        # several probes go back through one graph, whose buffers must outlive the first
        autograd.donated_buffer = False
        self.network, self.compiled = network, torch.compile(network, dynamic=False)
        self.problem: str | None = None
        self._tried: set[Any] = set()

    def __call__(self, x: Tensor, labels: Tensor, **condition: Tensor) -> Tensor:
        if self.problem is None:
            shapes = tuple((name, tensor.shape) for name, tensor in condition.items())
            case = x.shape, x.requires_grad and torch.is_grad_enabled(), shapes
            if case not in self._tried:
                self._try(x, labels, condition)
                self._tried.add(case)
        return (self.compiled if self.problem is None else self.network)(x, labels, **condition)

    def _try(self, x: Tensor, labels: Tensor, condition: dict[str, Tensor]) -> None:
        expected = _answer(self.network, x, labels, condition)
        try:
            given = _answer(self.compiled, x, labels, condition)
            most = self.LOW_TOLERANCE if x.dtype in (torch.bfloat16, torch.float16) else self.TOLERANCE
            if not all((a - b).abs().max() <= most * a.abs().max() for a, b in zip(expected, given, strict=True)):
                self.problem = "compiled, the network gives other numbers"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # torch's compilers raise their own kinds, and those of the compilers they call
            self.problem = f"torch.compile failed with {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        if self.problem:
            log.warning("%s: it runs as it is", self.problem)


def _answer(network: Network, x: Tensor, labels: Tensor, condition: dict[str, Tensor]) -> list[Tensor]:
    """The output and, where there are gradients, one along signs that images share, as traces ask for it."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return [network(x, labels, **condition)]
    point = x.detach().requires_grad_()
    output = network(point, labels, **condition)
    signs = torch.where(output.detach()[0] > output.detach()[0].mean(), 1.0, -1.0).to(output)
    return [output.detach(), *torch.autograd.grad(output, point, signs.expand_as(output), retain_graph=True)]
