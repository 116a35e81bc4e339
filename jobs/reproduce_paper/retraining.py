"""Curation and retraining: copies of suspects are dropped, the model is trained again, and samples tell what is left.

Suspects are the images highest in calibrated growth, more of them than are flagged at a false-discovery rate: an image
without copies loses nothing by being among them, and a missed one keeps being reproduced. Three models are compared by
the same rule (`volgrowth.analysis.proof`): the one that was audited, one trained without the copies of suspects (one of
each stays), and one trained without as many rows taken at random, since a smaller set alone changes what is memorized.
Hits are counted on the distinct images of the whole set, whichever of them a model was trained on. Hits on held-out
images are the null: what the rule finds where nothing can be memorized.
"""

import hashlib
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import numpy as np

from jobs.charts import null_bars
from jobs.experiments import Outcome, say
from jobs.reproduce_paper.planted import excess_score, planted_case
from jobs.reproduce_paper.workshop import Workshop
from volgrowth.audit.sampling.drawing import draw_samples
from volgrowth.audit.scoring.measures import denoising_loss
from volgrowth.config import StandardMeasure
from volgrowth.demo.cases import LabelledSet, to_tensor
from volgrowth.demo.training import Recipe, train_model
from volgrowth.demo.truth import find_reproduced
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser

# share of the distinct images that are suspects
SUSPECTS = 0.05


@dataclass(frozen=True)
class SampleHits:
    """Hits of a model's samples, and how well the model denoises.

    Attributes:
        name: of the set that the model was trained on.
        rows: of that set.
        hits: samples that hit an image of the whole set.
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
        """Share of samples that hit an image of the set."""
        return self.hits / self.samples

    @property
    def null(self) -> float:
        """Share of samples that would hit one by chance."""
        return self.null_hits / self.samples

    @property
    def excess(self) -> float:
        """Number of standard errors by which the share exceeds the null, both taken as Poisson counts."""
        return (self.hits - self.null_hits) / sqrt(max(self.hits + self.null_hits, 1.0))


def suspected(score: np.ndarray, share: float = SUSPECTS) -> np.ndarray:
    """Return (families,) bool, true for this share of the families with the highest scores."""
    chosen = np.zeros(len(score), bool)
    chosen[np.argsort(-score, kind="stable")[: ceil(share * len(score))]] = True
    return chosen


def copies_of(case: LabelledSet, suspects: np.ndarray) -> np.ndarray:
    """Return the rows to drop so that one image of each suspected family, (families,) bool, stays."""
    rows = np.flatnonzero(suspects[case.family])
    return np.setdiff1d(rows, case.first)


def retrain_without(case: LabelledSet, rows_to_drop: np.ndarray, folder: Path, seed: int, recipe: Recipe) -> Path:
    """Train the same network from the same seed on the other rows, unless `folder` holds it already.

    Raises:
        ValueError: no row is left, or one to drop is not in the set.
    """
    kept = np.setdiff1d(np.arange(len(case.train)), rows_to_drop)
    if not len(kept) or not np.isin(rows_to_drop, np.arange(len(case.train))).all():
        raise ValueError(f"{len(rows_to_drop)} rows to drop of {len(case.train)}: expected rows of the set, not all")
    if not (folder / "model_index.json").exists():
        train_model(case.train[kept], folder, seed, recipe)
    return folder


def sample_hits(name: str, model: Path, case: LabelledSet, rows: int, samples: int) -> SampleHits:
    """Draw samples from a model trained on `rows` rows and count those that hit the set's images or held-out ones."""
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
    """Return the mean denoising loss of images (n, C, H, W) uint8 at preset standard's level, noises shared."""
    level = StandardMeasure().loss_level
    parts = [denoising_loss(denoiser, part, level, noises, seed=0) for part in to_tensor(images).split(256)]
    return float(np.concatenate([part.numpy() for part in parts]).mean())


def compare_curation(
    case: LabelledSet, suspects: np.ndarray, model: Path, folder: Path, seed: int, recipe: Recipe, samples: int
) -> list[SampleHits]:
    """Sample the audited model, one without the copies of suspects, and one without as many random rows.

    Args:
        suspects: (families,) bool.
        model: the audited model, trained on all of `case` from `seed` by `recipe`.
        folder: for the two models trained here.
        samples: drawn from each model.
    """
    copies = copies_of(case, suspects)
    drops = {
        "copies of suspects dropped": copies,
        "as many rows dropped at random": np.random.default_rng(seed).choice(
            len(case.train), len(copies), replace=False
        ),
    }
    results = [sample_hits("the whole set", model, case, len(case.train), samples)]
    for name, rows in drops.items():
        say(f"training again with {name}: {len(rows)} of {len(case.train)} rows")
        # named after the rows that it lacks, so that other suspects do not find this model
        digest = hashlib.sha256(np.sort(rows).tobytes()).hexdigest()[:8]
        retrained = retrain_without(case, rows, folder / f"{name.replace(' ', '-')}-{digest}", seed, recipe)
        results.append(sample_hits(name, retrained, case, len(case.train) - len(rows), samples))
    return results


def curation(shop: Workshop) -> Outcome:
    """Sample hits after de-duplicating the images highest in calibrated growth, and after dropping rows at random."""
    found, suspects = planted_case(shop).subject.trained, suspected(excess_score(shop, "standard"))
    folder = shop.models / f"curation-{found.model.parent.name}"
    results = compare_curation(
        found.case, suspects, found.model, folder, shop.seed, shop.setup.recipe, shop.sizes.curation_samples
    )
    whole, dropped, random = results
    return Outcome(
        sentences=[
            f"Samples that hit: {whole.share:.1%} before; {dropped.share:.1%} without copies of suspects, where chance "
            f"gives {dropped.null:.1%}; {random.share:.1%} without as many random rows, where it gives "
            f"{random.null:.1%}.",
            f"Reproduced images: {whole.reproduced} before, {dropped.reproduced} after, {random.reproduced} after the "
            f"random drop. Held-out loss: {whole.holdout_loss:.4f}, {dropped.holdout_loss:.4f}, "
            f"{random.holdout_loss:.4f}.",
        ],
        tables={"table": [_hits_row(hits) for hits in results]},
        settings={
            **planted_case(shop).settings(),
            "suspects": f"{suspects.sum()} ({SUSPECTS:.0%})",
            "rows dropped": whole.rows - dropped.rows,
            "samples of each model": shop.sizes.curation_samples,
        },
        figures={
            "curation": null_bars(
                [hits.name for hits in results],
                np.array([hits.share for hits in results]),
                np.array([hits.null for hits in results]),
                "share of samples that hit",
            )
        },
    )


def _hits_row(hits: SampleHits) -> dict[str, object]:
    return {
        "trained on": hits.name,
        "rows": hits.rows,
        "samples": hits.samples,
        "hits": hits.share,
        "held-out null": hits.null,
        "standard errors above": hits.excess,
        "reproduced": hits.reproduced,
        "loss": hits.loss,
        "held-out loss": hits.holdout_loss,
    }
