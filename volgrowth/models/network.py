r"""A trained network as a Denoiser.

With the scalars of `volgrowth.models.parameterizations`, which depend on the noise level alone,

    noise(y, level) = of_y y + of_output F(input y, label)
    E[x_0 | y]      = (1 - level of_y) y - level of_output F(input y, label)

so that neither is computed from the other, which would lose digits where the two terms cancel.

Networks that were trained on images in [0, 1] are given (y + 1) / 2 at half the noise level. The expected noise is the
same there.
"""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from volgrowth.errors import kind_and_line
from volgrowth.models.conditioning import Conditioner
from volgrowth.models.parameterizations import Parameterization, Scales
from volgrowth.models.pipelines.library_classes import mark_blocks
from volgrowth.numerics import Denoiser, Schedule
from volgrowth.numerics.denoisers import Condition, Images, NoiseLevel, per_image
from volgrowth.numerics.memory import out_of_memory

Levels = Callable[[int], Tensor]
Network = Callable[..., Tensor]

# scales that are kept: an audit and a sampler visit the same levels for every batch
LEVELS_KEPT = 4096

log = logging.getLogger("volgrowth")


class Codec(Protocol):
    """Turns images into the states that the network denoises, such as latents, and back."""

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the images."""

    def encode(self, images: Tensor) -> Tensor:
        """Return the states (B, *state) of images (B, C, H, W) in [-1, 1]."""

    def decode(self, states: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of states (B, *state)."""


