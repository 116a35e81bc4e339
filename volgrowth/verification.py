"""Proof by sampling: which training images a model really reproduces.

A sample hits the training image nearest to it when it is much nearer to that one than to the others around it:
distance to the nearest over the mean distance to the `NEIGHBOURS` nearest, among distinct images, below
`RATIO` (the rule of FINDINGS section 2, after Carlini et al., arXiv 2301.13188). Two hits make an image reproduced.
"""

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.measures import seeded
from volgrowth.numerics import Denoiser
from volgrowth.numerics.sampling import ddim_sample

RATIO = 0.4
NEIGHBOURS = 50
HITS = 2
RULE = (
    f"a sample hits an image when it is nearer to it than {RATIO:g} times the mean distance to its {NEIGHBOURS} nearest; "
    f"{HITS} hits make an image reproduced"
)


def draw_samples(denoiser: Denoiser, count: int, seed: int, steps: int = 50, batch: int = 128) -> Tensor:
    """(count, C, H, W) samples in [-1, 1] by DDIM with `steps` steps, on the CPU."""
    assert denoiser.schedule is not None
    assert denoiser.image_shape is not None
    last = len(denoiser.schedule) - 1  # type: ignore[arg-type]
    times = torch.linspace(0, last, steps + 1, dtype=torch.float64).round()
    drawn = []
    for index, start in enumerate(range(0, count, batch)):
        shape = (min(batch, count - start), *denoiser.image_shape)
        noise = torch.randn(shape, generator=seeded(seed, "sample", index)).to(denoiser.device, denoiser.dtype)
        drawn.append(ddim_sample(denoiser, noise, times).clamp(-1, 1).cpu())
    return torch.cat(drawn)


def count_hits(samples: Tensor, images: Tensor) -> np.ndarray:
    """(N,) how many of the samples (S, C, H, W) hit each of the distinct images (N, C, H, W)."""
    neighbours = min(NEIGHBOURS, len(images))
    distances = torch.cdist(samples.flatten(1).double(), images.flatten(1).double())
    nearest, index = distances.topk(neighbours, dim=1, largest=False)
    hit = nearest[:, 0] < RATIO * nearest.mean(1)
    return torch.bincount(index[hit, 0], minlength=len(images)).numpy()
