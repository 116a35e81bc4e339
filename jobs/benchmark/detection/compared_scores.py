r"""Single scores to compare: columns of what this package measures, and scores that others have published.

A score is a function (denoiser, images (B, C, H, W) in [-1, 1], seed) -> (B,), high for suspicious images. It must not
depend on the batch an image comes in. Scores of the audit come from `volgrowth.audit.scoring.measures`; the others are
written here in the coordinates of `volgrowth.numerics.denoisers`, with e(y, s) the expected noise at noise level s.
Time steps of published attacks are those of the linear DDPM table (arXiv 2006.11239) and stand for its noise levels,
whatever the model's own table.

    traces      the mean trace of level de/dy at points that the flow has carried from level .03 to .16, .27 and .45
    noise norm  -|e(x, s)|: around an image that a model has memorized the density has its peak there
    sharpness   |J e| with J = de/dy at y = x + s z: where the density is a narrow peak, J is near I / s in every
                direction (after arXiv 2412.04140, the Hessian's product with the score)
    PIA         -|e(x, s_0) - e(x + s_200 e(x, s_0), s_200)|_4 (arXiv 2305.18355, p = 4, t = 200)
    SecMI       -|y' - y|^2 with y reached from x by DDIM encoding 0, 10, .., 100 and y' by one step to 110 and back
                (arXiv 2302.01316, t_sec = 100, k = 10)
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.scoring.measures import Flow, measure_images
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import Measure, PaperMeasure, VolumeMeasure
from volgrowth.errors import UsageError
from volgrowth.models.user_code import import_function
from volgrowth.numerics import DDPMSchedule, Denoiser, trace_growth
from volgrowth.numerics.flow import encode
from volgrowth.numerics.tangents import noise_stack

ScoreFunction = Callable[[Denoiser, Tensor, int], Tensor]

# noise level of the scores that need one, and of the loss
LEVEL, LOSS_LEVEL, LOSS_NOISES = 0.18, 0.34, 4
# levels that the flow runs through, those at which it is measured, and probes at each
RUN_IN, TRACE_LEVELS, PROBES = (0.03, 0.07), (0.16, 0.27, 0.45), 2

VOLUME = VolumeMeasure(num_probes=1)
DDPM_SCHEDULE = DDPMSchedule(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))
PIA_TIME, PIA_NORM = 200, 4
SECMI_TIME, SECMI_STEP = 100, 10

# images in a batch: more are slower on a CPU
BATCH = 128


@dataclass(frozen=True)
class Score:
    """A score with its price.

    Attributes:
        nfe: network evaluations per image, forward or backward; None if a user's function does not say.
        source: the score's definition in one line, for the tables.
    """

    name: str
    function: ScoreFunction
    nfe: int | None
    source: str


class SharedScore(ABC):
    """A score function that is one column of a measurement, which several scores share, or the negative of the column.

    Attributes:
        column: the name of the column.
        sign: -1 for the negative.
    """

    column: str
    sign: int

    @property
    @abstractmethod
    def measurement(self) -> str:
        """Text that tells this measurement, with its settings, from all others."""

    @abstractmethod
    def columns(self, denoiser: Denoiser, images: Tensor, seed: int) -> dict[str, np.ndarray]:
        """Measure images (B, C, H, W). Returns arrays whose first axis is B, by their names."""

    def __call__(self, denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
        return torch.from_numpy(self.sign * self.columns(denoiser, images, seed)[self.column])


@dataclass(frozen=True)
class Preset(SharedScore):
    """A column of a preset's measurement, under its name in `records.SCORES`.

    The axes of preset `paper` are random: each image has its own, drawn from its pixels.
    """

    measure: Measure
    column: str
    sign: int = 1

    @property
    def measurement(self) -> str:
        """The settings of the preset."""
        return f"{self.measure!r}"

    def columns(self, denoiser: Denoiser, images: Tensor, seed: int) -> dict[str, np.ndarray]:
        """Return all that the preset measures."""
        rows = [_number(image) for image in images.cpu().numpy()]
        return measure_images(Flow(denoiser), images, rows, self.measure, seed).columns


@dataclass(frozen=True)
class Traces(SharedScore):
    """A column of the traces along the flow: their mean `rate`, `lid` by FLIPD, or `sharpness`, the norm of de/dy."""

    column: str
    sign: int = 1

    @property
    def measurement(self) -> str:
        """Levels and probes."""
        return f"traces {RUN_IN} {TRACE_LEVELS} {PROBES}"

    def columns(self, denoiser: Denoiser, images: Tensor, seed: int) -> dict[str, np.ndarray]:
        """Return the means over the levels."""
        levels = torch.tensor(TRACE_LEVELS, dtype=torch.float64)
        start = encode(denoiser, images, torch.tensor((*RUN_IN, TRACE_LEVELS[0]), dtype=torch.float64))
        trace = trace_growth(denoiser, start, levels, PROBES, seeded(seed, "probe"))
        lid = images.shape[1:].numel() - trace.rate + trace.noise_norm**2
        found = {"rate": trace.rate, "lid": lid, "sharpness": trace.sharpness}
        return {name: values.mean(1).double().cpu().numpy() for name, values in found.items()}


def common_axis(denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
    """Return the published growth with one and the same random axis for all images."""
    return torch.from_numpy(
        measure_images(Flow(denoiser), images, [0] * len(images), PaperMeasure(), seed).columns["growth"]
    )


@torch.no_grad()
def loss_at_level(denoiser: Denoiser, images: Tensor, level: float, num_noises: int, seed: int) -> Tensor:
    """Return (B,) float64, the mean over pixels and noises z of (e(x + level z, level) - z)^2; all images share z."""
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for index in range(num_noises):
        draw = torch.randn(images.shape[1:], generator=seeded(seed, "noise", index)).to(images)
        total += ((_noise(denoiser, images + level * draw, level) - draw) ** 2).flatten(1).mean(1)
    return total / num_noises


def negative_loss(denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
    """Return the negative of the denoising loss at a middle level."""
    return -loss_at_level(denoiser, images, LOSS_LEVEL, LOSS_NOISES, seed)


@torch.no_grad()
def negative_noise_norm(denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
    """Return the negative of the length of the expected noise at the image."""
    return -_noise(denoiser, images, LEVEL).flatten(1).norm(dim=1)


@torch.no_grad()
def sharpness(denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
    """Return |J e| at the noised image, with the same noise for all images."""
    level = LEVEL
    y = images + level * torch.randn(images.shape[1:], generator=seeded(seed, "noise", 0)).to(images)
    stack = torch.stack([y, _noise(denoiser, y, level)], 1)
    return noise_stack(denoiser, stack, level, "jvp", radius=0.0)[:, 1].flatten(1).norm(dim=1)


@torch.no_grad()
def pia(denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
    """Return the score of the proximal initialization attack."""
    first, then = _levels(0, PIA_TIME)
    expected = _noise(denoiser, images, first)
    difference = expected - _noise(denoiser, images + then * expected, then)
    return -difference.flatten(1).norm(p=PIA_NORM, dim=1)


@torch.no_grad()
def secmi(denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
    """Return the statistic of step-wise error comparing membership inference."""
    *grid, last, beyond = _levels(*range(0, SECMI_TIME + SECMI_STEP + 1, SECMI_STEP))
    y = images
    for t, s in zip(grid, [*grid[1:], last], strict=True):
        y = y + (s - t) * _noise(denoiser, y, t)
    further = y + (beyond - last) * _noise(denoiser, y, last)
    back = further + (last - beyond) * _noise(denoiser, further, beyond)
    return -((back - y) ** 2).flatten(1).sum(1)


def _noise(denoiser: Denoiser, y: Tensor, level: float) -> Tensor:
    return denoiser.noise(y, torch.tensor(level, dtype=torch.float64))


def _levels(*times: int) -> list[float]:
    return DDPM_SCHEDULE.noise_level(torch.tensor(times, dtype=torch.float64)).tolist()


def _number(image: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little")


PAPER, PAPER_LONG = PaperMeasure(), PaperMeasure(num_tangents=10, num_steps=10)
TRACED = len(RUN_IN) + len(TRACE_LEVELS) * (1 + PROBES)
SCORES = (
    Score("traces", Traces("rate"), TRACED, "traces at levels 0.16 to 0.45 along the flow"),
    Score("vgr", Preset(PAPER, "growth"), PAPER.evaluations, "volume growth, one axis, one step (arXiv 2503.19429)"),
    Score("vgr_common_axis", common_axis, PAPER.evaluations, "the same, one axis for all images"),
    Score("vgr_10x10", Preset(PAPER_LONG, "growth"), PAPER_LONG.evaluations, "the same, 10 axes, 10 steps"),
    Score(
        "volume", Preset(VOLUME, "growth"), VOLUME.evaluations, "preset volume with one probe: full growth by traces"
    ),
    Score("likelihood", Preset(VOLUME, "log_likelihood"), VOLUME.evaluations, "log density that volume gives"),
    Score("loss", negative_loss, LOSS_NOISES, "denoising loss at level 0.34, 4 noises"),
    Score("flipd", Traces("lid", -1), TRACED, "local dimension, by FLIPD (arXiv 2406.03537)"),
    Score("curvature", Traces("sharpness"), TRACED, "|J|, Frobenius norm at those levels"),
    Score("sharpness", sharpness, 3, "|J e| at level 0.18, Hessian times score (after arXiv 2412.04140)"),
    Score("noise_norm", negative_noise_norm, 1, "length of the expected noise at level 0.18"),
    Score("pia", pia, 2, "PIA (arXiv 2305.18355)"),
    Score("secmi", secmi, 12, "SecMI, t-error (arXiv 2302.01316)"),
)


def user_score(name: str) -> Score:
    """Return the score that a user gives as `module:function`; the function's attribute `nfe` is its price.

    The module is looked for in the working directory too.

    Raises:
        UsageError: there is no such function.
    """
    module, _, function = name.partition(":")
    if not module or not function or ":" in function:
        raise UsageError(f"score {name!r} names no function: expected module:function")
    found, _ = import_function(module, function, UsageError, f"score {name!r}")
    if not callable(found):
        raise UsageError(f"score {name!r} is {type(found).__name__}: expected a function of denoiser, images and seed")
    return Score(name, found, getattr(found, "nfe", None), f"given as {name}")


def evaluate(score: Score, denoiser: Denoiser, images: Tensor, seed: int) -> np.ndarray:
    """Return the score of images (n, C, H, W) as float64 (n,).

    Raises:
        UsageError: the function failed, or did not return one finite number per image.
    """
    try:
        values = [score.function(denoiser, part, seed).detach().cpu() for part in images.split(BATCH)]
    except Exception as error:
        raise UsageError(f"score {score.name} failed with {type(error).__name__}: {error}") from error
    for value, part in zip(values, images.split(BATCH), strict=True):
        if value.shape != (len(part),) or not value.isfinite().all():
            what = "numbers that are not finite" if value.shape == (len(part),) else f"shape {tuple(value.shape)}"
            raise UsageError(f"score {score.name} returned {what}: expected one finite number for each of {len(part)}")
    return torch.cat(values).numpy().astype(np.float64)


def evaluate_columns(shared: SharedScore, denoiser: Denoiser, images: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Return all columns of a measurement of images (n, C, H, W)."""
    parts = [shared.columns(denoiser, part, seed) for part in images.split(BATCH)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
