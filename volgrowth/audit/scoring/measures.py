"""The measures of the presets on a micro-batch of images.

Every random number is drawn on the CPU from a generator seeded by its purpose, so a score does not depend on the shard,
batch, worker, order or restart it came from. Probes, and the noise of the forward passes, are common to all images:
then their errors are common too and cancel when images are ranked (`volgrowth.numerics.traces`). The axis of preset
`paper` is drawn for each row. Forward passes at different points are calls of their own, so that a row has the same
numbers to the bit whether the screen measured some of them beforehand or not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import log

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.scoring.derivatives import Differenced, clamp_level, true_float32
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import (
    SCREEN_EVALUATIONS,
    Measure,
    PaperMeasure,
    ScreenMeasure,
    StandardMeasure,
    VolumeMeasure,
)
from volgrowth.numerics import Denoiser, VolumeGrowth, trace_growth, volume_growth
from volgrowth.numerics.denoisers import GuidedDenoiser
from volgrowth.numerics.forward_passes import AxisGrowth, NoisePair, axis_growth, noise_pair
from volgrowth.numerics.precision import has_float64

ForwardMeasure = ScreenMeasure | StandardMeasure | VolumeMeasure


@dataclass(frozen=True)
class Measurement:
    """The results of a micro-batch of B images.

    Attributes:
        columns: columns of `records.SCORES` as float64 arrays whose first axis is B.
        above_ceiling: (B,) bool, for the mark of this name.
        sign_flip: (B,) bool, for the mark of this name.
        nfe: network evaluations per image.
    """

    columns: dict[str, np.ndarray]
    above_ceiling: np.ndarray
    sign_flip: np.ndarray
    nfe: int

    @cached_property
    def finite(self) -> np.ndarray:
        """True for images whose numbers are all finite: (B,) bool."""
        rows = len(self.above_ceiling)
        return np.isfinite(np.concatenate([column.reshape(rows, -1) for column in self.columns.values()], 1)).all(1)


@dataclass(frozen=True)
class Sent:
    """A micro-batch whose results are on their way to the host, in one tensor and one copy.

    Attributes:
        packed: (B, numbers) float64 on the host, pinned if the results come from a GPU.
        shapes: shape of each column, then those of the two marks.
        nfe: network evaluations per image.
        there: the event after the copy; None if `packed` is there already.
    """

    packed: Tensor
    shapes: dict[str, torch.Size]
    nfe: int
    there: torch.cuda.Event | None

    def fetch(self) -> Measurement:
        """Wait for these results, and not for what was launched after them, and return them."""
        if self.there is not None:
            self.there.synchronize()
        widths = [shape[1:].numel() for shape in self.shapes.values()]
        parts = np.split(self.packed.numpy(), np.cumsum(widths)[:-1], 1)
        found = {name: part.reshape(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}
        above, flipped = (found.pop(name) > 0 for name in ("above_ceiling", "sign_flip"))
        return Measurement(found, above, flipped, self.nfe)


@dataclass(frozen=True)
class Packed:
    """The results of a micro-batch in one tensor (B, numbers) on the device, float64 if it has that; else as `Sent`."""

    numbers: Tensor
    shapes: dict[str, torch.Size]
    nfe: int

    def sent(self) -> Sent:
        """Start the copy of the results to the host, so that it does not queue behind what is launched next."""
        if self.numbers.device.type != "cuda":
            return Sent(self.numbers.to("cpu", copy=True).double(), self.shapes, self.nfe, None)
        host = torch.empty(self.numbers.shape, dtype=self.numbers.dtype, pin_memory=True)
        host.copy_(self.numbers, non_blocking=True)
        there = torch.cuda.Event()
        there.record(torch.cuda.current_stream(self.numbers.device))
        return Sent(host, self.shapes, self.nfe, there)


@dataclass(frozen=True)
class Launched:
    """A micro-batch that the device is computing: a `Measurement` in tensors that are ready now or later."""

    columns: dict[str, Tensor]
    above_ceiling: Tensor
    sign_flip: Tensor
    nfe: int

    def packed(self) -> Packed:
        """Put the results into one tensor, which is one copy to the host."""
        tensors = {**self.columns, "above_ceiling": self.above_ceiling, "sign_flip": self.sign_flip}
        widest = torch.float64 if has_float64(self.above_ceiling.device) else torch.float32
        numbers = torch.cat([tensor.reshape(len(tensor), -1).type(widest) for tensor in tensors.values()], 1)
        return Packed(numbers, {name: tensor.shape for name, tensor in tensors.items()}, self.nfe)

    def sent(self) -> Sent:
        """Start the copy of the results to the host; see `Packed.sent`."""
        return self.packed().sent()

    def fetch(self) -> Measurement:
        """Wait for the results and return them."""
        return self.sent().fetch()


@dataclass(frozen=True)
class Flow:
    """The flow that images are measured along, and the flow without conditions beside it.

    Attributes:
        denoiser: the model, under the images' conditions if there are any.
        null: the model without conditions; None if `denoiser` has no conditions or the model does not support it.
        guidance: scale of the guided flow between the two; None for no guided flow.
    """

    denoiser: Denoiser
    null: Denoiser | None = None
    guidance: float | None = None

    @property
    def others(self) -> tuple[Denoiser, ...]:
        """The denoisers whose rates are measured beside those of the flow."""
        return (self.null,) if self.null else ()

    def differences(self, levels: int, probes: int) -> int:
        """Return the evaluations per image that central differences take and backward passes do not."""
        return levels * probes * (1 + len(self.others)) if isinstance(self.denoiser, Differenced) else 0

    def columns(self, growth: Tensor, null: Tensor | None, guided: Tensor | None = None) -> dict[str, Tensor]:
        """Return the columns of growth.

        Args:
            growth: (B,) growth along the flow.
            null: (B,) growth without conditions, if it was measured.
            guided: (B,) growth along the guided flow; by default it is linear in the other two.
        """
        columns = {"growth": growth}
        if null is not None:
            columns |= {"growth_unconditional": null, "growth_contrast": growth - null}
            if self.guidance is not None:
                columns["growth_guided"] = null + self.guidance * (growth - null) if guided is None else guided
        return columns


def measure_images(flow: Flow, images: Tensor, rows: list[int], measure: Measure, seed: int) -> Measurement:
    """Measure images and wait for the results; see `launch_images`."""
    return launch_images(flow, images, rows, measure, seed).fetch()


def launch_images(
    flow: Flow,
    images: Tensor,
    rows: list[int],
    measure: Measure,
    seed: int,
    screened: bool = False,
    axes: Tensor | None = None,
) -> Launched:
    """Give images to the device to be measured, without waiting for it at any point.

    Args:
        flow: the flow to measure along.
        images: states (B, *state).
        rows: the row of each image in its data set, which seeds the published axis.
        measure: the preset.
        seed: the audit's seed.
        screened: whether the images have been screened: then the columns that preset `screen` shares with this one are
            not measured again.
        axes: the published axes of the rows as `published_axes` draws them, if they are on the device already.
    """
    if isinstance(measure, PaperMeasure):
        if axes is None:
            axes = _there(published_axes(rows, images.shape[1:], measure, seed), images)
        return _paper(flow, images, axes, measure)
    if isinstance(measure, VolumeMeasure):
        return _volume(flow, images, measure, seed, screened)
    if isinstance(measure, StandardMeasure):
        return _standard(flow, images, measure, seed, screened)
    return _screen(flow, images, measure, seed)


def published_axes(rows: list[int], shape: Sequence[int], measure: PaperMeasure, seed: int) -> Tensor:
    """Draw the axes that preset `paper` follows, for each row its own: (B, tangents, *state) float32 on the CPU."""
    axes = torch.empty(len(rows), measure.num_tangents, *shape)
    for drawn, row in zip(axes, rows, strict=True):
        torch.randn(drawn.shape, generator=seeded(seed, "tangent", row), out=drawn)
    return axes


def common_noise(images: Tensor, seed: int) -> Tensor:
    """Return the noise (*state) that all images of an audit are measured with: the pair's, and the axis's direction."""
    return _drawn_noise(images.shape[1:], seed, images.device, images.dtype)


@lru_cache(8)
def _drawn_noise(shape: torch.Size, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Draw the common noise, and keep it on the device for the micro-batches to come."""
    return torch.randn(shape, generator=seeded(seed, "noise", 0)).to(device, dtype, non_blocking=True)


