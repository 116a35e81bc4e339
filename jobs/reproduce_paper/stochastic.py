"""What the paper leaves open, on the planted case: stochastic sampling, and curation with retraining.

stochastic   are the flagged images those that ancestral sampling reproduces too?
curation     do samples stop hitting training images when copies of suspects are dropped, and not otherwise?
"""

from collections.abc import Sequence

import numpy as np
import torch

from jobs.charts import bars
from jobs.reproduce_paper.planted import excess, flags, planted
from jobs.reproduce_paper.retraining import SUSPECTS, SampleHits, compare_curation, highest
from jobs.sections import Chart, Row, Section, Workshop, table
from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.proof import Reproduced
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.audit.sampling.drawing import STEPS, to_pixels
from volgrowth.audit.workers.seeding import seeded
from volgrowth.demo.truth import find_reproduced
from volgrowth.errors import ModelError
from volgrowth.numerics import DDPMSchedule, Denoiser
from volgrowth.numerics.flow import ddim_sample

AT_ONCE = 128


def draw_ancestral(denoiser: Denoiser, count: int, steps: int, seed: int) -> np.ndarray:
    """Samples by ancestral (DDPM) sampling over `steps` of the model's steps: (count, C, H, W) uint8.

    Raises:
        ModelError: the denoiser has no schedule to sample with.
    """
    if not isinstance(denoiser.schedule, DDPMSchedule) or denoiser.image_shape is None:
        raise ModelError("the model has no DDPM schedule: expected one, since samples are drawn along it")
    times = torch.linspace(0, len(denoiser.schedule) - 1, steps + 1, dtype=torch.float64).round()
    drawn = []
    for first in range(0, count, AT_ONCE):
        generator = seeded(seed, "ancestral", first)
        noise = torch.randn(min(AT_ONCE, count - first), *denoiser.image_shape, generator=generator)
        x = noise.to(denoiser.device, denoiser.dtype)
        drawn.append(to_pixels(ddim_sample(denoiser, x, times, 1.0, generator)))
    return np.concatenate(drawn)


def stochastic(shop: Workshop) -> Section:
    """The truth by ancestral sampling beside the truth by the probability flow."""
    case, scale = planted(shop), shop.scale
    shop.say(f"drawing {scale.ancestral_samples} samples in {scale.ancestral_steps} ancestral steps")
    drawn = draw_ancestral(case.denoiser, scale.ancestral_samples, scale.ancestral_steps, seed=0)
    known = case.trained.case
    ancestral = find_reproduced(drawn, known.train, known.holdout, known.family)
    flagged = flags(shop)
    rows = [
        truth_row(shop, f"probability flow, DDIM {STEPS} steps", case.truth, len(case.trained.samples), flagged),
        truth_row(shop, f"ancestral, {scale.ancestral_steps} steps", ancestral, len(drawn), flagged),
    ]
    both = int((case.truth.images & ancestral.images).sum())
    either = int((case.truth.images | ancestral.images).sum())
    return Section(
        name="stochastic",
        title="Stochastic sampling",
        setting=f"{case.setting()} Ancestral sampling is DDIM with eta = 1 (arXiv 2010.02502). Flags are preset "
        f"standard's, calibrated, at a false-discovery rate of {FDR:.0%}.",
        tables=[table("samplers", "The same flags and scores against what each sampler reproduces.", rows)],
        findings=[
            f"{both} images are reproduced by both samplers, {either} by either. Of {int(flagged.sum())} flagged ones "
            f"{int((flagged & case.truth.images).sum())} are reproduced by the flow and "
            f"{int((flagged & ancestral.images).sum())} by ancestral sampling.",
            f"Samples that hit a training image: {rows[0]['hits']:.1%} by the flow, {rows[1]['hits']:.1%} ancestral.",
        ],
        differences=[
            "The paper measures along the deterministic flow and leaves open what that says of other samplers."
        ],
    )


def truth_row(shop: Workshop, sampler: str, truth: Reproduced, samples: int, flagged: np.ndarray) -> Row:
    """What a sampler hits, and how well the calibrated score and the flags find it."""
    score = excess(shop, "standard")
    return {
        "sampler": sampler,
        "samples": samples,
        "hits": float(truth.hits.sum() / samples),
        "held-out hits": float(truth.holdout_hits.sum() / samples),
        "reproduced": int(truth.images.sum()),
        "flagged": int(flagged.sum()),
        "flagged and reproduced": int((flagged & truth.images).sum()),
        "AUROC, calibrated": auroc(score, truth.images),
        "TPR at 1% FPR": tpr_at_fpr(score, truth.images),
    }


def curation(shop: Workshop) -> Section:
    """De-duplicate the images highest in calibrated growth, retrain; drop as many rows at random, retrain; count."""
    case, suspects = planted(shop), highest(excess(shop, "standard"))
    results = compare_curation(
        case.trained.case,
        suspects,
        case.trained.model,
        shop.models / f"curation-{case.trained.model.parent.name}",
        shop.seed,
        shop.setup.recipe,
        shop.scale.curation_samples,
        shop.say,
    )
    whole, dropped, random = results
    return Section(
        name="curation",
        title="Curation and retraining",
        setting=f"{case.setting()} Of the {int(suspects.sum())} images highest in calibrated growth (preset standard, "
        f"{SUSPECTS:.0%} of all) all copies but one are dropped, {whole.rows - dropped.rows} rows; the control drops "
        f"as many at random. Both are trained as the audited model was. {shop.scale.curation_samples} samples of each.",
        tables=[
            table(
                "curation",
                "Samples that hit an image of the whole set, against held-out ones.",
                [hit_row(hits) for hits in results],
            )
        ],
        charts=[curation_chart(results)],
        findings=[
            f"Samples that hit: {whole.share:.1%} before; {dropped.share:.1%} without copies of suspects, where chance "
            f"gives {dropped.null:.1%}; {random.share:.1%} without as many random rows, where it gives "
            f"{random.null:.1%}.",
            f"Reproduced images: {whole.reproduced} before, {dropped.reproduced} after, {random.reproduced} after the "
            f"random drop. Held-out loss: {whole.holdout_loss:.4f}, {dropped.holdout_loss:.4f}, "
            f"{random.holdout_loss:.4f}.",
        ],
        differences=["The paper does not retrain."],
    )


def curation_chart(results: Sequence[SampleHits]) -> Chart:
    """Hits of each model against its null."""
    names = [hits.name for hits in results]
    shares, nulls = np.array([hits.share for hits in results]), np.array([hits.null for hits in results])
    return Chart(
        "curation",
        "Bars: share of samples that hit an image of the set. Ticks: what would by chance.",
        "Share of samples that hit a training image before curation, after it, and after a random drop.",
        lambda palette: bars(palette, names, shares, nulls, "share of samples that hit"),
    )


def hit_row(hits: SampleHits) -> Row:
    """A model's hits."""
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
