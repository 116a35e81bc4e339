"""What a preset measures on a micro-batch of images.

Every random number is drawn on the CPU from a generator seeded by what it is for, so a score does not depend on the
shard, batch, worker, order or restart it came from. Probes and noises are common to all images: FINDINGS and
`volgrowth.numerics.traces` say why that ranks better. The published axis is drawn for each row.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import log, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import Measure, PaperMeasure, StandardMeasure, VolumeMeasure
from volgrowth.numerics import Denoiser, VolumeGrowth, trace_growth, volume_growth
from volgrowth.numerics.denoisers import GuidedDenoiser, Images, NoiseLevel, per_image
from volgrowth.numerics.flow import encode
from volgrowth.numerics.growth import PUBLISHED_SCHEDULE
from volgrowth.numerics.tangents import noise_stack


@dataclass(frozen=True)
class Measurement:
    """A micro-batch of B images: columns of `records.SCORES` as float64 arrays whose first axis is B, marks, cost."""

    columns: dict[str, np.ndarray]
    above_ceiling: np.ndarray
    sign_flip: np.ndarray
    nfe: int

    @cached_property
    def finite(self) -> np.ndarray:
        """(B,) whether every number of the row is finite."""
        rows = len(self.above_ceiling)
        return np.isfinite(np.concatenate([column.reshape(rows, -1) for column in self.columns.values()], 1)).all(1)


@dataclass(frozen=True)
class Launched:
    """A micro-batch that the device is at work on: the same as `Measurement`, in tensors that are there or will be."""

    columns: dict[str, Tensor]
    above_ceiling: Tensor
    sign_flip: Tensor
    nfe: int

    def fetch(self) -> Measurement:
        """Wait for it. One copy brings everything."""
        rows = len(self.above_ceiling)
        tensors = [*self.columns.values(), self.above_ceiling, self.sign_flip]
        parts = [tensor.reshape(rows, -1).double() for tensor in tensors]
        there = np.split(torch.cat(parts, 1).cpu().numpy(), np.cumsum([part.shape[1] for part in parts])[:-1], 1)
        *columns, above, flipped = (a.reshape(tensor.shape) for a, tensor in zip(there, tensors, strict=True))
        return Measurement(dict(zip(self.columns, columns, strict=True)), above > 0, flipped > 0, self.nfe)


@dataclass(frozen=True)
class Flow:
    """The flow that images are measured along, and what it is compared with.

    Attributes:
        denoiser: the model, under the images' conditions if it was given any.
        null: the model without conditions, where it knows what that is and `denoiser` has some.
        guidance: scale of the guided flow between the two.
    """

    denoiser: Denoiser
    null: Denoiser | None = None
    guidance: float | None = None

    @property
    def others(self) -> tuple[Denoiser, ...]:
        """Whose rates are measured beside those of the flow."""
        return (self.null,) if self.null else ()

    def differences(self, levels: int, probes: int) -> int:
        """Evaluations an image that a central difference takes and a backward pass does not."""
        return levels * probes * (1 + len(self.others)) if isinstance(self.denoiser, Differenced) else 0

    def columns(self, growth: Tensor, null: Tensor | None, guided: Tensor | None = None) -> dict[str, Tensor]:
        """Columns of `growth` (B,), growth without conditions, and of the guided flow: by default linear in the two."""
        columns = {"growth": growth}
        if null is not None:
            columns |= {"growth_unconditional": null, "growth_contrast": growth - null}
            if self.guidance is not None:
                columns["growth_guided"] = null + self.guidance * (growth - null) if guided is None else guided
        return columns


def measure_images(flow: Flow, images: Tensor, rows: list[int], measure: Measure, seed: int) -> Measurement:
    """Measure states (B, *state) of images, which are the given rows of their data set."""
    return launch_images(flow, images, rows, measure, seed).fetch()


def launch_images(flow: Flow, images: Tensor, rows: list[int], measure: Measure, seed: int) -> Launched:
    """The same, without waiting for a device at any point."""
    if isinstance(measure, PaperMeasure):
        return _paper(flow, images, rows, measure, seed)
    if isinstance(measure, VolumeMeasure):
        return _volume(flow, images, measure, seed)
    return _standard(flow, images, measure, seed)


def _within(denoiser: Denoiser, noise_level: float) -> float:
    """The noise level, or the end of the model's own range that is nearest: beyond it the network was not trained."""
    if denoiser.noise_levels is None:
        return noise_level
    lowest, highest = denoiser.noise_levels
    return min(max(noise_level, lowest), highest)


