"""Does curation help? Copies of suspects are dropped, the model is trained again, and samples say what is left.

Suspects are the images highest in calibrated growth, more of them than are flagged at a false-discovery rate: an image
without copies loses nothing by being among them, and a missed one keeps being reproduced. Three models are compared by
the same rule (`analysis.proof`): the one that was audited, one trained without the copies of suspects (one of
each stays), and one trained without as many rows taken at random, since a smaller set alone changes what is memorized.
Hits are counted on the distinct images of the whole set, whichever of them a model was trained on. Hits on held-out
images are the null: what the rule finds where nothing can be memorized.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import numpy as np

from volgrowth.audit.sampling.drawing import draw_samples
from volgrowth.audit.scoring.measures import denoising_loss
from volgrowth.config import StandardMeasure
from volgrowth.demo.cases import LabelledSet, to_tensor
from volgrowth.demo.training import Recipe, train_model
from volgrowth.demo.truth import find_reproduced
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser

# of the distinct images, those highest in calibrated growth
SUSPECTS = 0.05


@dataclass(frozen=True)
class SampleHits:
    """What `samples` samples of a model hit, and how well it denoises.

    Attributes:
        name: which model.
        rows: it was trained on.
        hits: samples that hit an image of the set.
        null_hits: samples that hit a held-out image, scaled to as many images as the set has.
        reproduced: images of the set with more hits than held-out images have.
        loss, holdout_loss: mean denoising loss on the set's distinct images, and on held-out ones.
    """

    name: str
    rows: int
    samples: int
    hits: int
    null_hits: float
    reproduced: int
    loss: float
    holdout_loss: float

    @property
    def share(self) -> float:
        """Of samples that hit an image of the set."""
        return self.hits / self.samples

    @property
    def null(self) -> float:
        """The share that would by chance."""
        return self.null_hits / self.samples

    @property
    def excess(self) -> float:
        """Standard errors by which the share exceeds the null, both taken as Poisson counts."""
        return (self.hits - self.null_hits) / sqrt(max(self.hits + self.null_hits, 1.0))


def highest(score: np.ndarray, share: float = SUSPECTS) -> np.ndarray:
    """(families,) bool: this share of the families, those with the highest scores."""
    chosen = np.zeros(len(score), bool)
    chosen[np.argsort(-score, kind="stable")[: ceil(share * len(score))]] = True
    return chosen


def copies_of(case: LabelledSet, suspects: np.ndarray) -> np.ndarray:
    """Rows to drop so that of each suspected family, (families,) bool, one image stays."""
    rows = np.flatnonzero(suspects[case.family])
    return np.setdiff1d(rows, case.first)


def random_rows(case: LabelledSet, count: int, seed: int) -> np.ndarray:
    """As many rows of the set, taken at random."""
    return np.random.default_rng(seed).choice(len(case.train), count, replace=False)


def retrain_without(
    case: LabelledSet,
    rows_to_drop: np.ndarray,
    folder: Path,
    seed: int,
    recipe: Recipe = Recipe(),  # noqa: B008  frozen
) -> Path:
    """Train the same network from the same seed on what is left, unless `folder` holds it already.

    Raises:
        ValueError: nothing is left, or a row that is not there.
    """
    kept = np.setdiff1d(np.arange(len(case.train)), rows_to_drop)
    if not len(kept) or not np.isin(rows_to_drop, np.arange(len(case.train))).all():
        raise ValueError(f"{len(rows_to_drop)} rows to drop of {len(case.train)}: expected rows of the set, not all")
    if not (folder / "model_index.json").exists():
        train_model(case.train[kept], folder, seed, recipe)
    return folder


def sample_hits(name: str, model: Path, case: LabelledSet, rows: int, samples: int) -> SampleHits:
    """Draw samples from a model and compare them with the distinct images of the set, and with held-out ones."""
    denoiser = load_model(str(model))
    drawn = draw_samples(denoiser, range(samples), seed=0)
    found = find_reproduced(drawn, case.train, case.holdout, case.family)
    return SampleHits(
        name=name,
        rows=rows,
        samples=samples,
        hits=int(found.hits.sum()),
        null_hits=float(found.holdout_hits.sum() * len(found.hits) / max(len(found.holdout_hits), 1)),
        reproduced=int(found.images.sum()),
        loss=mean_loss(denoiser, case.train[case.first]),
        holdout_loss=mean_loss(denoiser, case.holdout),
    )


def mean_loss(denoiser: Denoiser, images: np.ndarray, noises: int = 4) -> float:
    """Mean denoising loss of images (n, C, H, W) uint8 at preset standard's level, with the same noises for all."""
    level = StandardMeasure().loss_level
    parts = [denoising_loss(denoiser, part, level, noises, seed=0) for part in to_tensor(images).split(256)]
    return float(np.concatenate([part.numpy() for part in parts]).mean())


def compare_curation(
    case: LabelledSet,
    suspects: np.ndarray,
    model: Path,
    folder: Path,
    seed: int,
    recipe: Recipe = Recipe(),  # noqa: B008  frozen
    samples: int = 1000,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[SampleHits, SampleHits, SampleHits]:
    """The audited model, one without the copies of suspects, and one without as many random rows.

    Args:
        suspects: (families,) bool.
        model: what was audited, trained on all of `case` from `seed` by `recipe`.
        folder: for the two models trained here.
    """
    copies = copies_of(case, suspects)
    drops = {
        "copies of suspects dropped": copies,
        "as many rows dropped at random": random_rows(case, len(copies), seed),
    }
    results = [sample_hits("the whole set", model, case, len(case.train), samples)]
    for name, rows in drops.items():
        say(f"training again with {name}: {len(rows)} of {len(case.train)} rows")
        # named after what it lacks, so that other flags do not find this model
        digest = hashlib.sha256(np.sort(rows).tobytes()).hexdigest()[:8]
        retrained = retrain_without(case, rows, folder / f"{name.replace(' ', '-')}-{digest}", seed, recipe)
        results.append(sample_hits(name, retrained, case, len(case.train) - len(rows), samples))
    first, second, third = results
    return first, second, third