class NetworkDenoiser(Denoiser):
    """A network with the parameterization that makes it a denoiser.

    Args:
        network: function (x (B, *image), labels (B,), **condition) -> output (B, *image).
        parameterization: how the network is evaluated, and what its output means.
        image_shape: shape of one state.
        precision: dtype of the network's numbers; by default that of the states.
        whole_labels: round labels to whole numbers, for networks that look them up in a table.
        unit_range: True if the network was trained on images in [0, 1] instead of [-1, 1].
        codec: for networks whose states are not images.
        conditioner: for networks that take conditions. As long as no condition is `given`, the network is evaluated
            under the null condition.
        sampling_levels: function from a number of steps to the rising noise levels of the model's own sampler; by
            default those of the DDPM table of the parameterization's schedule.

    Attributes:
        module: the module behind the network, if it is known.
    """

    kind = "network"

    def __init__(
        self,
        network: Network,
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
        self.module = network if isinstance(network, torch.nn.Module) else None
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

    @property
    def conditions(self) -> dict[str, Tensor]:
        """The tensors of the conditions that were `given`, by the network's names for them; none without any."""
        return self._given or {} if self.conditioner else {}

    def under(self, conditions: dict[str, Tensor]) -> Self:
        """Return the denoiser under conditions that are tensors already, as `conditions` gives them."""
        bound = copy(self)
        bound._given = conditions or None
        return bound

    def problem(self, value: Condition) -> str | None:
        return self.conditioner.problem(value) if self.conditioner else super().problem(value)

    def overflow(self, values: Sequence[Condition]) -> list[int]:
        return self.conditioner.overflow(values) if self.conditioner else super().overflow(values)

    def checkpoint(self) -> bool:
        """Have backward passes compute activations again, in place of keeping them.

        Returns:
            False if the network does so already, or is none of diffusers that can.
        """
        module: Any = self.module
        able = getattr(module, "_supports_gradient_checkpointing", False)
        if not able or isinstance(self.network, Compiled) or module.is_gradient_checkpointing:
            return False
        module.enable_gradient_checkpointing()
        return True

    def compiled(self) -> "NetworkDenoiser":
        """Return a copy whose network is compiled, for evaluations and backward passes; forward mode cannot use it."""
        faster = copy(self)
        faster.network = Compiled(self.network)
        return faster

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        level = _number_or_levels(noise_level)
        if self.unit_range:
            y, level = (y + 1) / 2, level / 2
        output, scales = self._evaluate(y, level)
        of_y, of_output = 1 - level * scales.of_y, -level * scales.of_output
        denoised = _broadcast(of_y, y) * y + _broadcast(of_output, y) * output
        return 2 * denoised - 1 if self.unit_range else denoised

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        level = _number_or_levels(noise_level)
        if self.unit_range:
            y, level = (y + 1) / 2, level / 2
        output, scales = self._evaluate(y, level)
        return _broadcast(scales.of_y, y) * y + _broadcast(scales.of_output, y) * output

    def _evaluate(self, y: Images, level: float | Tensor) -> tuple[Tensor, Scales]:
        """Return the network's output in the precision of y, and the scalars at the noise levels."""
        scales = _scales(self.parameterization, level) if isinstance(level, float) else self.parameterization(level)
        x = _broadcast(scales.input, y) * y
        output = self.network(x.to(self.precision or y.dtype), self._labels(scales, y), **self._conditions(y))
        return output.to(y.dtype), scales

    def _labels(self, scales: Scales, y: Tensor) -> Tensor:
        """Return labels in the precision of the states; in a low precision neighbouring labels are the same number."""
        dtype = torch.long if self.whole_labels else y.dtype
        if not isinstance(scales.label, Tensor):  # filled on the device, which no copy makes anybody wait for
            label = round(scales.label) if self.whole_labels else scales.label
            return torch.full((len(y),), label, dtype=dtype, device=y.device)
        label = scales.label.round() if self.whole_labels else scales.label
        return label.to(y.device, dtype, non_blocking=True).expand(len(y))

    def _conditions(self, y: Tensor) -> dict[str, Any]:
        """Return the conditions for the points of y, which may hold several points for each image with a condition."""
        if self.conditioner is None:
            return {}
        if self._given is None:
            self._given = self.conditioner([None])
        return {
            name: tensor if len(y) == len(tensor) else tensor.repeat_interleave(len(y) // len(tensor), 0)
            for name, tensor in self._given.items()
        }


def _broadcast(scalar: float | Tensor, images: Tensor) -> float | Tensor:
    return per_image(scalar, images) if isinstance(scalar, Tensor) else scalar


def _number_or_levels(noise_level: Tensor) -> float | Tensor:
    """Return a single noise level as a number, several as float64 on the host."""
    return noise_level.item() if noise_level.ndim == 0 else noise_level.cpu().double()


@lru_cache(LEVELS_KEPT)
def _scales(parameterization: Parameterization, noise_level: float) -> Scales:
    """Return the scalars at one noise level as numbers, which kernels take as arguments: dozens of small operations."""
    scales = parameterization(torch.tensor(noise_level, dtype=torch.float64))
    return Scales(scales.input.item(), scales.label.item(), scales.of_y.item(), scales.of_output.item())


class Compiled:
    """A network compiled by torch.compile, which is checked against the network itself.

    For each new input shape, with and without derivatives, both run. If the compiled network fails or differs by more
    than rounding, the network itself is used from then on, and the log says so once. Such differences exist: on a CPU,
    torch 2.13 compiles google/ddpm-cifar10-32's network to one with the right output and gradients that are off by 21%.

    Args:
        network: function (x (B, *image), labels (B,), **condition) -> output (B, *image).

    Attributes:
        problem: why the network itself is used; None as long as the compiled one is.
    """

    TOLERANCE, LOW_TOLERANCE = 5e-3, 0.1
    """Allowed difference, as a share of the largest number: in float32, which may be TF32 inside, and in less."""

    def __init__(self, network: Network):
        import torch._functorch.config as autograd

        mark_blocks()
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
        except Exception as error:  # torch's compilers raise their own kinds, and those of the compilers they call
            if out_of_memory(error):
                raise  # a smaller batch will do
            self.problem = f"torch.compile failed with {kind_and_line(error)}"
        if self.problem:
            log.warning("%s: it runs as it is", self.problem)


def _answer(network: Network, x: Tensor, labels: Tensor, condition: dict[str, Tensor]) -> list[Tensor]:
    """Return the output and, if gradients are wanted, one gradient along signs that images share, as traces do."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return [network(x, labels, **condition)]
    point = x.detach().requires_grad_()
    output = network(point, labels, **condition)
    signs = torch.where(output.detach()[0] > output.detach()[0].mean(), 1.0, -1.0).to(output)
    return [output.detach(), *torch.autograd.grad(output, point, signs.expand_as(output), retain_graph=True)]