@torch.no_grad()
def _screen(flow: Flow, images: Tensor, measure: ScreenMeasure, seed: int) -> Launched:
    pair = _pair(flow.denoiser, images, measure, seed)
    null = _pair(flow.null, images, measure, seed).rate if flow.null else None
    at_image = _expected_noise(flow.denoiser, images, measure)
    return Launched(
        columns={**flow.columns(pair.rate, null), "rates": pair.rate[:, None], **_shared(pair, at_image)},
        above_ceiling=pair.above_ceiling,
        sign_flip=torch.zeros_like(pair.above_ceiling),
        nfe=measure.evaluations + (measure.unconditional_evaluations if flow.null else 0),
    )


@torch.no_grad()
def _standard(flow: Flow, images: Tensor, measure: StandardMeasure, seed: int, screened: bool) -> Launched:
    """Measure the axis along the common noise; what it becomes is linear in the expected noise, its growth is not."""
    noise = common_noise(images, seed)
    start, end = (clamp_level(flow.denoiser, level) for level in (measure.norm_level, measure.loss_level))

    def derivative(denoiser: Denoiser, at_image: Tensor) -> Tensor:
        """Return the derivative of the expected noise along the axis, over a displacement of the noise's size."""
        there = _expected_noise(denoiser, images + start * noise, measure)
        return (there - at_image) / (start * noise.norm())

    def growth(along: Tensor) -> AxisGrowth:
        return axis_growth(along, noise / noise.norm(), start, end)

    at_image = _expected_noise(flow.denoiser, images, measure)
    along = derivative(flow.denoiser, at_image)
    found, null, guided = growth(along), None, None
    if flow.null:
        aside = derivative(flow.null, _expected_noise(flow.null, images, measure))
        null = growth(aside).growth
        if flow.guidance is not None:
            guided = growth(aside + flow.guidance * (along - aside)).growth
    columns = {**flow.columns(found.growth, null, guided), "rates": found.growth[:, None]}
    if not screened:
        columns |= _shared(_pair(flow.denoiser, images, measure, seed), at_image)
    return Launched(
        columns=columns,
        above_ceiling=found.above_ceiling,
        sign_flip=found.sign_flip,
        nfe=(measure.evaluations_after_screen if screened else measure.evaluations)
        + (measure.unconditional_evaluations if flow.null else 0),
    )


