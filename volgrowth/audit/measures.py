"""What a preset measures on a micro-batch of images.

Every random number is drawn on the CPU from a generator seeded by what it is for, so a score does not depend on the
shard, batch, worker, order or restart it came from. Probes and noises are common to all images: FINDINGS and
`volgrowth.numerics.traces` say why that ranks better. The published axis is drawn for each row.
"""

import hashlib
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from volgrowth.config import Measure, PaperMeasure, StandardMeasure, VolumeMeasure
from volgrowth.numerics import Denoiser, VolumeGrowth, trace_growth, volume_growth
from volgrowth.numerics.denoisers import GuidedDenoiser
from volgrowth.numerics.sampling import encode


@dataclass(frozen=True)
class Measurement:
    """A micro-batch of B images: columns of `records.SCORES` as float64 arrays whose first axis is B, marks, cost."""

    columns: dict[str, np.ndarray]
    above_ceiling: np.ndarray
    sign_flip: np.ndarray
    nfe: int

    @property
    def finite(self) -> np.ndarray:
        """(B,) whether every number of the row is finite."""
        rows = len(self.above_ceiling)
        return np.isfinite(np.concatenate([column.reshape(rows, -1) for column in self.columns.values()], 1)).all(1)


def seeded(seed: int, *purpose: float | str) -> torch.Generator:
    """A CPU generator for one purpose of an audit, independent of all others."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


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


def _standard(flow: Flow, images: Tensor, measure: StandardMeasure, seed: int) -> Measurement:
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
    return Measurement(
        columns={name: _numpy(column) for name, column in columns.items()},
        above_ceiling=_numpy(trace.above_ceiling),
        sign_flip=np.zeros(len(images), bool),
        nfe=measure.evaluations + (measure.beside() if flow.null else 0),
    )


def _rising(denoiser: Denoiser, levels: tuple[float, ...]) -> Tensor:
    """The levels within the model's table, each once."""
    return torch.tensor(sorted({_within(denoiser, level) for level in levels}), dtype=torch.float64)


def _volume(flow: Flow, images: Tensor, measure: VolumeMeasure, seed: int) -> Measurement:
    low, high = (log(_within(flow.denoiser, level)) for level in (measure.smallest_level, measure.largest_level))
    levels = torch.linspace(low, high, measure.num_levels, dtype=torch.float64).exp()
    trace = trace_growth(flow.denoiser, images, levels, measure.num_probes, seeded(seed, "probe"), flow.others)
    null = torch.trapezoid(trace.other_rates[..., 0], levels.log().to(trace.rate), dim=1) if flow.null else None
    columns = {
        **flow.columns(trace.log_volume, null),
        "rates": trace.rate,
        "log_likelihood": trace.log_likelihood,
    }
    return Measurement(
        columns={name: _numpy(column) for name, column in columns.items()},
        above_ceiling=_numpy(trace.above_ceiling),
        sign_flip=np.zeros(len(images), bool),
        nfe=trace.nfe,
    )


def _paper(flow: Flow, images: Tensor, rows: list[int], measure: PaperMeasure, seed: int) -> Measurement:
    """Volumes are not linear in the noise: each flow is followed for itself, from the same axes."""
    shape = (measure.num_tangents, *images.shape[1:])
    tangents = torch.stack([torch.randn(shape, generator=seeded(seed, "tangent", row)) for row in rows])

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
    return Measurement(
        columns={name: _numpy(column) for name, column in columns.items()},
        above_ceiling=_numpy(growth.above_ceiling),
        sign_flip=_numpy(growth.sign_flip),
        nfe=growth.nfe + (measure.beside(flow.guidance) if flow.null else 0),
    )


@torch.no_grad()
def denoising_loss(denoiser: Denoiser, images: Tensor, noise_level: float, num_noises: int, seed: int) -> Tensor:
    """(B,) mean over pixels and noises e of (noise(x + level e) - e)^2, with the same noises for every image."""
    level = torch.tensor(noise_level, dtype=torch.float64)
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for index in range(num_noises):
        draw = torch.randn(images.shape[1:], generator=seeded(seed, "noise", index)).to(images)
        predicted = denoiser.noise(images + noise_level * draw, level)
        total += ((predicted - draw) ** 2).flatten(1).mean(1)
    return total / num_noises


class true_float32:  # noqa: N801  a context manager, used like torch.no_grad
    """Within it, float32 products keep float32's mantissa: TF32 would ruin a finite difference."""

    def __enter__(self) -> None:
        self.before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.before


def _numpy(tensor: Tensor) -> np.ndarray:
    array = tensor.cpu().numpy()
    return array.astype(np.float64) if array.dtype.kind == "f" else array
