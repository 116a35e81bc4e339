r"""Proof by sampling: which training images a model really reproduces.

A sample hits the image nearest to it when it is much nearer to that one than to the others around it: distance to the
nearest over the mean distance to the `NEIGHBOURS` nearest below `RATIO` (the rule of FINDINGS section 2, after Carlini
et al., arXiv 2301.13188), among the distinct images of the training set and of a held-out set together. Held-out images
cannot be memorized, so their hits are what the rule finds by chance, most of all between plain images, which lie
close to one another. An image is reproduced with at least h hits, h the smallest number that is at least 2, at least a
share `MIN_SHARE` of the samples, and at which

    (held-out images with h hits) * (training images / held-out images) <= FALSE_SHARE * (training images with h hits)
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.measures import seeded
from volgrowth.errors import ModelError
from volgrowth.numerics import DDPMSchedule, Denoiser
from volgrowth.numerics.sampling import ddim_sample

RATIO = 0.4
NEIGHBOURS = 50
MIN_HITS = 2
MIN_SHARE = 0.002
FALSE_SHARE = 0.05

# rows of the distance matrix held in memory
SAMPLES_AT_ONCE = 256


def draw_samples(denoiser: Denoiser, count: int, seed: int, steps: int = 50, batch: int = 128) -> Tensor:
    """(count, C, H, W) samples in [-1, 1] by DDIM with `steps` steps, on the CPU; each has a seed of its own.

    Raises:
        ModelError: the denoiser has no schedule to sample with.
    """
    schedule, shape = denoiser.schedule, denoiser.image_shape
    if not isinstance(schedule, DDPMSchedule) or shape is None:
        raise ModelError("the model has no DDPM schedule: expected one, since samples are drawn along it")
    times = torch.linspace(0, len(schedule) - 1, steps + 1, dtype=torch.float64).round()
    drawn = []
    for start in range(0, count, batch):
        indices = range(start, min(start + batch, count))
        noise = torch.stack([torch.randn(shape, generator=seeded(seed, "sample", index)) for index in indices])
        drawn.append(ddim_sample(denoiser, noise.to(denoiser.device, denoiser.dtype), times).clamp(-1, 1).cpu())
    return torch.cat(drawn)


@dataclass(frozen=True)
class Reproduced:
    """What samples hit.

    Attributes:
        hits: (N,) of each training image.
        holdout_hits: (M,) of each held-out image.
        min_hits: from how many hits on an image counts as reproduced.
    """

    hits: np.ndarray
    holdout_hits: np.ndarray
    min_hits: int

    @property
    def images(self) -> np.ndarray:
        """(N,) whether each training image is reproduced."""
        return self.hits >= self.min_hits

    @property
    def rule(self) -> str:
        """The rule in words."""
        return (
            f"a sample hits an image when it is nearer to it than {RATIO:g} times the mean distance to its "
            f"{NEIGHBOURS} nearest; {self.min_hits} hits make an image reproduced, since so many held-out images have: "
            f"{int((self.holdout_hits >= self.min_hits).sum())}"
        )


def find_reproduced(samples: Tensor, images: Tensor, holdout: Tensor) -> Reproduced:
    """Apply the rule to samples (S, C, H, W) with the distinct training (N, ...) and held-out (M, ...) images."""
    hits = _count_hits(samples, torch.cat([images, holdout]))
    train, held = hits[: len(images)], hits[len(images) :]
    min_hits = max(MIN_HITS, ceil(MIN_SHARE * len(samples)))
    while (held >= min_hits).sum() * len(train) > FALSE_SHARE * (train >= min_hits).sum() * max(len(held), 1):
        min_hits += 1
    return Reproduced(train, held, min_hits)


def _count_hits(samples: Tensor, images: Tensor) -> np.ndarray:
    """(N,) how many of the samples hit each of the distinct images (N, C, H, W)."""
    targets = images.flatten(1).double()
    hits = torch.zeros(len(images), dtype=torch.long)
    for chunk in samples.flatten(1).double().split(SAMPLES_AT_ONCE):
        nearest, index = torch.cdist(chunk, targets).topk(min(NEIGHBOURS, len(images)), dim=1, largest=False)
        hit = nearest[:, 0] < RATIO * nearest.mean(1)
        hits += torch.bincount(index[hit, 0], minlength=len(images))
    return hits.numpy()
