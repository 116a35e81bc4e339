"""The detection bench: every score, raw and calibrated, on models whose memorization is measured by sampling.

An image with all of its copies is one family, represented by its first row; families that samples reproduce are the
positives, all others the negatives. Planted families that samples do not reproduce are negatives as well, though they
are trained on many times over: `auroc_clear` leaves them out, `fdr_clear` does not count them as false. Calibration and
p-values are those of the audit, against the case's held-out images, and q-values are over families. Raw scores of
built-in functions are cached beside the model.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from jobs.benchmark.detection.compared_scores import SCORES, Preset, Score, evaluate, evaluate_preset
from jobs.benchmark.detection.metrics import METRICS, detect, draw_replicates, interval, realised
from jobs.benchmark.detection.suite import Setup, Trained, train_or_load
from jobs.experiments import say
from volgrowth.analysis.calibration.complexity import regressors
from volgrowth.analysis.calibration.error_rates import q_values
from volgrowth.analysis.calibration.evidence import Calibration, calibrate
from volgrowth.analysis.calibration.expected_scores import ScoredImages
from volgrowth.analysis.ranking import auroc
from volgrowth.analysis.verification.proof import Reproduced
from volgrowth.demo.cases import LabelledSet, to_tensor
from volgrowth.errors import UsageError
from volgrowth.models import load_model
from volgrowth.records import SCORES as COLUMNS
from volgrowth.sources.pixels.features import features

SEED = 0

# images on which cached scores are tried, and the share of their spread that rounding on another machine explains
AGAIN, SAME = 8, 1e-3


@dataclass(frozen=True)
class Result:
    """One score on one case.

    Attributes:
        seed: seed of the case; None for the mean over seeds, whose intervals come from the mean of the replicates.
        values: each of `METRICS` with its interval, `auroc_clear`, `member_auroc`, and, if calibrated, the rates of
            `realised`, the variance that complexity explains, and the number of images outside the calibrated range.
        replicates: each of `METRICS` in every bootstrap replicate, (1 + replicates,), the estimate itself first.
    """

    case: str
    seed: int | None
    score: Score
    calibrated: bool
    values: dict[str, float]
    replicates: dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A case with its truth, and the images to score: one of each family, then the held-out ones.

    Attributes:
        truth: how often samples of the model hit each family and each held-out image.
        pixels: images (n, C, H, W) uint8.
        features: calibration's measures of their complexity, (n, features).
        content: hashes of their content, (n,).
        drawn: how often each family is drawn in each bootstrap replicate, (1 + replicates, families).
    """

    trained: Trained
    truth: Reproduced
    pixels: np.ndarray
    features: np.ndarray
    content: np.ndarray
    drawn: np.ndarray

    @classmethod
    def of(cls, trained: Trained) -> Self:
        """Measure the truth of a trained case, and the complexity of every image."""
        case, truth = trained.case, trained.truth()
        pixels = np.concatenate([case.train[case.first], case.holdout])
        drawn = draw_replicates(truth.images, trained.seed)
        return cls(trained, truth, pixels, *complexity_and_content(pixels), drawn)

    @property
    def case(self) -> LabelledSet:
        return self.trained.case

    @property
    def positive(self) -> np.ndarray:
        """Families that the model reproduces, (families,) bool."""
        return self.truth.images

    @property
    def members(self) -> np.ndarray:
        """Families that were trained on once, are not plain and not reproduced, (families,) bool."""
        return (self.case.copies == 1) & ~_plain(self.case.names) & ~self.positive

    @property
    def strangers(self) -> np.ndarray:
        """Held-out images that are not plain, (held-out images,) bool."""
        return ~_plain(self.case.holdout_names)

    def images(self, values: np.ndarray) -> tuple[ScoredImages, ScoredImages]:
        """Split a score of all images (n,) into the families' and the held-out images'."""
        n = len(self.positive)
        known = ScoredImages(self.features, values, self.content)
        rows = np.arange(len(values))
        return known[rows[:n]], known[rows[n:]]


def run_bench(
    setups: Sequence[Setup],
    seeds: int,
    data: Path,
    output: Path,
    scores: Sequence[Score] = SCORES,
    say: Callable[[str], None] = say,
) -> tuple[list[Result], list[Subject]]:
    """Train what is not cached under `output`/models, measure every score on it, and average over seeds.

    Raises:
        UsageError: no seeds, or a user's score that fails.
    """
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}: expected 1 or more")
    results, subjects = [], []
    for setup, seed in itertools.product(setups, range(1, seeds + 1)):
        subject = Subject.of(train_or_load(setup, seed, data, output / "models", say))
        subjects.append(subject)
        say(f"scoring {setup.name}, seed {seed}: {int(subject.positive.sum())} images reproduced")
        for score in scores:
            results += judge_score(subject, score, score_images(subject, score))
    return results + mean_over_seeds(results), subjects