def _standard(flow: Flow, images: Tensor, measure: StandardMeasure, seed: int) -> Launched:
    denoiser, levels = flow.denoiser, _rising(flow.denoiser, measure.levels)
    start = encode(denoiser, images, _rising(denoiser, (*measure.run_in, measure.levels[0])))
    trace = trace_growth(denoiser, start, levels, measure.num_probes, seeded(seed, "probe"), flow.others)
    lid = images.shape[1:].numel() - trace.rate + trace.noise_norm**2
    columns = {
        **flow.columns(trace.rate.mean(1), trace.other_rates[..., 0].mean(1) if flow.null else None),
        "rates": trace.rate,
        "lid": lid.mean(1),
        "noise_norm": trace.noise_norm.mean(1),
        "sharpness": trace.sharpness.mean(1),
        "loss": denoising_loss(denoiser, images, _within(denoiser, measure.loss_level), measure.num_noises, seed),
    }
    if measure.num_probes > 1:
        variance = trace.probe_rates.var(2)
        columns["growth_error"] = (variance.sum(1) / measure.num_probes).sqrt() / len(levels)
    return Launched(
        columns=columns,
        above_ceiling=trace.above_ceiling,
        sign_flip=torch.zeros_like(trace.above_ceiling),
        nfe=measure.evaluations
        + (measure.unconditional_evaluations if flow.null else 0)
        + flow.differences(len(levels), measure.num_probes),
    )


def _rising(denoiser: Denoiser, levels: tuple[float, ...]) -> Tensor:
    """The levels within the model's table, each once."""
    return torch.tensor(sorted({_within(denoiser, level) for level in levels}), dtype=torch.float64)


def _volume(flow: Flow, images: Tensor, measure: VolumeMeasure, seed: int) -> Launched:
    low, high = (log(_within(flow.denoiser, level)) for level in (measure.smallest_level, measure.largest_level))
    levels = torch.linspace(low, high, measure.num_levels, dtype=torch.float64).exp()
    trace = trace_growth(flow.denoiser, images, levels, measure.num_probes, seeded(seed, "probe"), flow.others)
    null = torch.trapezoid(trace.other_rates[..., 0], _there(levels.log(), trace.rate), dim=1) if flow.null else None
    columns = {
        **flow.columns(trace.log_volume, null),
        "rates": trace.rate,
        "log_likelihood": trace.log_likelihood,
    }
    return Launched(
        columns=columns,
        above_ceiling=trace.above_ceiling,
        sign_flip=torch.zeros_like(trace.above_ceiling),
        nfe=trace.nfe + flow.differences(len(levels), measure.num_probes),
    )


def _paper(flow: Flow, images: Tensor, rows: list[int], measure: PaperMeasure, seed: int) -> Launched:
    """Volumes are not linear in the noise: each flow is followed for itself, from the same axes."""
    shape = (measure.num_tangents, *images.shape[1:])
    tangents = torch.stack([torch.randn(shape, generator=seeded(seed, "tangent", row)) for row in rows])
    tangents = _there(tangents, images)

    def follow(denoiser: Denoiser) -> VolumeGrowth:
        with torch.no_grad(), true_float32():
            return volume_growth(
                denoiser,
                images,
                times=torch.tensor(measure.times, dtype=torch.float64),
                derivative=measure.derivative,
                radius=measure.radius,
                tangents=tangents,
            )

    growth, null, guided = follow(flow.denoiser), None, None
    if flow.null:
        null = follow(flow.null).log_volume[:, -1]
        if flow.guidance is not None:
            guided = follow(GuidedDenoiser(flow.denoiser, flow.null, flow.guidance)).log_volume[:, -1]
    steps = growth.log_volume.diff(dim=1, prepend=torch.zeros_like(growth.log_volume[:, :1]))
    columns = {**flow.columns(growth.log_volume[:, -1], null, guided), "rates": steps}
    return Launched(
        columns=columns,
        above_ceiling=growth.above_ceiling,
        sign_flip=growth.sign_flip,
        nfe=growth.nfe
        + (measure.unconditional_evaluations if flow.null else 0)
        + (0 if guided is None else measure.guided_evaluations),
    )


@torch.no_grad()
def denoising_loss(denoiser: Denoiser, images: Tensor, noise_level: float, num_noises: int, seed: int) -> Tensor:
    """(B,) mean over pixels and noises e of (noise(x + level e) - e)^2, with the same noises for every image."""
    level = torch.tensor(noise_level, dtype=torch.float64)
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for index in range(num_noises):
        draw = torch.randn(images.shape[1:], generator=seeded(seed, "noise", index))
        draw = _there(draw, images)
        predicted = denoiser.noise(images + noise_level * draw, level)
        total += ((predicted - draw) ** 2).flatten(1).mean(1)
    return total / num_noises


