"""The setting of the paper's experiments: their sizes, their data, and where trained models are kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.benchmark.detection.suite import DIGITS, SUITE, Setup
from volgrowth.errors import UsageError


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experiments. `FULL` has the paper's, on networks so small that one core takes an hour.

    Attributes:
        images: trained images of the overfit experiment, and as many held-out ones.
        axes, steps: of the volume in the overfit experiment.
        channels: of the blocks of its network, which decide what an evaluation costs.
        overfit_steps: numbers of training steps; the last one makes the overfit model.
        overfit_samples: samples drawn from each of those models.
        ablation_axes, ablation_steps, ablation_radii: the paper's grids.
        whole_case: most network evaluations per image at which a setting is measured on every image of the case.
        budget: network evaluations that any other setting may cost in all; decides on how many images.
        fewest: images of a setting for which the budget is too small.
        trajectory_images: images in each group.
        ancestral_samples, ancestral_steps: of the stochastic sampler.
        curation_samples: samples drawn from each retrained model.
    """

    images: int = 27
    axes: int = 100
    steps: int = 1000
    channels: tuple[int, ...] = (8, 16)
    overfit_steps: tuple[int, ...] = (250, 500, 1000, 2000, 4000)
    overfit_samples: int = 500
    ablation_axes: tuple[int, ...] = (1, 10, 50, 100)
    ablation_steps: tuple[int, ...] = (1, 10, 100, 1000)
    ablation_radii: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    whole_case: int = 110
    budget: int = 300_000
    fewest: int = 10
    trajectory_images: int = 10
    ancestral_samples: int = 3000
    ancestral_steps: int = 100
    curation_samples: int = 3000


FULL = Sizes()
QUICK = Sizes(
    images=6,
    overfit_steps=(250, 1000),
    overfit_samples=200,
    ablation_steps=(1, 10, 100),
    budget=30_000,
    fewest=6,
    trajectory_images=5,
    ancestral_samples=1000,
    ancestral_steps=50,
    curation_samples=1000,
)


@dataclass(frozen=True)
class Workshop:
    """The setting that every experiment of the paper takes.

    Attributes:
        setup: how the planted case is made.
        data: .npz file with the images `x`; None for scikit-learn's digits.
        models: folder where trained models and scores are kept.
    """

    sizes: Sizes
    setup: Setup
    data: Path | None
    models: Path
    seed: int = 1

    @property
    def folder(self) -> Path:
        """The folder of the data file, as `Setup` takes it."""
        return self.data.parent if self.data else Path()


def planted_setup(data: Path | None) -> Setup:
    """Return the bench's setup for this data file, or one like that of the digits.

    Raises:
        UsageError: the file does not exist, or does not hold enough images.
    """
    if data is None:
        return DIGITS
    known = [setup for setup in SUITE if setup.file == data.name and setup.variation == "exact"]
    try:
        with np.load(data) as archive:
            images = archive["x"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"data {data} cannot be read ({error}): expected an .npz with an array x of images") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) < 500:
        raise UsageError(
            f"data {data} holds {images.dtype} of shape {images.shape}: expected at least 500 uint8 images, "
            f"(n, H, W) or (n, H, W, 3)"
        )
    if known:
        return known[0]
    return Setup(f"{data.stem}-exact", data.name, min(1500, len(images) // 2), DIGITS.planting, DIGITS.recipe)
