r"""How much a caption alone steers a model: the contrast of its expected noise at pure noise, without an image.

With e(y, s, c) the noise that the model expects under caption c, and none for the null condition,

    contrast(c) = mean over draws of |e(y, s, c) - e(y, s, none)| / sqrt(D),    y = sqrt(1 + s^2) z

at the highest level s of the model's own sampler, where y is what a sample begins with, z are `DRAWS` standard normal
draws that all captions share, and D is the number of dimensions. It is what classifier-free guidance steers a sample
by in its first step (Wen et al., arXiv 2407.21720, the magnitude of the text-conditional noise prediction in its
fastest form). Samples under a caption whose image is memorized are steered further than others.
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch

from volgrowth.audit.scoring.derivatives import clamp_level
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.audit.workers.seeding import seeded
from volgrowth.errors import ModelError
from volgrowth.numerics import Denoiser

DRAWS = 4
STEPS = 50
"""Steps of the model's sampler, of which the first one's level is taken."""
EVALUATIONS = 2 * DRAWS
"""Network evaluations of each caption, with those without a condition."""


def first_level(denoiser: Denoiser) -> float:
    """Return the noise level that the model's own sampler begins at.

    Raises:
        ModelError: the model does not say at which levels it is sampled.
    """
    try:
        highest = denoiser.sampling_levels(STEPS)[-1].item()
    except ValueError as error:
        raise ModelError(f"the model cannot be scored by captions: {error}") from None
    return clamp_level(denoiser, highest)


@torch.no_grad()
def caption_contrasts(
    denoiser: Denoiser,
    captions: Sequence[str],
    seed: int,
    batch_size: int,
    told: Callable[[int], object] = lambda done: None,
) -> np.ndarray:
    """Return the contrast of each caption, (n,) float64; NaN where the network gives numbers that are not finite.

    Args:
        denoiser: a model that takes captions, under no condition.
        captions: any number of them.
        seed: of the draws.
        batch_size: captions that the network takes at a time; halved where memory runs out.
        told: called with the number of captions that were measured since the last call.

    Raises:
        NoMemoryError: one caption does not fit.
    """
    shape = denoiser.image_shape
    assert shape is not None  # models of captions have one
    level = first_level(denoiser)
    highest, wide, dimension = torch.tensor(level, dtype=torch.float64), (1 + level**2) ** 0.5, prod(shape)
    found = list[float]()

    def measure(some: Sequence[str]) -> None:
        under, total = denoiser.given(some), torch.zeros(len(some), dtype=torch.float64)
        for draw in range(DRAWS):
            z = torch.randn(shape, generator=seeded(seed, "caption", draw))
            y = (wide * z).to(denoiser.device, denoiser.dtype).expand(len(some), *z.shape)
            steered = under.noise(y, highest) - denoiser.noise(y, highest)
            total += steered.flatten(1).to(torch.float64).norm(dim=1).cpu() / dimension**0.5
        found.extend((total / DRAWS).tolist())
        told(len(some))

    BatchSize(batch_size).each(captions, measure)
    contrast = np.array(found)
    return np.where(np.isfinite(contrast), contrast, np.nan)
