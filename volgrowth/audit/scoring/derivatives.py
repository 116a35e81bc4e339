"""Derivatives of networks: their check against central differences, and the differences for networks without any."""

from collections.abc import Callable
from contextlib import suppress
from math import sqrt
from typing import Any, TypeGuard

import torch
from torch import Tensor

from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import Measure, PaperMeasure, VolumeMeasure
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Images, NoiseLevel, per_image
from volgrowth.numerics.growth import PUBLISHED_SCHEDULE
from volgrowth.numerics.memory import out_of_memory
from volgrowth.numerics.precision import in_float64
from volgrowth.numerics.tangents import noise_stack


def clamp_level(denoiser: Denoiser, noise_level: float) -> float:
    """Return the noise level, clamped to the model's trained range."""
    if denoiser.noise_levels is None:
        return noise_level
    lowest, highest = denoiser.noise_levels
    return min(max(noise_level, lowest), highest)


class Differenced(Denoiser):
    """A denoiser whose derivatives are central differences, for networks that have none.

    A backward pass along u, which asks for J^T u, is answered with (e(y + h u) - e(y - h u)) / 2h, which is J u. Then
    u . J u is the same, and so is the mean of |J u|^2 over probes with random signs. The states give the precision.
    """

    def __init__(self, inner: Denoiser):
        self.inner, self.schedule, self.image_shape = inner, inner.schedule, inner.image_shape
        self.device, self.dtype, self.precision = inner.device, inner.dtype, inner.precision

    @property
    def noise_levels(self) -> tuple[float, float] | None:
        return self.inner.noise_levels

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        return y - per_image(noise_level, y) * self.noise(y, noise_level)

    def noise(self, y: Images, noise_level: NoiseLevel) -> Images:
        h = RADII[0] * per_image(noise_level, y)
        return _CentralDifference.apply(y, lambda y: self.inner.noise(y, noise_level), h)


class _CentralDifference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, noise: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        ctx.noise, ctx.h = noise, h
        ctx.save_for_backward(y)
        return noise(y)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        with torch.no_grad(), true_float32():
            return central_difference(ctx.noise, ctx.saved_tensors[0], u, ctx.h), None, None


def central_difference(noise: Callable[[Tensor], Tensor], y: Tensor, u: Tensor, h: Tensor | float) -> Tensor:
    """Return (e(y + h u) - e(y - h u)) / 2h, the derivative of the noise e along u."""
    return (noise(y + h * u) - noise(y - h * u)) / (2 * h)


# radii of central differences, in noise levels, for directions whose entries are 1 or -1: by rounding and curvature the
# first errs by about 1e-4 in float32; for a network where it errs by more, one of the others does not
RADII = (0.02, 0.005, 0.1)

Differentiating = PaperMeasure | VolumeMeasure
"""Measures that rest on derivatives of the network."""


def by_torch(measure: Measure) -> TypeGuard[Differentiating]:
    """Say whether torch differentiates the network for a measure; other measures take forward passes alone."""
    return isinstance(measure, VolumeMeasure) or (isinstance(measure, PaperMeasure) and measure.derivative == "jvp")


def derivative_deviation(
    denoiser: Denoiser, exact: Denoiser, images: Tensor, measure: Differentiating, seed: int
) -> dict[str, Any]:
    """Measure how far the derivative that a measure uses is from central differences of the same network.

    Each state is compared with the difference of the radius that suits it best: a wrong derivative agrees with none.

    Args:
        denoiser: the model, with the derivative that scores rest on.
        exact: the same network for the differences, in higher precision if possible.
        images: states (B, *state).
        measure: the preset, which gives the noise level and the kind of derivative.
        seed: the audit's seed.

    Returns:
        `noise_level`, and `deviation`: the largest difference of u . J u over states, along a random direction u, in
        units of |u| |J u|.
    """
    noise_level = _checked_level(denoiser, measure)
    level = torch.tensor(noise_level, dtype=torch.float64)
    u = torch.randint(0, 2, images.shape[1:], generator=seeded(seed, "check")).to(images) * 2 - 1
    u = u.expand_as(images)
    used = in_float64((u * _derivative(denoiser, images, u, level, measure)).flatten(1)).sum(1)
    y, v = images.to(exact.dtype), u.to(exact.dtype)
    deviations = []
    with torch.no_grad(), true_float32():
        for radius in RADII:
            moved = central_difference(lambda y: exact.noise(y, level), y, v, radius * noise_level)
            along, length = (v * moved).flatten(1).sum(1), v.flatten(1).norm(dim=1) * moved.flatten(1).norm(dim=1)
            deviations.append((in_float64(along) - used).abs() / in_float64(length))
    return {"noise_level": noise_level, "deviation": torch.stack(deviations).amin(0).max().item()}