class Differenced(Denoiser):
    """A denoiser whose derivatives are central differences, for networks that have none.

    A backward pass along u is answered with (e(y + h u) - e(y - h u)) / 2h, which is J u where J^T u was asked for:
    u . J u is the same, and so is the mean of |J u|^2 over probes with random signs. In the precision of the states.
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
    """(e(y + h u) - e(y - h u)) / 2h."""
    return (noise(y + h * u) - noise(y - h * u)) / (2 * h)


# of central differences, in noise levels for directions whose entries are 1 or -1: by rounding and curvature the first
# errs by about 1e-4 in float32, and where it errs by more, one of the others does not
RADII = (0.02, 0.005, 0.1)


def derivative_deviation(flow: Flow, exact: Denoiser, images: Tensor, measure: Measure, seed: int) -> dict[str, Any]:
    """How far the derivative that a measure uses is from central differences of the same network, `exact`.

    `deviation`: of u . J u along a random direction u, in units of |u| |J u|; the largest over states (B, *state), each
    compared with the difference of the radius that suits it best, since a wrong derivative agrees with none.
    """
    noise_level = _checked_level(flow.denoiser, measure)
    level = torch.tensor(noise_level, dtype=torch.float64)
    u = torch.randint(0, 2, images.shape[1:], generator=seeded(seed, "check")).to(images) * 2 - 1
    u = u.expand_as(images)
    used = (u * _derivative(flow.denoiser, images, u, level, measure)).flatten(1).double().sum(1)
    y, v = images.to(exact.dtype), u.to(exact.dtype)
    deviations = []
    with torch.no_grad(), true_float32():
        for radius in RADII:
            moved = central_difference(lambda y: exact.noise(y, level), y, v, radius * noise_level)
            along, length = (v * moved).flatten(1).sum(1), v.flatten(1).norm(dim=1) * moved.flatten(1).norm(dim=1)
            deviations.append((along.double() - used).abs() / length.double())
    return {"noise_level": noise_level, "deviation": torch.stack(deviations).amin(0).max().item()}


def has_derivative(flow: Flow, images: Tensor, measure: Measure) -> bool:
    """Whether the network can be differentiated the way the measure does; False only where it can be evaluated.

    Raises:
        RuntimeError: it cannot be evaluated.
    """
    level = torch.tensor(_checked_level(flow.denoiser, measure), dtype=torch.float64)
    with torch.no_grad():
        flow.denoiser.noise(images, level)
    try:
        _derivative(flow.denoiser, images, torch.ones_like(images), level, measure)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return True


def _checked_level(denoiser: Denoiser, measure: Measure) -> float:
    """A noise level that the measure visits."""
    if isinstance(measure, PaperMeasure):
        return float(PUBLISHED_SCHEDULE.noise_level(torch.tensor(measure.times[0], dtype=torch.float64)))
    if isinstance(measure, VolumeMeasure):
        return _within(denoiser, sqrt(measure.smallest_level * measure.largest_level))
    return _within(denoiser, measure.levels[0])


def _derivative(denoiser: Denoiser, y: Tensor, u: Tensor, level: Tensor, measure: Measure) -> Tensor:
    """J u as preset paper gets it, or J^T u as traces do."""
    if isinstance(measure, PaperMeasure):
        length = u[0].norm()  # the published radius is of directions of length 1
        with torch.no_grad(), true_float32():
            stack = torch.stack([y, u / length], 1)
            return noise_stack(denoiser, stack, level.item(), measure.derivative, measure.radius)[:, 1] * length
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        return torch.autograd.grad(denoiser.noise(point, level), point, u)[0]


class true_float32:  # noqa: N801  a context manager, used like torch.no_grad
    """Within it, float32 products keep float32's mantissa: TF32 or bfloat16 would ruin a finite difference.

    Whoever allowed them, and how: `torch.set_float32_matmul_precision`, `allow_tf32`, or, since torch 2.9,
    `fp32_precision` of a backend, of all of them, or of one kind of product. Threads share the setting.
    """

    def __enter__(self) -> None:
        # torch refuses to read an old switch that cannot say what the new ones do: then it is not theirs to restore
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
        """The old switches too, and first, since they turn the new ones: torch's compiler reads them."""
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for kind, precision in kinds:
            kind.fp32_precision = precision


def _kinds() -> list[Any]:
    """Kinds of products whose precision torch keeps apart, since 2.9; "ieee" on one goes before what all are told."""
    cudnn: Any = torch.backends.cudnn
    cpu: Any = torch.backends.mkldnn
    if not hasattr(cudnn, "conv"):
        return []
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn]


def _there(tensor: Tensor, beside: Tensor) -> Tensor:
    """On the other's device and in its precision; nobody waits until it has arrived."""
    return tensor.to(beside.device, beside.dtype, non_blocking=True)
