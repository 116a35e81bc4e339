"""Stochastic sampling on the planted case: does ancestral sampling reproduce the images that are flagged?"""

import numpy as np
import torch

from jobs.experiments import Outcome, say
from jobs.reproduce_paper.planted import audit_flags, excess_score, planted_case
from jobs.reproduce_paper.workshop import Workshop
from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.analysis.verification.proof import Reproduced
from volgrowth.audit.sampling.drawing import STEPS, to_pixels
from volgrowth.audit.workers.seeding import seeded
from volgrowth.demo.truth import find_reproduced
from volgrowth.errors import ModelError
from volgrowth.numerics import DDPMSchedule, Denoiser
from volgrowth.numerics.flow import ddim_sample

AT_ONCE = 128


def draw_ancestral(denoiser: Denoiser, count: int, steps: int, seed: int) -> np.ndarray:
    """Draw samples (count, C, H, W) uint8 by ancestral (DDPM) sampling over `steps` of the model's steps.

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


def stochastic(shop: Workshop) -> Outcome:
    """The images that ancestral sampling reproduces, beside those that the probability flow does."""
    case, sizes, flagged = planted_case(shop), shop.sizes, audit_flags(shop)
    say(f"drawing {sizes.ancestral_samples} samples in {sizes.ancestral_steps} ancestral steps")
    drawn = draw_ancestral(case.denoiser, sizes.ancestral_samples, sizes.ancestral_steps, seed=0)
    flow = case.truth
    ancestral = find_reproduced(drawn, case.case.train, case.case.holdout, case.case.family)
    rows = [
        _truth_row(shop, f"probability flow, DDIM {STEPS} steps", flow, len(case.trained.samples), flagged),
        _truth_row(shop, f"ancestral, {sizes.ancestral_steps} steps", ancestral, len(drawn), flagged),
    ]
    return Outcome(
        sentences=[
            f"{(flow.images & ancestral.images).sum()} images are reproduced by both samplers, "
            f"{(flow.images | ancestral.images).sum()} by either. Of {flagged.sum()} flagged ones "
            f"{rows[0]['flagged and reproduced']} are reproduced by the flow and {rows[1]['flagged and reproduced']} "
            "by ancestral sampling.",
            f"Samples that hit a training image: {rows[0]['hits']:.1%} by the flow, {rows[1]['hits']:.1%} ancestral.",
        ],
        tables={"table": rows},
        settings={**case.settings(), "false-discovery rate of the flags": f"{FDR:.0%}"},
    )


def _truth_row(shop: Workshop, sampler: str, truth: Reproduced, samples: int, flagged: np.ndarray) -> dict[str, object]:
    """Return the hits of a sampler, and how well the calibrated score and the flags find what it reproduces."""
    score = excess_score(shop, "traces")
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
