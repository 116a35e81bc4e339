"""The detection bench: presets and single scores on models whose memorization is measured by sampling.

`subjects` says which images count as memorized and which do not. A preset is judged by the evidence and the q-values of
an audit against the case's held-out images; a single score raw, and calibrated by itself as an audit would. Detection
is measured on clear negatives: planted families that samples miss are left out, but in `auroc_all` they are negatives.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.benchmark.detection.audited_presets import CONTESTANTS, Contestant, audit_case
from jobs.benchmark.detection.compared_scores import SCORES, Score
from jobs.benchmark.detection.metrics import detect, interval, mean_over_models, realised
from jobs.benchmark.detection.subjects import SEED, NotMeasuredError, Subject, scores_of
from jobs.benchmark.detection.suite import Setup, is_trained, train_or_load
from jobs.experiments import say
from volgrowth.analysis.calibration.error_rates import q_values
from volgrowth.analysis.calibration.evidence import judge_images
from volgrowth.analysis.ranking import auroc
from volgrowth.errors import UsageError


@dataclass(frozen=True)
class Result:
    """One score, or the evidence of one preset, on one case.

    Attributes:
        seed: seed of the case; None for the mean over seeds and draws.
        draw: seed of what is random in the measurement; None for the mean.
        calibrated: True for a score in excess of what complexity explains, and for evidence.
        values: each of `replicates`, and its interval as NAME_low and NAME_high; `auroc_all`; `member_auroc`, images
            trained on once against held-out ones, plain images apart; if calibrated, the number of images `outside` the
            calibrated range, of a single score the variance `r2` that complexity explains, and of evidence its
            `lower_quartile` among the images that samples reproduce.
        replicates: each of `METRICS`, and if calibrated the rates of `realised`, in every bootstrap replicate,
            (1 + replicates,), the estimate itself first.
    """

    case: str
    seed: int | None
    draw: int | None
    score: Score | Contestant
    calibrated: bool
    values: dict[str, float]
    replicates: dict[str, np.ndarray]

    @property
    def is_preset(self) -> bool:
        """True for the evidence of a preset."""
        return isinstance(self.score, Contestant)


@dataclass(frozen=True)
class Bench:
    """What a run of the bench found.

    Attributes:
        results: of each score and preset on each model, then the means of each case.
        subjects: the models.
        untrained: case and seed of each model that was asked for and is not cached, if nothing else was asked for.
        unmeasured: case and seed of the models on which a score is not cached, by the name of the score, likewise.
    """

    results: list[Result]
    subjects: list[Subject]
    untrained: list[tuple[str, int]] = field(default_factory=list)
    unmeasured: dict[str, list[tuple[str, int]]] = field(default_factory=dict)


def run_bench(
    setups: Sequence[Setup],
    seeds: Sequence[int],
    data: Path,
    output: Path,
    scores: Sequence[Score | Contestant] = (*CONTESTANTS, *SCORES),
    say: Callable[[str], None] = say,
    *,
    cached_only: bool = False,
) -> Bench:
    """Train what is not cached under `output`/models, measure every score on it, and average over seeds.

    Args:
        setups: the cases.
        seeds: of each case.
        data: folder of the image sets.
        output: folder with or for the models.
        scores: presets and single scores.
        say: told of progress.
        cached_only: leave out the models and the scores that are not cached.

    Raises:
        UsageError: no model is left, or a user's score that fails.
    """
    models, found = output / "models", Bench([], [])
    for setup, seed in itertools.product(setups, seeds):
        if cached_only and not is_trained(setup, seed, data, models):
            found.untrained.append((setup.name, seed))
            continue
        subject = Subject.of(train_or_load(setup, seed, data, models, say), cached_only=cached_only)
        found.subjects.append(subject)
        say(f"scoring {setup.name}, seed {seed}: {int(subject.positive.sum())} images reproduced")
        for score in scores:
            judged = judge_in_draws(subject, score)
            found.results.extend(judged)
            if not judged:
                name = f"evidence of {score.name}" if isinstance(score, Contestant) else score.name
                found.unmeasured.setdefault(name, []).append((setup.name, seed))
    if not found.results and cached_only:
        raise UsageError(
            f"nothing of these cases is cached in {models}: run without --cached, which trains and measures"
        )
    return replace(found, results=found.results + mean_over_seeds(found.results))


def judge_in_draws(subject: Subject, score: Score | Contestant) -> list[Result]:
    """Measure one score, or one preset in several draws, on a case, and judge what could be measured."""
    judged = list[Result]()
    for draw in range(score.draws) if isinstance(score, Contestant) else (SEED,):
        with suppress(NotMeasuredError):
            if isinstance(score, Contestant):
                judged.append(judge_preset(subject, score, draw))
            else:
                judged += judge_score(subject, score, scores_of(subject, score))
    return judged


def judge_preset(subject: Subject, preset: Contestant, draw: int) -> Result:
    """Judge the evidence of a preset, and the flags that an audit would raise, for one draw of what is random."""
    found = audit_case(subject, preset.measure, draw)
    if np.isnan(found["evidence"]).any():
        raise UsageError(f"preset {preset.name} gave an image no evidence: expected a score of every image")
    values, replicates = _detected(subject, found["evidence"], found["holdout_evidence"])
    values["outside"] = float(found["outside_range"].sum())
    reproduced = found["evidence"][subject.positive]
    values["lower_quartile"] = float(np.quantile(reproduced, 0.25)) if reproduced.size else np.nan
    replicates |= _realised_by_cluster(subject, found["q_value"], found["cluster"])
    return _result(subject, draw, preset, values, replicates, calibrated=True)


def _realised_by_cluster(subject: Subject, q_value: np.ndarray, cluster: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rates of `realised` over clusters: near duplicates among the families are one discovery.

    A cluster is reproduced, or planted, if one of its families is. A replicate draws it as often as its first family.
    """
    _, first, of = np.unique(cluster, return_index=True, return_inverse=True)
    positive, planted = (np.bincount(of, weights=mask) > 0 for mask in (subject.positive, subject.planted))
    lowest = np.full(len(first), np.inf)
    np.minimum.at(lowest, of, q_value)
    return realised(lowest, positive, planted, subject.drawn[:, first])


