"""What each further evaluation buys: what preset standard measures, and a further loss, alone and added up.

The further loss, at a higher level and under a noise of its own, was part of the evidence once. On models that were not
looked at when it was chosen it does not pay, so that no preset measures it.

Positives are the families that samples reproduce, negatives those that were trained on once and are not reproduced;
planted families that samples miss are neither. Everything is tried over several draws of the noise. The sums are judged
as an audit judges its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.benchmark.detection.audited_presets import DRAWS, analysis_code, fingerprint
from jobs.benchmark.detection.compared_scores import Preset, SharedScore
from jobs.benchmark.detection.part_sums import PartExcess
from jobs.benchmark.detection.subjects import Columns, NotMeasuredError, Subject, keep_derived, measure_shared
from jobs.benchmark.detection.suite import Setup, models_of
from jobs.experiments import Outcome
from jobs.pages import listed
from volgrowth.analysis.calibration.expected_scores import ScoredImages
from volgrowth.analysis.judging import is_flagged
from volgrowth.analysis.parts.judge import part_score
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import StandardMeasure
from volgrowth.numerics import Denoiser

FURTHER, FURTHER_LEVEL = "loss_high", 0.45
PARTS = ("growth", "loss", "noise_norm", FURTHER)
HALF = {"noise_norm": 0.5, "loss": 1.0}
SUMS: Sequence[tuple[int, Mapping[str, float], str]] = (
    (1, {"noise_norm": 1.0}, "noise norm: the length of the expected noise at the image"),
    (2, {"loss": 1.0}, "pair: the loss of a pair of noises"),
    (2, {"growth": 1.0}, "growth of one axis"),
    (3, {"noise_norm": 1.0, "loss": 1.0}, "noise norm and pair"),
    (3, HALF, "half of the noise norm and pair: the evidence of `screen` and `standard`"),
    (3, {"noise_norm": 0.25, "loss": 1.0}, "a quarter of the noise norm and pair"),
    (4, {**HALF, "growth": 1.0}, "the evidence and growth of one axis"),
    (4, {**HALF, FURTHER: 1.0}, "the evidence and the loss of one noise, at a higher level"),
    (5, {**HALF, FURTHER: 1.0, "growth": 1.0}, "the evidence and both"),
)
WHITENED = "all four, weighted by the inverse of their held-out covariance"


@dataclass(frozen=True)
class FurtherLoss(SharedScore):
    """The denoising loss at a higher level, under a noise that is common to all images and not that of the presets."""

    column: str = FURTHER
    sign: int = -1

    @property
    def measurement(self) -> str:
        """The level."""
        return f"loss of one noise at {FURTHER_LEVEL}"

    @torch.no_grad()
    def columns(self, denoiser: Denoiser, images: Tensor, seed: int) -> dict[str, np.ndarray]:
        """Return the loss."""
        noise = torch.randn(images.shape[1:], generator=seeded(seed, "noise", 1)).to(images)
        expected = denoiser.noise(images + FURTHER_LEVEL * noise, torch.tensor(FURTHER_LEVEL, dtype=torch.float64))
        return {self.column: (expected - noise).square().flatten(1).mean(1).double().cpu().numpy()}


@dataclass(frozen=True)
class SumFound:
    """What one sum of parts finds on one model under one draw of the noise."""

    case: str
    auroc: float
    tpr: float
    power: float
    lower_quartile: float


def compare_parts(
    setups: Sequence[Setup], seeds: Sequence[int], data: Path, models: Path, *, cached_only: bool = False
) -> Outcome:
    """Compare sums of parts on every case.

    Args:
        setups: the cases.
        seeds: of each case.
        data: folder of the image sets.
        models: folder of trained models and measurements; what is not there is made.
        cached_only: leave out what is not there.

    Returns:
        One row of the page for each sum of parts, and the names of the models it stands for.
    """
    prices = {name: price for price, _, name in SUMS} | {WHITENED: 5}
    found: dict[str, list[SumFound]] = {name: [] for name in prices}
    names, left_out = list[str](), list[str]()
    for trained in models_of(setups, seeds, data, models, left_out, cached_only=cached_only):
        subject, name = Subject.of(trained, cached_only=cached_only), f"{trained.setup.name} with seed {trained.seed}"
        if not subject.positive.any():
            left_out.append(f"Left out, since samples reproduce no image of it: {name}.")
            continue
        try:
            draws = [_judged_sums(subject, draw) for draw in range(DRAWS)]
        except NotMeasuredError:
            left_out.append(f"Left out, since not measured: {name}.")
            continue
        names.append(f"{trained.setup.name} {trained.seed}")
        for columns in draws:
            for which in prices:
                found[which].append(_found(subject, columns[f"evidence, {which}"], columns[f"q_value, {which}"]))
    rows = [_row(name, prices[name], judged) for name, judged in found.items()]
    return Outcome(left_out, {"table": rows}, {"models, each by case and seed": listed(names)})


def _judged_sums(subject: Subject, draw: int) -> Columns:
    """Return `evidence, NAME` and `q_value, NAME` of the families by each sum of parts, under a draw of the noise.

    Raises:
        NotMeasuredError: something was not measured, and only cached measurements are asked for.
    """
    columns = measure_shared(subject, Preset(StandardMeasure(), "growth"), draw)
    columns |= measure_shared(subject, FurtherLoss(), draw)

    def derive() -> Columns:
        return judge_sums({name: subject.images(part_score(name, columns[name])) for name in PARTS})

    return keep_derived(subject, f"sums {SUMS} of {fingerprint(columns)} by {analysis_code()}", derive)


def judge_sums(parts: Mapping[str, tuple[ScoredImages, ScoredImages]]) -> Columns:
    """Judge images by held-out ones, by each sum of parts, given both with their scores by the name of the part."""
    excess, found = PartExcess.of(parts), Columns()
    in_units = np.stack([excess.held[part] / excess.tail[part] for part in PARTS])
    whitened = np.linalg.solve(np.cov(in_units), in_units.std(1))
    weights = {name: some for _, some, name in SUMS} | {WHITENED: dict(zip(PARTS, whitened, strict=True))}
    for name, by_part in weights.items():
        of_parts = {part: weight / excess.tail[part] for part, weight in by_part.items()}
        found[f"evidence, {name}"], found[f"q_value, {name}"] = excess.judged(of_parts)
    return found


def _found(subject: Subject, evidence: np.ndarray, q_value: np.ndarray) -> SumFound:
    positive = subject.positive
    clear = positive | ~subject.planted
    return SumFound(
        subject.trained.setup.name,
        auroc(evidence[clear], positive[clear]),
        tpr_at_fpr(evidence[clear], positive[clear]),
        float(is_flagged(q_value)[positive].mean()),
        float(np.quantile(evidence[positive], 0.25)),
    )


def _row(name: str, price: int, judged: Sequence[SumFound]) -> dict[str, Any]:
    """Return the row of a sum of parts: in each case AUROC, the mean over seeds and draws and the lowest, and power."""
    cases = {
        case: [found for found in judged if found.case == case] for case in dict.fromkeys(each.case for each in judged)
    }
    return {
        "evidence": name,
        "evaluations": price,
        **{case: _cell(some) for case, some in cases.items()},
        "lowest TPR at 1% FPR": f"{min(found.tpr for found in judged):.2f}" if judged else None,
        "least lower quartile": f"{min(found.lower_quartile for found in judged):.1f}" if judged else None,
    }


def _cell(judged: Sequence[SumFound]) -> str:
    aurocs = [found.auroc for found in judged]
    return f"{np.mean(aurocs):.4f} ({min(aurocs):.4f}) / {np.mean([found.power for found in judged]):.2f}"
