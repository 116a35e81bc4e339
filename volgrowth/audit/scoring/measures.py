"""The measures of the presets on a micro-batch of images.

Every random number is drawn on the CPU from a generator seeded by its purpose, so a score does not depend on the shard,
batch, worker, order or restart it came from. Probes and noises are common to all images: then their errors are common
too and cancel when images are ranked (`volgrowth.numerics.traces`). The published axis is drawn for each row.
"""

from dataclasses import dataclass
from functools import cached_property
from math import log

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.scoring.derivatives import Differenced, clamp_level, true_float32
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import Measure, PaperMeasure, StandardMeasure, VolumeMeasure
from volgrowth.numerics import Denoiser, VolumeGrowth, trace_growth, volume_growth
from volgrowth.numerics.denoisers import GuidedDenoiser
from volgrowth.numerics.flow import encode


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
class Launched:
    """A micro-batch that the device is computing: a `Measurement` in tensors that are ready now or later."""

    columns: dict[str, Tensor]
    above_ceiling: Tensor
    sign_flip: Tensor
    nfe: int

    def fetch(self) -> Measurement:
        """Wait for the results and return them. One copy brings everything."""
        rows = len(self.above_ceiling)
        tensors = [*self.columns.values(), self.above_ceiling, self.sign_flip]
        parts = [tensor.reshape(rows, -1).double() for tensor in tensors]
        there = np.split(torch.cat(parts, 1).cpu().numpy(), np.cumsum([part.shape[1] for part in parts])[:-1], 1)
        *columns, above, flipped = (a.reshape(tensor.shape) for a, tensor in zip(there, tensors, strict=True))
        return Measurement(dict(zip(self.columns, columns, strict=True)), above > 0, flipped > 0, self.nfe)


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


def launch_images(flow: Flow, images: Tensor, rows: list[int], measure: Measure, seed: int) -> Launched:
    """Give images to the device to be measured, without waiting for it at any point.

    Args:
        flow: the flow to measure along.
        images: states (B, *state).
        rows: the row of each image in its data set, which seeds the published axis.
        measure: the preset.
        seed: the audit's seed.
    """
    if isinstance(measure, PaperMeasure):
        return _paper(flow, images, rows, measure, seed)
    if isinstance(measure, VolumeMeasure):
        return _volume(flow, images, measure, seed)
    return _standard(flow, images, measure, seed)


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
        "loss": denoising_loss(denoiser, images, clamp_level(denoiser, measure.loss_level), measure.num_noises, seed),
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
    """Return the rising noise levels, clamped to the model's trained range, each once."""
    return torch.tensor(sorted({clamp_level(denoiser, level) for level in levels}), dtype=torch.float64)


def _volume(flow: Flow, images: Tensor, measure: VolumeMeasure, seed: int) -> Launched:
    low, high = (log(clamp_level(flow.denoiser, level)) for level in (measure.smallest_level, measure.largest_level))
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
    """Follow each flow by itself, from the same axes, since volumes are not linear in the predicted noise."""
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
    """Return the mean over pixels and noises e of (noise(x + level e) - e)^2, with the same noises for every image.

    Args:
        denoiser: the model.
        images: states x (B, *state).
        noise_level: the level.
        num_noises: noises to average over.
        seed: the audit's seed.

    Returns:
        (B,) float64.
    """
    level = torch.tensor(noise_level, dtype=torch.float64)
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for index in range(num_noises):
        draw = torch.randn(images.shape[1:], generator=seeded(seed, "noise", index))
        draw = _there(draw, images)
        predicted = denoiser.noise(images + noise_level * draw, level)
        total += ((predicted - draw) ** 2).flatten(1).mean(1)
    return total / num_noises


def _there(tensor: Tensor, beside: Tensor) -> Tensor:
    """Copy a tensor to the device and precision of another, without waiting for it to arrive."""
    return tensor.to(beside.device, beside.dtype, non_blocking=True)
