"""What membership alone does to an audit, by degree of overfitting: every image is trained on once, none is planted.

The same network is trained on the same images for more and more passes. Members are the images that it was trained on
and that its samples do not reproduce: none of them is memorized by the rule of the bench, so every flag of one is
false. Calibration is on some held-out images; others, which the model has not seen either, show what chance does.

The realised false-discovery rate is that of an audit in which `MEMORIZED` further images are memorized beyond doubt:
flags of members over all flags. Without them every flag would be false, at any rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmark.detection.audited_presets import analysis_code, evidence_of, fingerprint, score_table
from jobs.benchmark.detection.compared_scores import Preset
from jobs.benchmark.detection.subjects import Columns, Subject, keep_derived, measure_shared
from jobs.benchmark.detection.suite import Setup, models_of
from jobs.experiments import Outcome
from jobs.pages import listed
from volgrowth.analysis.calibration.error_rates import FDR, q_values
from volgrowth.analysis.calibration.evidence import judge_images
from volgrowth.analysis.calibration.expected_scores import ScoredImages
from volgrowth.analysis.calibration.held_out import Bulk
from volgrowth.analysis.findings import analyse
from volgrowth.analysis.parts.judge import part_score
from volgrowth.analysis.ranking import auroc
from volgrowth.config import StandardMeasure
from volgrowth.demo.training import Recipe
from volgrowth.report.formats import MISSING

MEMBERS, CALIBRATING, MEMORIZED = 200, 1000, 20
PARTS = ("growth", "loss", "noise_norm")
# passes over the training set: the bench's digits see each row 51 times
USUAL = 51
DEGREES = (1, 3, 10, 30)


def _setup(degree: int) -> Setup:
    recipe = Recipe()
    steps = round(degree * USUAL * MEMBERS / recipe.batch)
    return Setup(f"digits-once-{degree}", None, MEMBERS, ((0, 1),), replace(recipe, steps=steps), plain=0, samples=1000)


ONCE = tuple(_setup(degree) for degree in DEGREES)


@dataclass(frozen=True)
class Members:
    """What an audit says of members of one model, and of held-out images that it was not calibrated on.

    Attributes:
        reproduced: images that samples reproduce, which are left out.
        loss: mean denoising loss of all images that were trained on, and of the held-out ones.
        excess: each part of `PARTS` in excess, of members and of strangers.
        evidence, p_value: of members and of strangers.
        warned: whether an audit of the images that were trained on says that held-out images are of another kind, or
            that the model knows a large part of them.
    """

    reproduced: int
    loss: tuple[float, float]
    excess: dict[str, tuple[np.ndarray, np.ndarray]]
    evidence: tuple[np.ndarray, np.ndarray]
    p_value: tuple[np.ndarray, np.ndarray]
    warned: bool


def compare_membership(
    setups: Sequence[Setup], seeds: Sequence[int], data: Path, models: Path, *, cached_only: bool = False
) -> Outcome:
    """Train what is not cached, and return the table of the page.

    Args:
        setups: some of `ONCE`.
        seeds: of the trainings of each degree.
        data: folder of the image sets, of which none is needed.
        models: folder of trained models and measurements.
        cached_only: leave out models that are not there.
    """
    rows, said, strangers = list[dict[str, Any]](), list[str](), list[Members]()
    for setup in setups:
        trained = models_of([setup], seeds, data, models, said, cached_only=cached_only)
        found = [judge_members(Subject.of(each)) for each in trained]
        if found:
            rows.append(_row(setup, found))
            strangers += found
    if strangers:
        rows.append(_chance(strangers))
    return Outcome(
        [*_sentences(rows[:-1]), *said],
        {"table": rows},
        {"images trained on": MEMBERS, "held out to calibrate": CALIBRATING, "samples": 1000, "seeds": listed(seeds)},
    )


def judge_members(subject: Subject) -> Members:
    """Measure and judge the images of a case; the last held-out images are judged as if they had been audited."""
    columns = measure_shared(subject, Preset(StandardMeasure(), "growth"), 0)
    trained, held = len(subject.positive), MEMBERS + CALIBRATING
    audited = np.r_[:trained, held : len(subject.pixels)]
    calibrating = np.arange(trained, held)
    table = score_table(subject, columns)

    def derive() -> Columns:
        found = analyse(table.take(audited), table.take(calibrating))
        assert found.calibration is not None  # a thousand images are enough
        assert found.calibration.holdout_evidence is not None
        bulk = Bulk(found.calibration.holdout_evidence)
        bulk.see(found.findings["evidence"].to_numpy()[:trained])
        return {
            "evidence": evidence_of(found, table.take(audited)),
            "p_value": found.findings["p_value"].to_numpy(),
            "warned": np.array(bulk.difference() is not None),
        }

    name = f"membership and caveat for members of {sorted(columns)} {fingerprint(columns)} by {analysis_code()}"
    judged = keep_derived(subject, name, derive)
    excess = {part: _excess(subject, part_score(part, columns[part]), audited, calibrating) for part in PARTS}
    members = np.flatnonzero(~subject.positive)
    rest = np.arange(trained, len(audited))

    def split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return values[members], values[rest]

    loss = columns["loss"]
    return Members(
        int(subject.positive.sum()),
        (float(loss[:trained].mean()), float(loss[trained:].mean())),
        {part: split(values) for part, values in excess.items()},
        split(judged["evidence"]),
        split(judged["p_value"]),
        bool(judged["warned"]),
    )


def _excess(subject: Subject, score: np.ndarray, audited: np.ndarray, calibrating: np.ndarray) -> np.ndarray:
    """Return a score of the audited images less what is expected of images as complex."""
    everything = ScoredImages(subject.features, score, subject.content)
    judged = judge_images(everything[audited], everything[calibrating])
    assert judged is not None  # a thousand images are enough
    return score[audited] - judged.first_expected


def false_discoveries(p_value: np.ndarray, memorized: int = MEMORIZED) -> tuple[int, float]:
    """Return how many members with these p-values are flagged beside so many memorized images, and their share."""
    everything = np.concatenate([p_value, np.full(memorized, 1e-12)])
    flagged = int((q_values(everything, np.arange(len(everything))) <= FDR)[: len(p_value)].sum())
    return flagged, flagged / max(flagged + memorized, 1)


def _row(setup: Setup, found: Sequence[Members]) -> dict[str, Any]:
    """Return the row of one degree, the mean over its models, with the range of what decides."""
    passes = round(setup.recipe.steps * setup.recipe.batch / setup.trained)
    of_members = [each for each in found if len(each.p_value[0])]
    shares = {f"{part}, AUROC": _mean([_auroc(each.excess[part]) for each in of_members], "{:.2f}") for part in PARTS}
    realised = [false_discoveries(each.p_value[0])[1] for each in of_members]
    return {
        "trained on": f"{passes:,} passes",
        "loss, trained": _mean([each.loss[0] for each in found], "{:.3f}"),
        "loss, held out": _mean([each.loss[1] for each in found], "{:.3f}"),
        "reproduced": _mean([each.reproduced for each in found], "{:.0f}"),
        **shares,
        "evidence, AUROC": _mean([_auroc(each.evidence) for each in of_members], "{:.2f}"),
        **_tails([each.p_value[0] for each in of_members]),
        f"FDR, {FDR:.0%} promised": _percent(realised),
        "the audit warns": f"{sum(each.warned for each in found)} of {len(found)}",
    }


def _chance(found: Sequence[Members]) -> dict[str, Any]:
    """Return the row of the held-out images that were judged like members, over all models."""
    realised = [false_discoveries(each.p_value[1])[1] for each in found]
    return {
        "trained on": "not at all",
        **_tails([each.p_value[1] for each in found]),
        f"FDR, {FDR:.0%} promised": _percent(realised),
    }


def _tails(p_values: Sequence[np.ndarray]) -> dict[str, str]:
    return {
        f"p below {cut:g}, %": _mean([100 * (p_value < cut).mean() for p_value in p_values], "{:.1f}")
        for cut in (0.01, 0.001)
    }


def _auroc(values: tuple[np.ndarray, np.ndarray]) -> float:
    members, strangers = values
    return auroc(np.concatenate(values), np.arange(len(members) + len(strangers)) < len(members))


def _mean(values: Sequence[float], form: str) -> str:
    return form.format(np.mean(values)) if values else MISSING


def _percent(values: Sequence[float]) -> str:
    """Return the mean and the range of shares, %."""
    if not values:
        return MISSING
    return f"{100 * np.mean(values):.0f}% ({100 * min(values):.0f} to {100 * max(values):.0f})"


def _sentences(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say how evidence ranks members, and what becomes of the promised rate."""
    promised = f"FDR, {FDR:.0%} promised"
    return [
        f"After {row['trained on']} evidence ranks members at AUROC {row['evidence, AUROC']}; of a promised {FDR:.0%} "
        f"{row[promised]} are realised, with members as the null."
        for row in rows
    ]