def has_derivative(denoiser: Denoiser, images: Tensor, measure: Differentiating) -> bool:
    """Say whether the network can be differentiated in the way of the measure.

    Raises:
        RuntimeError: it cannot even be evaluated.
    """
    level = torch.tensor(_checked_level(denoiser, measure), dtype=torch.float64)
    with torch.no_grad():
        denoiser.noise(images, level)
    try:
        _derivative(denoiser, images, torch.ones_like(images), level, measure)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        return False
    return True


def _checked_level(denoiser: Denoiser, measure: Differentiating) -> float:
    """Return a noise level that the measure visits."""
    if isinstance(measure, PaperMeasure):
        return float(PUBLISHED_SCHEDULE.noise_level(torch.tensor(measure.times[0], dtype=torch.float64)))
    return clamp_level(denoiser, sqrt(measure.smallest_level * measure.largest_level))


def _derivative(denoiser: Denoiser, y: Tensor, u: Tensor, level: Tensor, measure: Differentiating) -> Tensor:
    """Return J u as preset paper computes it, or J^T u as traces do."""
    if isinstance(measure, PaperMeasure):
        length = u[0].norm()  # the published radius is meant for directions of length 1
        with torch.no_grad(), true_float32():
            stack = torch.stack([y, u / length], 1)
            return noise_stack(denoiser, stack, level.item(), measure.derivative, measure.radius)[:, 1] * length
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        return torch.autograd.grad(denoiser.noise(point, level), point, u)[0]


class true_float32:  # noqa: N801  a context manager, used like torch.no_grad
    """A context in which float32 products keep float32's mantissa: TF32 or bfloat16 would ruin a finite difference.

    It overrides every way to allow those: `torch.set_float32_matmul_precision`, `allow_tf32`, and, since torch 2.9,
    `fp32_precision` of a backend, of all backends, or of one kind of product. Threads share the setting.
    """

    def __enter__(self) -> None:
        # torch refuses to read an old switch that cannot say what the new ones do: then there is nothing to restore
        self.matmul: str | None = None
        self.cudnn: bool | None = None
        with suppress(RuntimeError):
            self.matmul = torch.get_float32_matmul_precision()
        with suppress(RuntimeError):
            self.cudnn = torch.backends.cudnn.allow_tf32
        self.kinds = [(kind, kind.fp32_precision) for kind in _kinds()]
        self._set("highest", False, [(kind, "ieee") for kind, _ in self.kinds])

    def __exit__(self, *_: object) -> None:
        self._set(self.matmul, self.cudnn, self.kinds)

    def _set(self, matmul: str | None, cudnn: bool | None, kinds: list[tuple[Any, str]]) -> None:
        """Set the old switches, which torch's compiler reads, and then the new ones, which the old ones change."""
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for kind, precision in kinds:
            kind.fp32_precision = precision


def tf32_allowed() -> dict[str, bool]:
    """Return whether a GPU may now round the factors of float32 products, and of float32 convolutions, to TF32."""
    cudnn: Any = torch.backends.cudnn
    product: Any = torch.backends.cuda.matmul
    if not hasattr(cudnn, "conv"):
        return {"products": product.allow_tf32, "convolutions": cudnn.allow_tf32}
    return {"products": product.fp32_precision == "tf32", "convolutions": cudnn.conv.fp32_precision == "tf32"}


def _kinds() -> list[Any]:
    """Return the kinds of products with a precision of their own, since torch 2.9, which overrides the common one."""
    cudnn: Any = torch.backends.cudnn
    cpu: Any = torch.backends.mkldnn
    if not hasattr(cudnn, "conv"):
        return []
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn]
