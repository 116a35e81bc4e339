"""The paper's measurement on sets of images, and their calibration on complexity."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from volgrowth.analysis.calibration.complexity import regressors
from volgrowth.analysis.calibration.expected_scores import Calibration, ScoredImages, calibrate
from volgrowth.audit.scoring.measures import true_float32
from volgrowth.audit.workers.seeding import seeded
from volgrowth.demo.cases import LabelledSet, to_tensor
from volgrowth.numerics import Denoiser, volume_growth
from volgrowth.numerics.tangents import Derivative
from volgrowth.sources import features

# points a network sees at once: more of them do not fit a CPU's cache, and cost more each
AT_ONCE = 400


@dataclass(frozen=True)
class Growth:
    """Log volume growth of n images as published, x-coordinates, nats, cumulative over the steps.

    Attributes:
        volume: (n, steps) sum of log diag R.
        edges: (n, steps) what the authors' code sums.
        ceiling: (steps,) the most that an exact flow can show with the same steps.
        above_ceiling, sign_flip: (n,) marks of `volgrowth.numerics.growth`.
        nfe: network evaluations an image.
    """

    volume: np.ndarray
    edges: np.ndarray
    ceiling: np.ndarray
    above_ceiling: np.ndarray
    sign_flip: np.ndarray
    nfe: int


def published_times(steps: int) -> torch.Tensor:
    """The first `steps` + 1 of the times 1e-3, 2e-3, ..., 1.001, as the authors' code stops early."""
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
    """Measure images (n, C, H, W) uint8. An image's axes depend on seed and position only: settings share them."""
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


@dataclass(frozen=True)
class Judged:
    """Images of a case ready for calibration: complexity (n, 6) and content hashes, audited and held out."""

    audited: ScoredImages
    holdout: ScoredImages

    @staticmethod
    def of(case: LabelledSet) -> "Judged":
        """The first row of each family, and the held-out images; scores are 0."""
        return Judged(_described(case.train[case.first]), _described(case.holdout))

    def calibrate(self, score: np.ndarray, holdout_score: np.ndarray) -> Calibration:
        """Calibrate scores, high for suspicious, of the families and of the held-out images."""
        calibration = calibrate(
            ScoredImages(self.audited.features, score, self.audited.content),
            ScoredImages(self.holdout.features, holdout_score, self.holdout.content),
        )
        if calibration is None:
            raise ValueError(f"{len(holdout_score)} held-out images: expected more, to calibrate with")
        return calibration


def _described(images: np.ndarray) -> ScoredImages:
    described = [features(image) for image in images]
    content = np.array([row.pop("content_hash") for row in described], np.uint64)
    columns = ("png_bytes", "variance", "total_variation", "mean", "edge_density")
    table = pa.table({name: [row[name] for row in described] for name in columns})
    return ScoredImages(regressors(table), np.zeros(len(images)), content)