def _expected_noise(denoiser: Denoiser, y: Tensor, measure: ForwardMeasure) -> Tensor:
    """Return the noise that the model expects in y (B, *state) at the level of the noise norm."""
    return denoiser.noise(y, torch.tensor(clamp_level(denoiser, measure.norm_level), dtype=torch.float64))


def _pair(denoiser: Denoiser, images: Tensor, measure: ForwardMeasure, seed: int) -> NoisePair:
    return noise_pair(denoiser, images, clamp_level(denoiser, measure.loss_level), common_noise(images, seed))


def _shared(pair: NoisePair, at_image: Tensor) -> dict[str, Tensor]:
    """Return the columns that the screen shares with other presets."""
    return {"screen": pair.rate, "loss": pair.loss, "noise_norm": at_image.flatten(1).norm(dim=1)}


def _volume(flow: Flow, images: Tensor, measure: VolumeMeasure, seed: int, screened: bool) -> Launched:
    low, high = (log(clamp_level(flow.denoiser, level)) for level in (measure.smallest_level, measure.largest_level))
    levels = torch.linspace(low, high, measure.num_levels, dtype=torch.float64).exp()
    with true_float32():
        trace = trace_growth(flow.denoiser, images, levels, measure.num_probes, seeded(seed, "probe"), flow.others)
    null = torch.trapezoid(trace.other_rates[..., 0], _there(levels.log(), trace.rate), dim=1) if flow.null else None
    columns = {
        **flow.columns(trace.log_volume, null),
        "rates": trace.rate,
        "log_likelihood": trace.log_likelihood,
    }
    if not screened:
        with torch.no_grad():
            at_image = _expected_noise(flow.denoiser, images, measure)
            columns |= _shared(_pair(flow.denoiser, images, measure, seed), at_image)
    return Launched(
        columns=columns,
        above_ceiling=trace.above_ceiling,
        sign_flip=torch.zeros_like(trace.above_ceiling),
        nfe=trace.nfe + (0 if screened else SCREEN_EVALUATIONS) + flow.differences(len(levels), measure.num_probes),
    )


def _paper(flow: Flow, images: Tensor, axes: Tensor, measure: PaperMeasure) -> Launched:
    """Follow each flow by itself, from the same axes, since volumes are not linear in the predicted noise."""

    def follow(denoiser: Denoiser) -> VolumeGrowth:
        with torch.no_grad(), true_float32():
            return volume_growth(
                denoiser,
                images,
                times=torch.tensor(measure.times, dtype=torch.float64),
                derivative=measure.derivative,
                radius=measure.radius,
                tangents=axes,
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


def _there(tensor: Tensor, beside: Tensor) -> Tensor:
    """Copy a tensor to the device and precision of another, without waiting for it to arrive."""
    return tensor.to(beside.device, beside.dtype, non_blocking=True)
