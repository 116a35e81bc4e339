"""The paper's measurement on sets of images."""

from dataclasses import dataclass

import numpy as np
import torch

from volgrowth.audit.scoring.derivatives import true_float32
from volgrowth.audit.workers.seeding import seeded
from volgrowth.demo.cases import to_tensor
from volgrowth.numerics import Denoiser, volume_growth
from volgrowth.numerics.tangents import Derivative

# points that a network sees at once: more of them do not fit a CPU's cache, and each costs more
AT_ONCE = 400


@dataclass(frozen=True)
class Growth:
    """Log volume growth of n images as published: x-coordinates, nats, cumulative over the steps.

    Attributes:
        volume: (n, steps) sum of log diag R.
        edges: (n, steps) sum of log edges before orthogonalisation, as the authors' code has it.
        ceiling: (steps,) the most that an exact flow can show with the same steps.
        above_ceiling, sign_flip: (n,) bool, marks of `volgrowth.numerics.growth`.
        nfe: network evaluations per image.
    """

    volume: np.ndarray
    edges: np.ndarray
    ceiling: np.ndarray
    above_ceiling: np.ndarray
    sign_flip: np.ndarray
    nfe: int


def published_times(steps: int) -> torch.Tensor:
    """Return the first `steps` + 1 of the times 1e-3, 2e-3, ..., 1.001: the authors' code stops early in this way."""
    return torch.linspace(1e-3, 1.001, 1001, dtype=torch.float64)[: steps + 1]


def published_growth(
    denoiser: Denoiser,
    images: np.ndarray,
    axes: int,
    steps: int,
    radius: float = 0.05,
    seed: int = 0,
    derivative: Derivative = "difference",
) -> Growth:
    """Measure images (n, C, H, W) uint8.

    An image's axes depend on the seed and its position only, so that settings share them.
    """
    parts = []
    each = max(1, AT_ONCE // (1 + axes))
    for first in range(0, len(images), each):
        some = to_tensor(images[first : first + each]).to(denoiser.device, denoiser.dtype)
        rows = range(first, first + len(some))
        shape = (axes, *images.shape[1:])
        tangents = torch.stack([torch.randn(shape, generator=seeded(seed, "axes", row)) for row in rows])
        with true_float32():
            parts.append(
                volume_growth(
                    denoiser,
                    some,
                    times=published_times(steps),
                    derivative=derivative,
                    radius=radius,
                    tangents=tangents.to(some),
                )
            )
    return Growth(
        volume=torch.cat([part.log_volume for part in parts]).double().cpu().numpy(),
        edges=torch.cat([part.log_edges for part in parts]).double().cpu().numpy(),
        ceiling=parts[0].ceiling.numpy(),
        above_ceiling=torch.cat([part.above_ceiling for part in parts]).cpu().numpy(),
        sign_flip=torch.cat([part.sign_flip for part in parts]).cpu().numpy(),
        nfe=parts[0].nfe,
    )
