"""Curation and retraining: copies of suspects are dropped, the model is trained again, and samples tell what is left.

Suspects are the images highest in calibrated growth, more of them than are flagged at a false-discovery rate: an image
without copies loses nothing by being among them, and a missed one keeps being reproduced. Three models are compared by
the same rule (`volgrowth.analysis.verification.proof`): the one that was audited, one trained without the copies of
suspects (one of each stays), and one trained without as many rows taken at random, since a smaller set alone changes
what is memorized.
Hits are counted on the distinct images of the whole set, whichever of them a model was trained on. Hits on held-out
images are the null: what the rule finds where nothing can be memorized.
"""

import hashlib
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.detection.compared_scores import LOSS_LEVEL, loss_at_level
from jobs.charts import null_bars
from jobs.experiments import Outcome, say
from jobs.reproduce_paper.planted import excess_score, planted_case
from jobs.reproduce_paper.workshop import Workshop
from volgrowth.audit.sampling.drawing import draw_samples
from volgrowth.demo.cases import LabelledSet, to_tensor
from volgrowth.demo.training import Recipe, train_model
from volgrowth.demo.truth import find_reproduced
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser

# share of the distinct images that are suspects
SUSPECTS = 0.05


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


def sample_hits(name: str, model: Path, case: LabelledSet, rows: int, samples: int) -> dict[str, Any]:
    """Draw samples from a model trained on `rows` rows, and compare them with the images of the whole set.

    Returns:
        A row of the table: the share of samples that hit an image of the set; the share that would by chance, which is
        that of the held-out images, scaled to as many as the set has; the standard errors between them, both taken as
        Poisson counts; the number of reproduced images; and the mean denoising loss.
    """
    denoiser = load_model(str(model))
    drawn = draw_samples(denoiser, range(samples), seed=0)
    found = find_reproduced(drawn, case.train, case.holdout, case.family)
    hits = int(found.hits.sum())
    chance = float(found.holdout_hits.sum() * len(found.hits) / max(len(found.holdout_hits), 1))
    return {
        "trained on": name,
        "rows": rows,
        "samples": samples,
        "hits": hits / samples,
        "held-out null": chance / samples,
        "standard errors above": (hits - chance) / sqrt(max(hits + chance, 1.0)),
        "reproduced": int(found.images.sum()),
        "loss": mean_loss(denoiser, case.train[case.first]),
        "held-out loss": mean_loss(denoiser, case.holdout),
    }


def mean_loss(denoiser: Denoiser, images: np.ndarray, noises: int = 4) -> float:
    """Return the mean denoising loss of images (n, C, H, W) uint8, or of their latents, at a middle level."""
    some = to_tensor(images).split(256)
    parts = [loss_at_level(denoiser, denoiser.embed(part), LOSS_LEVEL, noises, seed=0) for part in some]
    return float(np.concatenate([part.numpy() for part in parts]).mean())


def compare_curation(
    case: LabelledSet, suspects: np.ndarray, model: Path, folder: Path, seed: int, recipe: Recipe, samples: int
) -> list[dict[str, Any]]:
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
    found, suspects = planted_case(shop).trained, suspected(excess_score(shop, "traces"))
    folder = shop.models / f"curation-{found.model.parent.name}"
    results = compare_curation(
        found.case, suspects, found.model, folder, shop.seed, shop.setup.recipe, shop.sizes.curation_samples
    )
    hits, null, reproduced, loss = (
        [row[column] for row in results] for column in ("hits", "held-out null", "reproduced", "held-out loss")
    )
    names = [row["trained on"] for row in results]
    return Outcome(
        sentences=[
            f"Samples that hit: {hits[0]:.1%} before; {hits[1]:.1%} without copies of suspects, where chance gives "
            f"{null[1]:.1%}; {hits[2]:.1%} without as many random rows, where it gives {null[2]:.1%}.",
            f"Reproduced images: {reproduced[0]} before, {reproduced[1]} after, {reproduced[2]} after the random drop. "
            f"Held-out loss: {loss[0]:.4f}, {loss[1]:.4f}, {loss[2]:.4f}.",
        ],
        tables={"table": results},
        settings={
            **planted_case(shop).settings(),
            "suspects": f"{suspects.sum()} ({SUSPECTS:.0%})",
            "rows dropped": results[0]["rows"] - results[1]["rows"],
            "samples of each model": shop.sizes.curation_samples,
        },
        figures={"curation": null_bars(names, np.array(hits), np.array(null), "share of samples that hit")},
    )
