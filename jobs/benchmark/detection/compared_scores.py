r"""Memorization scores to compare: those that this package measures, and those that others have published.

A score is a function (denoiser, images (B, C, H, W) in [-1, 1], seed) -> (B,), high for suspicious images. It must not
depend on the batch an image comes in. Scores of the audit come from `volgrowth.audit.scoring.measures`; the others are
written here in the coordinates of `volgrowth.numerics.denoisers`, with e(y, s) the expected noise at noise level s.
Time steps of published attacks are those of the linear DDPM table (arXiv 2006.11239) and stand for its noise levels,
whatever the model's own table.

    noise norm  -|e(x, s)|: around an image that a model has memorized the density has its peak there
    sharpness   |J e| with J = de/dy at y = x + s z: where the density is a narrow peak, J is near I / s in every
                direction (after arXiv 2412.04140, the Hessian's product with the score)
    PIA         -|e(x, s_0) - e(x + s_200 e(x, s_0), s_200)|_4 (arXiv 2305.18355, p = 4, t = 200)
    SecMI       -|y' - y|^2 with y reached from x by DDIM encoding 0, 10, .., 100 and y' by one step to 110 and back
                (arXiv 2302.01316, t_sec = 100, k = 10)
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.scoring.measures import Flow, denoising_loss, measure_images
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import Measure, PaperMeasure, StandardMeasure, VolumeMeasure
from volgrowth.errors import UsageError
from volgrowth.models.user_code import import_function
from volgrowth.numerics import DDPMSchedule, Denoiser
from volgrowth.numerics.tangents import noise_stack

ScoreFunction = Callable[[Denoiser, Tensor, int], Tensor]

# noise level of the scores that need one
LEVEL = 0.18

STANDARD, VOLUME = StandardMeasure(), VolumeMeasure(num_probes=1)
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


@dataclass(frozen=True)
class Preset:
    """The score function that is one column of a preset's measurement, or the negative of that column.

    The axes of preset `paper` are random: each image has its own, drawn from its pixels.
    """

    measure: Measure
    column: str
    sign: int = 1

    def __call__(self, denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
        return torch.from_numpy(self.sign * self.columns(denoiser, images, seed)[self.column])

    def columns(self, denoiser: Denoiser, images: Tensor, seed: int) -> dict[str, np.ndarray]:
        """Return all that the preset measures, under the names of `records.SCORES`."""
        rows = [_number(image) for image in images.cpu().numpy()]
        return measure_images(Flow(denoiser), images, rows, self.measure, seed).columns


def common_axis(denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
    """Return the published growth with one and the same random axis for all images."""
    return torch.from_numpy(
        measure_images(Flow(denoiser), images, [0] * len(images), PaperMeasure(), seed).columns["growth"]
    )


def negative_loss(denoiser: Denoiser, images: Tensor, seed: int) -> Tensor:
    """Return the negative of the denoising loss of preset standard."""
    return -denoising_loss(denoiser, images, 0.34, 4, seed)


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
SCORES = (
    Score("standard", Preset(STANDARD, "growth"), STANDARD.evaluations, "preset standard: traces, levels 0.16 to 0.45"),
    Score("vgr", Preset(PAPER, "growth"), PAPER.evaluations, "volume growth, one axis, one step (arXiv 2503.19429)"),
    Score("vgr_common_axis", common_axis, PAPER.evaluations, "the same, one axis for all images"),
    Score("vgr_10x10", Preset(PAPER_LONG, "growth"), PAPER_LONG.evaluations, "the same, 10 axes, 10 steps"),
    Score(
        "volume", Preset(VOLUME, "growth"), VOLUME.evaluations, "preset volume with one probe: full growth by traces"
    ),
    Score("likelihood", Preset(VOLUME, "log_likelihood"), VOLUME.evaluations, "log density that volume gives"),
    Score("loss", negative_loss, 4, "denoising loss at level 0.34, 4 noises"),
    Score("flipd", Preset(STANDARD, "lid", -1), STANDARD.evaluations, "local dimension, by FLIPD (arXiv 2406.03537)"),
    Score("curvature", Preset(STANDARD, "sharpness"), STANDARD.evaluations, "|J|, Frobenius norm at those levels"),
    Score("sharpness", sharpness, 3, "|J e| at level 0.18, Hessian times score (after arXiv 2412.04140)"),
    Score("noise_norm", negative_noise_norm, 1, "length of the expected noise at level 0.18"),
    Score("pia", pia, 2, "PIA (arXiv 2305.18355)"),
    Score("secmi", secmi, 12, "SecMI, t-error (arXiv 2302.01316)"),
)


def choose_scores(names: Sequence[str] | None, own: Sequence[str]) -> list[Score]:
    """Return the named built-in scores, or all of them, and a user's own.

    Args:
        names: built-in scores; None for all.
        own: a user's functions, as `module:function`.

    Raises:
        UsageError: an unknown name, or a name that is no function.
    """
    known = {score.name: score for score in SCORES}
    for name in names or ():
        if name not in known:
            raise UsageError(f"score {name!r} is not built in: expected some of {', '.join(known)}")
    return [known[name] for name in names or known] + [user_score(name) for name in own]


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


def evaluate_preset(preset: Preset, denoiser: Denoiser, images: Tensor, seed: int) -> dict[str, np.ndarray]:
    """Return all columns of a preset for images (n, C, H, W)."""
    parts = [preset.columns(denoiser, part, seed) for part in images.split(BATCH)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
