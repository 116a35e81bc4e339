r"""Scores of pairs of an image and its condition: columns of preset `standard`, and scores that others have published.

High is suspicious in all of them. With e(y, s, c) the expected noise under condition c and d = e(., c) - e(., none):

    noise difference    |d| at pure noise and the highest level, the mean of `NOISES` draws: what the samples that are
                        drawn under a memorized caption are steered by. It looks at no image.
    the same, at image  |d| at y = x + .3 z
    sharpness           |J_c d - J_none d| at pure noise and the highest level, with J = de/dy: the difference of
                        Hessians times that of scores, but for a factor that is the same for all pairs. It looks at no
                        image.
    alignment           cos(e(., none), d) over the channels of each pixel, the mean over pixels, at pure noise of unit
                        variance that the model is told to be of its `LOW_STEP`th lowest sampling level (about .2 in
                        Stable Diffusion). It looks at no image.
    the same, at image  alignment at y = x + s z, s that level
    both                noise difference + `ALIGNED_WEIGHT` alignment

Sources: arXiv 2407.21720 for the noise difference (`text_noise_norm` of YuxinWenRick/diffusion_memorization; the code
can also average it over the steps of guided sampling, here it is the first step's, as in the paper's fastest form);
arXiv 2412.04140 for sharpness (`hvp_metric` of Dongjae0324/sharpness_memorization_diffusion); arXiv 2601.20642 for
alignment and both (`cosine_sim` and `combined_score` of rohanasthana/memorization-anisotropy, with its weights for
Stable Diffusion 1.4). "At image" is ours. Their definitions were compared with the ones here; no code is taken from
them.

Evaluations are forward passes under either condition, two for each derivative.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.scoring.measures import Flow, measure_images
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import ScreenMeasure, StandardMeasure
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition
from volgrowth.numerics.tangents import noise_stack

Columns = dict[str, np.ndarray]

# draws of pure noise, the level of the loss, and pairs at a time
NOISES, MIDDLE, BATCH = 4, 0.3, 128
# of 50 steps of the sampler, where alignment is measured, and its weight beside the noise difference
LOW_STEP, ALIGNED_WEIGHT = 2, 2.0

NO_IMAGE, AT_IMAGE, HESSIAN = "noise difference", "noise difference at the image", "sharpness"
ALIGNED, ALIGNED_AT_IMAGE = "alignment", "alignment at the image"
BOTH = "noise difference + 2 alignment"
STANDARD = StandardMeasure()
# of preset `standard` with a condition, and of its parts
CONDITIONAL = STANDARD.evaluations + STANDARD.unconditional_evaluations
PRICES: dict[str, int] = {
    "growth": 2,
    "growth_unconditional": 2,
    "growth_contrast": 4,
    "growth_guided": 4,
    "loss": 2,
    "loss_unconditional": 2,
    "loss_contrast": 4,
    "noise_norm": 1,
    "noise_norm_unconditional": 1,
    NO_IMAGE: 2 * NOISES,
    AT_IMAGE: 2,
    HESSIAN: 4 * NOISES,
    ALIGNED: 2 * NOISES,
    ALIGNED_AT_IMAGE: 2,
    BOTH: 4 * NOISES,
}
"""Evaluations of each score."""


def measure_pairs(
    denoiser: Denoiser, null: Denoiser, states: Tensor, conditions: Sequence[Condition], guidance: float, seed: int
) -> Columns:
    """Measure states (n, *state) under their conditions (n).

    Returns:
        The columns of preset `standard`, loss and noise norm without a condition as NAME_unconditional, and the
        published scores under the names above, each (n,).
    """
    parts = []
    for first in range(0, len(states), BATCH):
        some, under = states[first : first + BATCH], denoiser.given(conditions[first : first + BATCH])
        rows = list(range(first, first + len(some)))
        flow = Flow(under, null, guidance)
        found = measure_images(flow, some, rows, STANDARD, seed).columns
        without = measure_images(Flow(null), some, rows, ScreenMeasure(), seed).columns
        found |= {f"{name}_unconditional": without[name] for name in ("loss", "noise_norm")}
        parts.append(found | _published(under, null, some, seed))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if parts[0][name].ndim == 1}


@cache
def definitions() -> str:
    """Return a hash of this file, which tells measurements by other definitions apart."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def suspicious(columns: Columns) -> Columns:
    """Return each score of `PRICES`, high for suspicious pairs: losses and norms as minus their logarithm."""
    logs = {
        name: -np.log(columns[name])
        for name in ("loss", "loss_unconditional", "noise_norm", "noise_norm_unconditional")
    }
    contrast = {"loss_contrast": logs["loss"] - logs["loss_unconditional"]}
    return {name: (logs | contrast).get(name, columns.get(name, np.empty(0))) for name in PRICES}


@torch.no_grad()
def _published(under: Denoiser, null: Denoiser, states: Tensor, seed: int) -> Columns:
    """Return the published scores of a batch."""
    levels = under.sampling_levels(50)
    highest, low = levels[-1].item(), levels[LOW_STEP].item()
    wide, unit = (1 + highest**2) ** 0.5, (1 + low**2) ** 0.5

    def noise(index: int) -> Tensor:
        drawn = torch.randn(states.shape[1:], generator=seeded(seed, "noise", 1 + index)).to(states)
        return drawn.expand_as(states)

    def over_noises(score: Callable[[Tensor], Tensor]) -> np.ndarray:
        return torch.stack([score(noise(index)) for index in range(NOISES)]).mean(0).double().cpu().numpy()

    common = noise(0)
    steered = over_noises(lambda z: _norm(_difference(under, null, wide * z, highest)[0]))
    aligned = over_noises(lambda z: alignment(*_difference(under, null, unit * z, low)))
    return {
        NO_IMAGE: steered,
        AT_IMAGE: _norm(_difference(under, null, states + MIDDLE * common, MIDDLE)[0]).double().cpu().numpy(),
        HESSIAN: over_noises(lambda z: _sharpness(under, null, wide * z, highest)),
        ALIGNED: aligned,
        ALIGNED_AT_IMAGE: alignment(*_difference(under, null, states + low * common, low)).double().cpu().numpy(),
        BOTH: steered + ALIGNED_WEIGHT * aligned,
    }


def _difference(under: Denoiser, null: Denoiser, y: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the difference that the condition makes to the expected noise, and that without it."""
    at = torch.tensor(level, dtype=torch.float64)
    without = null.noise(y, at)
    return under.noise(y, at) - without, without


def _sharpness(under: Denoiser, null: Denoiser, y: Tensor, level: float) -> Tensor:
    along, _ = _difference(under, null, y, level)
    stack = torch.stack([y, along], 1)
    derived = [noise_stack(denoiser, stack, level, "jvp", radius=0.0)[:, 1] for denoiser in (under, null)]
    return _norm(derived[0] - derived[1])


def _norm(states: Tensor) -> Tensor:
    return states.flatten(1).norm(dim=1)


def alignment(difference: Tensor, without: Tensor) -> Tensor:
    """Return the cosine of two states (B, C, H, W) over the channels of each pixel, the mean over pixels, (B,)."""
    return torch.nn.functional.cosine_similarity(difference, without, dim=1).flatten(1).mean(1)
