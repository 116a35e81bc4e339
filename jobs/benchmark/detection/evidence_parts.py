"""What each further evaluation buys: what preset standard measures, and a further loss, alone and added up.

The further loss, at a higher level and under a noise of its own, was part of the evidence once. On models that were not
looked at when it was chosen it does not pay, so that no preset measures it.

Positives are the families that samples reproduce, negatives those that were trained on once and are not reproduced;
planted families that samples miss are neither. Everything is tried over several draws of the noise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.benchmark.detection.audited_presets import DRAWS, analysis_code, fingerprint
from jobs.benchmark.detection.compared_scores import Preset, SharedScore
from jobs.benchmark.detection.subjects import Columns, NotMeasuredError, Subject, keep_derived, measure_shared
from jobs.benchmark.detection.suite import Setup, is_trained, train_or_load
from jobs.experiments import say
from volgrowth.analysis.calibration.evidence import judge_images
from volgrowth.analysis.calibration.expected_scores import spread_of
from volgrowth.analysis.parts.judge import part_score
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.audit.workers.seeding import seeded
from volgrowth.config import StandardMeasure
from volgrowth.numerics import Denoiser

FURTHER, FURTHER_LEVEL = "loss_high", 0.45
PARTS = ("growth", "loss", "noise_norm", FURTHER)
SUMS = (
    (1, ("noise_norm",), "the length of the expected noise at the image"),
    (2, ("loss",), "the loss of a pair of noises"),
    (2, ("growth",), "growth of one axis"),
    (2, ("noise_norm", FURTHER), "noise norm and the loss of one noise, at a higher level"),
    (3, ("noise_norm", "loss"), "noise norm and the pair: the evidence of `screen` and `standard`"),
    (4, ("noise_norm", "loss", "growth"), "these and growth of one axis"),
    (4, ("noise_norm", "loss", FURTHER), "these and the loss of one noise, at a higher level"),
    (5, ("noise_norm", "loss", FURTHER, "growth"), "all four"),
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
    seed: int
    auroc: float
    tpr: float
    lower_quartile: float


def compare_parts(
    setups: Sequence[Setup], seeds: Sequence[int], data: Path, models: Path, *, cached_only: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
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
    names = list[str]()
    for setup in setups:
        for seed in seeds:
            if cached_only and not is_trained(setup, seed, data, models):
                continue
            subject = Subject.of(train_or_load(setup, seed, data, models, say), cached_only=cached_only)
            draws = list(_draws(subject))
            names += [f"{setup.name} {seed}"] if draws else []
            for excess in draws:
                for name, evidence in _sums(excess):
                    found[name].append(_judged(subject, evidence))
    return [_row(name, prices[name], judged) for name, judged in found.items()], names


def _draws(subject: Subject) -> Iterator[Columns]:
    """Yield the parts of each draw that could be measured: NAME of the families, and NAME_held, in units of spread."""
    for draw in range(DRAWS):
        try:
            columns = measure_shared(subject, Preset(StandardMeasure(), "growth"), draw)
            columns |= measure_shared(subject, FurtherLoss(), draw)
        except NotMeasuredError:
            continue
        yield part_excess(subject, columns)


def part_excess(subject: Subject, columns: Columns) -> Columns:
    """Return each part less what is expected of it, of the families, and as NAME_held of the held-out images."""

    def derive() -> Columns:
        split = {name: subject.images(part_score(name, columns[name])) for name in PARTS}
        found = judge_images({name: a for name, (a, _) in split.items()}, {name: h for name, (_, h) in split.items()})
        assert found is not None  # every case holds out hundreds of images
        learnt = found.calibration.scores
        excess = {name: found.excess[name] / part.unit for name, part in learnt.items()}
        held = {f"{name}_held": part.held / part.unit for name, part in learnt.items()}
        return excess | held

    return keep_derived(subject, f"parts {PARTS} of {fingerprint(columns)} by {analysis_code()}", derive)


def _sums(excess: Columns) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the evidence of the families by each sum of parts, in units of its held-out spread."""
    for _, parts, name in SUMS:
        held = np.sum([excess[f"{part}_held"] for part in parts], 0)
        yield name, np.sum([excess[part] for part in parts], 0) / spread_of(held)
    held = np.stack([excess[f"{part}_held"] for part in PARTS])
    weights = np.linalg.solve(np.cov(held), held.std(1))
    yield WHITENED, weights @ np.stack([excess[part] for part in PARTS]) / spread_of(weights @ held)


def _judged(subject: Subject, evidence: np.ndarray) -> SumFound:
    positive = subject.positive
    clear = positive | ~subject.planted
    return SumFound(
        subject.trained.setup.name,
        subject.trained.seed,
        auroc(evidence[clear], positive[clear]),
        tpr_at_fpr(evidence[clear], positive[clear]),
        float(np.quantile(evidence[positive], 0.25)),
    )


def _row(name: str, price: int, judged: Sequence[SumFound]) -> dict[str, Any]:
    """Return the row of a sum of parts: AUROC in each case, the mean over seeds and draws and the lowest."""
    cases = {
        case: [found.auroc for found in judged if found.case == case]
        for case in dict.fromkeys(each.case for each in judged)
    }
    lowest = min(judged, key=lambda found: found.tpr, default=None)
    return {
        "evidence": name,
        "evaluations": price,
        **{case: f"{np.mean(values):.4f} ({min(values):.4f})" for case, values in cases.items()},
        "lowest TPR at 1% FPR": None if lowest is None else f"{lowest.tpr:.2f}",
        "least lower quartile": f"{min(found.lower_quartile for found in judged):.1f}" if judged else None,
    }