def complexity_and_content(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return calibration's regressors (n, features) and the content hashes (n,) of uint8 images (n, C, H, W)."""
    rows = [features(image) for image in pixels]
    schema = pa.schema([COLUMNS.field(name) for name in rows[0]])
    table = pa.Table.from_pylist(rows, schema)
    return regressors(table), table.column("content_hash").to_numpy()


def score_images(subject: Subject, score: Score) -> np.ndarray:
    """Return a score of all images of a subject, (n,). Scores that are built in are cached beside the model.

    A cached score is measured again on `AGAIN` of the images, and thrown away if code or settings have changed it.
    """
    if score not in SCORES:
        return _column(score, _evaluate(subject, score, subject.pixels))
    # scores that are columns of one measurement share it
    name = f"{score.function.measure!r}" if isinstance(score.function, Preset) else score.name
    key = hashlib.sha256(name.encode() + subject.pixels.tobytes()).hexdigest()[:12]
    path = subject.trained.model.parent / "scores" / f"{key}.npz"
    if path.exists():
        with np.load(path) as cached:
            values = _column(score, cached)
        rows = np.linspace(0, len(values) - 1, AGAIN).astype(int)
        again = _column(score, _evaluate(subject, score, subject.pixels[rows]))
        if np.abs(again - values[rows]).max() <= SAME * values.std():
            return values
    columns: dict[str, Any] = _evaluate(subject, score, subject.pixels)
    path.parent.mkdir(exist_ok=True)
    np.savez(path.with_suffix(".part.npz"), **columns)
    path.with_suffix(".part.npz").replace(path)
    return _column(score, columns)


def _evaluate(subject: Subject, score: Score, pixels: np.ndarray) -> dict[str, np.ndarray]:
    denoiser, images = load_model(str(subject.trained.model)), to_tensor(pixels)
    if isinstance(score.function, Preset):
        return evaluate_preset(score.function, denoiser, images, SEED)
    return {score.name: evaluate(score, denoiser, images, SEED)}


def _column(score: Score, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    function = score.function
    return function.sign * columns[function.column] if isinstance(function, Preset) else columns[score.name]


def judge_score(subject: Subject, score: Score, values: np.ndarray) -> list[Result]:
    """Return the results of a score (n,): raw and, if the case has enough held-out images, calibrated."""
    families, holdout = subject.images(values)
    results = [_result(subject, score, families.score, holdout.score, None)]
    calibration = calibrate(families, holdout)
    if calibration is not None and calibration.main.holdout_expected is not None:
        excess = families.score - calibration.main.expected, holdout.score - calibration.main.holdout_expected
        results.append(_result(subject, score, *excess, calibration))
    return results


def _result(
    subject: Subject, score: Score, value: np.ndarray, held: np.ndarray, calibration: Calibration | None
) -> Result:
    """Judge a score of the families and of the held-out images, raw or in excess of what calibration expects."""
    positive, case = subject.positive, subject.case
    replicates = detect(value, positive, subject.drawn)
    clear = positive | (case.copies == 1)
    members, strangers = value[subject.members], held[subject.strangers]
    values = {
        **_with_intervals(replicates),
        "auroc_clear": auroc(value[clear], positive[clear]),
        "member_auroc": auroc(
            np.concatenate([members, strangers]), np.arange(len(members) + len(strangers)) < len(members)
        ),
    }
    if calibration is not None:
        # images beyond the held-out ones' complexity are not judged, as in `analysis.findings`
        p_value = np.where(calibration.outside, 1.0, calibration.p_value)
        values |= realised(q_values(p_value, subject.content[: len(positive)]), positive, case.copies > 1)
        values |= {"r2": calibration.main.r2, "outside": float(calibration.outside.sum())}
    setup = subject.trained.setup
    return Result(setup.name, subject.trained.seed, score, calibration is not None, values, replicates)


def _with_intervals(replicates: dict[str, np.ndarray]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, array in replicates.items():
        low, high = interval(array)
        values |= {name: float(array[0]), f"{name}_low": low, f"{name}_high": high}
    return values


def _plain(names: np.ndarray) -> np.ndarray:
    return np.char.startswith(names.astype(str), "plain")


def mean_over_seeds(results: list[Result]) -> list[Result]:
    """Return the mean over seeds of every score on every case."""
    groups: dict[tuple[str, str, bool], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case, result.score.name, result.calibrated), []).append(result)
    return [_mean(group) for group in groups.values()]


def _mean(group: list[Result]) -> Result:
    first = group[0]
    replicates = {name: np.mean([result.replicates[name] for result in group], 0) for name in METRICS}
    values = {name: float(np.mean([result.values[name] for result in group])) for name in first.values}
    return Result(first.case, None, first.score, first.calibrated, values | _with_intervals(replicates), replicates)


def result_table(results: list[Result]) -> pa.Table:
    """Return all results as a table, one column for each number. A number that is missing, and no seed, is null."""
    rows: list[dict[str, Any]] = [
        {
            "case": result.case,
            "seed": result.seed,  # null in the mean over seeds
            "score": result.score.name,
            "calibrated": result.calibrated,
            "nfe": result.score.nfe,
            **{name: None if np.isnan(value) else value for name, value in result.values.items()},
        }
        for result in results
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in columns})
