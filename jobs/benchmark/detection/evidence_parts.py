"""What the parts of the evidence find alone and together, on models whose memorization samples have measured.

Positives are the families that samples reproduce, negatives the images that were trained on once; planted families
that samples miss are neither, except in `FDR`, where they are no discovery. Flags are those of an audit at its
default rate, against the case's held-out images.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.detection.compared_scores import Preset, evaluate_columns
from jobs.benchmark.detection.subjects import SEED, Subject
from jobs.benchmark.detection.suite import Setup, train_or_load
from jobs.experiments import say
from volgrowth.analysis.calibration.error_rates import FDR, q_values
from volgrowth.analysis.calibration.evidence import Calibration, calibrate
from volgrowth.analysis.findings import PARTS, part_score
from volgrowth.analysis.ranking import auroc, tpr_at_fpr
from volgrowth.config import StandardMeasure
from volgrowth.demo.cases import to_tensor
from volgrowth.models import load_model

TOGETHER = (PARTS[:1], PARTS[1:2], PARTS[2:], PARTS[:2], PARTS)


def compare_parts(setups: Sequence[Setup], seeds: int, data: Path, models: Path) -> Iterator[dict[str, Any]]:
    """Yield a row of the page for each case, seed and set of parts, and one for all parts whitened.

    Args:
        setups: the cases.
        seeds: seeds of each case, from 1.
        data: folder of the image sets.
        models: folder of trained models and samples; what is not there is made.
    """
    for setup in setups:
        for seed in range(1, seeds + 1):
            subject = Subject.of(train_or_load(setup, seed, data, models, say))
            denoiser = load_model(str(subject.trained.model))
            columns = evaluate_columns(Preset(StandardMeasure(), "growth"), denoiser, to_tensor(subject.pixels), SEED)
            for names in TOGETHER:
                calibration = _calibrated(subject, columns, names)
                row = {"case": setup.name, "seed": seed, "parts": ", ".join(names)}
                yield {**row, **_found(subject, calibration.evidence, calibration)}
            yield {**row, "parts": "all, whitened", **_found(subject, _whitened(calibration), None)}


def _calibrated(subject: Subject, columns: dict[str, np.ndarray], names: Sequence[str]) -> Calibration:
    """Calibrate some columns of a preset as an audit does, against the case's held-out images."""
    split = {name: subject.images(part_score(name, columns[name])) for name in names}
    found = calibrate({name: a for name, (a, _) in split.items()}, {name: h for name, (_, h) in split.items()})
    assert found is not None  # every case holds out a thousand images and more
    return found


def _whitened(calibration: Calibration) -> np.ndarray:
    """Return the sum of the parts weighted by the inverse of their held-out covariance, (families,)."""
    parts = list(calibration.parts.values())
    held = np.stack([part.held_excess for part in parts])
    return np.linalg.solve(np.cov(held), held.std(1)) @ np.stack([part.mean_excess for part in parts])


def _found(subject: Subject, evidence: np.ndarray, calibration: Calibration | None) -> dict[str, Any]:
    """Measure what evidence finds; flags only of a calibration, which gives p-values."""
    positive, planted = subject.positive, subject.case.copies > 1
    clear = positive | ~planted
    found = {
        "reproduced": int(positive.sum()),
        "AUROC": auroc(evidence[clear], positive[clear]),
        "TPR at 1% FPR": tpr_at_fpr(evidence[clear], positive[clear]),
    }
    if calibration is None:
        return found
    p_value = np.where(calibration.outside, 1.0, calibration.p_value)
    flags = q_values(p_value, subject.content[: len(positive)]) <= FDR
    return {
        **found,
        "lower quartile of reproduced": float(np.quantile(evidence[positive], 0.25)),
        "flags": int(flags.sum()),
        "power": flags[positive].mean(),
        f"FDR, {FDR:.0%} promised": (flags & ~positive & ~planted).sum() / max(flags.sum(), 1),
    }
