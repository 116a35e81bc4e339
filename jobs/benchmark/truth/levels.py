"""Which noise levels carry the signal, and whether latents say of an image what its pixels say.

At each level the length of the expected noise at the image, and the loss under a noise and its opposite, are calibrated
as an audit calibrates them. Preset `screen` takes the former at one level and the latter at another.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.benchmark.detection.audited_presets import analysis_code, fingerprint
from jobs.benchmark.detection.compared_scores import Preset, SharedScore
from jobs.benchmark.detection.subjects import (
    SEED,
    Columns,
    NotMeasuredError,
    Subject,
    keep_derived,
    measure_shared,
)
from jobs.benchmark.detection.suite import Setup, models_of
from jobs.benchmark.truth.units import unit_row
from jobs.experiments import Outcome, say
from volgrowth.analysis.calibration.evidence import judge_images
from volgrowth.analysis.parts.judge import part_score
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.audit.scoring.measures import common_noise
from volgrowth.config import ScreenMeasure, StandardMeasure
from volgrowth.numerics import Denoiser
from volgrowth.numerics.forward_passes import noise_pair

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0)
SCREEN = ScreenMeasure()
PARTS = ("growth", "loss", "noise_norm")


@dataclass(frozen=True)
class AtLevels(SharedScore):
    """Noise norm and loss at all of `LEVELS`: columns `noise_norm LEVEL` and `loss LEVEL`."""

    column: str = f"loss {LEVELS[0]}"
    sign: int = -1

    @property
    def measurement(self) -> str:
        """The levels."""
        return f"noise norm and loss of a pair at {LEVELS}"

    @torch.no_grad()
    def columns(self, denoiser: Denoiser, images: Tensor, seed: int) -> Columns:
        """Return all columns."""
        found, noise = dict[str, np.ndarray](), common_noise(images, seed)
        for level in LEVELS:
            at_image = denoiser.noise(images, torch.tensor(level, dtype=torch.float64))
            found[f"noise_norm {level}"] = at_image.flatten(1).norm(dim=1).double().cpu().numpy()
            found[f"loss {level}"] = noise_pair(denoiser, images, level, noise).loss.double().cpu().numpy()
        return found


def compare_levels(
    setups: Sequence[Setup], seeds: Sequence[int], data: Path, models: Path, *, cached_only: bool = False
) -> Outcome:
    """Return the tables of the page: what each level and each unit find on each model, and latents beside pixels.

    Args:
        setups: the cases.
        seeds: of each case.
        data: folder of the image sets.
        models: folder of trained models and measurements; what is not there is made.
        cached_only: leave out what is not there.
    """
    subjects, left_out = list[Subject](), list[str]()
    rows, units = list[dict[str, Any]](), list[dict[str, Any]]()
    for trained in models_of(setups, seeds, data, models, left_out, cached_only=cached_only):
        name = f"{trained.setup.name} with seed {trained.seed}"
        subject = Subject.of(trained, cached_only=cached_only)
        subjects.append(subject)
        if not subject.positive.any():
            left_out.append(f"Left out, since samples reproduce no image of it: {name}.")
            continue
        say(f"judging levels on {name}")
        try:
            rows += _level_rows(subject)
            units.append(unit_row(subject))
        except NotMeasuredError:
            left_out.append(f"Left out, since not measured: {name}.")
    said = [*_best(rows), *left_out]
    return Outcome(said, {"table": rows, "units": units, "spaces": list(_space_rows(subjects))})


def _excess(subject: Subject, columns: Columns, parts: Sequence[tuple[str, str]]) -> Columns:
    """Return each part less what complexity explains, in units of the held-out spread, by the name of its column.

    Args:
        subject: the case.
        columns: what was measured of all images.
        parts: the part that each column is (`part_score`), and the column.
    """

    def derive() -> Columns:
        found = Columns()
        for part, column in parts:
            values = part_score(part, columns[column])
            judged = judge_images(*subject.images(values))
            assert judged is not None  # every case holds out enough
            families = values[: len(subject.positive)]
            found[column] = (families - judged.first_expected) / judged.calibration.main.unit
        return found

    return keep_derived(subject, f"parts {parts} of {fingerprint(columns)} by {analysis_code()}", derive)


def _level_rows(subject: Subject) -> list[dict[str, Any]]:
    """Return one row of the page for each level."""
    parts = [(part, f"{part} {level}") for level in LEVELS for part in ("noise_norm", "loss")]
    excess = _excess(subject, measure_shared(subject, AtLevels(), SEED), parts)
    positive = subject.positive
    clear = positive | ~subject.planted
    rows = []
    for level in LEVELS:
        row: dict[str, Any] = {"case": subject.trained.setup.name, "seed": subject.trained.seed, "level": f"{level:g}"}
        for part, label in (("noise_norm", "noise norm"), ("loss", "loss")):
            values = excess[f"{part} {level}"][clear]
            row[f"{label}: AUROC"] = f"{auroc(values, positive[clear]):.4f}"
            row[f"{label}: TPR at 1% FPR"] = f"{tpr_at_fpr(values, positive[clear]):.2f}"
        rows.append(row)
    return rows


def _best(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say at which levels each part finds most on each model, beside those of preset `screen`."""
    sentences = []
    for case, seed in dict.fromkeys((row["case"], row["seed"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["seed"]) == (case, seed)]
        best = [max(mine, key=lambda row: float(row[f"{part}: AUROC"])) for part in ("noise norm", "loss")]
        sentences.append(
            f"{case} with seed {seed}: noise norm finds most at level {best[0]['level']} (AUROC "
            f"{best[0]['noise norm: AUROC']}), the loss at {best[1]['level']} ({best[1]['loss: AUROC']}); `screen` "
            f"takes {SCREEN.norm_level:g} and {SCREEN.loss_level:g}."
        )
    return sentences


def _space_rows(subjects: Sequence[Subject]) -> Iterator[dict[str, Any]]:
    """Yield what latents say beside pixels of the same training set: rank correlations of each part's excess."""
    for latent in (subject for subject in subjects if subject.trained.setup.latent):
        for pixels in subjects:
            same = np.array_equal(pixels.case.train, latent.case.train)
            if same and not pixels.trained.setup.latent:
                yield from _compare_spaces(pixels, latent)


def _compare_spaces(pixels: Subject, latent: Subject) -> Iterator[dict[str, Any]]:
    try:
        found = [
            _excess(
                subject, measure_shared(subject, Preset(StandardMeasure(), "growth"), SEED), [(p, p) for p in PARTS]
            )
            for subject in (pixels, latent)
        ]
    except NotMeasuredError:
        return
    both = pixels.positive & latent.positive
    once = ~pixels.planted & ~both
    for part in PARTS:
        row: dict[str, Any] = {"seed": latent.trained.seed, "part": part}
        row["rank correlation, trained on once"] = f"{_spearman(found[0][part][once], found[1][part][once]):.2f}"
        for space, subject, excess in zip(("pixels", "latents"), (pixels, latent), found, strict=True):
            clear = subject.positive | ~subject.planted
            judged = subject.positive[clear]
            row[f"{space}: AUROC"] = f"{auroc(excess[part][clear], judged):.4f}" if judged.any() else None
            row[f"{space}: reproduced"] = int(subject.positive.sum())
        row["reproduced in both"] = int(both.sum())
        yield row


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    from scipy.stats import spearmanr  # half a second to import, and only this table needs it

    return float(spearmanr(one, other).statistic)