def judge_score(subject: Subject, score: Score, values: np.ndarray) -> list[Result]:
    """Return the results of a score (n,): raw and, if the case has enough held-out images, calibrated."""
    families, holdout = subject.images(values)
    results = [_result(subject, SEED, score, *_detected(subject, families.score, holdout.score), calibrated=False)]
    judged = judge_images(families, holdout)
    if judged is not None and judged.calibration.method == "held-out":
        known, replicates = _detected(
            subject,
            families.score - judged.first_expected,
            holdout.score - judged.calibration.main.expected,
        )
        # images beyond the held-out ones' complexity are not judged, as in `analysis.findings`
        p_value = np.where(judged.outside, 1.0, judged.used)
        q_value = q_values(p_value, subject.content[: len(p_value)])
        replicates |= realised(q_value, subject.positive, subject.planted, subject.drawn)
        known |= {"r2": judged.calibration.main.r2, "outside": float(judged.outside.sum())}
        results.append(_result(subject, SEED, score, known, replicates, calibrated=True))
    return results


def _detected(subject: Subject, value: np.ndarray, held: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return what a score of the families and of the held-out images detects: numbers, and replicates of `METRICS`."""
    positive = subject.positive
    clear = positive | ~subject.planted
    members, strangers = value[subject.members], held[subject.strangers]
    strangers = strangers[~np.isnan(strangers)]  # images that are audited too have no evidence
    both = np.concatenate([members, strangers])
    values = {
        "auroc_all": auroc(value, positive),
        "member_auroc": auroc(both, np.arange(len(both)) < len(members)),
    }
    return values, detect(value[clear], positive[clear], subject.drawn[:, clear])


def _result(
    subject: Subject,
    draw: int,
    score: Score | Contestant,
    values: dict[str, float],
    replicates: dict[str, np.ndarray],
    *,
    calibrated: bool,
) -> Result:
    setup, seed = subject.trained.setup, subject.trained.seed
    return Result(setup.name, seed, draw, score, calibrated, _with_intervals(replicates) | values, replicates)


def _with_intervals(replicates: dict[str, np.ndarray]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, array in replicates.items():
        low, high = interval(array)
        values |= {name: float(array[0]), f"{name}_low": low, f"{name}_high": high}
    return values


def mean_over_seeds(results: Sequence[Result]) -> list[Result]:
    """Return the mean over seeds, and over the draws of each, of every score on every case."""
    groups: dict[tuple[str, str, bool, bool], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case, result.score.name, result.is_preset, result.calibrated), []).append(result)
    return [_mean(group) for group in groups.values()]


def _mean(group: list[Result]) -> Result:
    first, models = group[0], list(_by_seed(group))
    replicates = {
        name: mean_over_models([[result.replicates[name] for result in model] for model in models])
        for name in first.replicates
    }
    values = {
        name: float(np.mean([np.mean([result.values[name] for result in model]) for model in models]))
        for name in first.values
    }
    return Result(
        first.case, None, None, first.score, first.calibrated, values | _with_intervals(replicates), replicates
    )


def _by_seed(group: list[Result]) -> Iterator[list[Result]]:
    for _, model in itertools.groupby(group, lambda result: result.seed):
        yield list(model)


def result_table(results: Sequence[Result]) -> pa.Table:
    """Return all results as a table, one column for each number. Numbers that are missing are null.

    Seed and draw are null in the mean over them.
    """
    rows: list[dict[str, Any]] = [
        {
            "case": result.case,
            "seed": result.seed,
            "draw": result.draw,
            "score": result.score.name,
            "preset": result.is_preset,
            "calibrated": result.calibrated,
            "nfe": result.score.nfe,
            **{name: None if np.isnan(value) else value for name, value in result.values.items()},
        }
        for result in results
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in columns})
