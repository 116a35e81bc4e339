"""What the bench scores: the images of a trained case and their truth, and measurements of them, which are cached.

An image with all of its copies is one family, represented by its first row. Families that samples reproduce are the
positives, also where they were trained on once. Families that were trained on once and are not reproduced are the
clear negatives. Planted families that samples miss are neither: they were trained on many times over.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from torch import Tensor

from jobs.benchmark.detection.compared_scores import SCORES, Score, SharedScore, evaluate, evaluate_columns
from jobs.benchmark.detection.metrics import draw_replicates
from jobs.benchmark.detection.suite import Trained
from volgrowth.analysis.calibration.complexity import regressors
from volgrowth.analysis.calibration.expected_scores import ScoredImages
from volgrowth.analysis.verification.proof import Reproduced
from volgrowth.audit.scoring.understanding import NoisyStates, examine
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.demo.cases import LabelledSet, to_tensor
from volgrowth.models import load_model
from volgrowth.numerics import Denoiser
from volgrowth.records import SCORES as COLUMNS
from volgrowth.sources.pixels.features import features_of_each

SEED = 0

# images on which cached scores are tried, and the share of their spread that rounding on another machine explains
AGAIN, SAME = 8, 1e-3
CHECKED = 64
"""Training images on which a model is checked as an audit checks it."""

Columns = dict[str, np.ndarray]


class NotMeasuredError(Exception):
    """A measurement is not cached, and nothing but what is cached was asked for."""


@dataclass(frozen=True)
class Subject:
    """A case with its truth, and the images to score: one of each family, then the held-out ones.

    Attributes:
        truth: how often samples of the model hit each family and each held-out image.
        pixels: images (n, C, H, W) uint8.
        described: complexity and hashes of each image, under the names of `records.SCORES`.
        drawn: how often each family is drawn in each bootstrap replicate, (1 + replicates, families).
        cached_only: whether measurements that are not cached are refused, by `NotMeasuredError`.
    """

    trained: Trained
    truth: Reproduced
    pixels: np.ndarray
    described: pa.Table
    drawn: np.ndarray
    cached_only: bool = False

    @classmethod
    def of(cls, trained: Trained, *, cached_only: bool = False) -> Self:
        """Measure the truth of a trained case, and the complexity of every image."""
        case, truth = trained.case, trained.truth()
        pixels = np.concatenate([case.train[case.first], case.holdout])
        drawn = draw_replicates(2 * truth.images + (case.copies > 1), trained.seed)
        return cls(trained, truth, pixels, describe_images(pixels), drawn, cached_only)

    @property
    def case(self) -> LabelledSet:
        return self.trained.case

    @property
    def positive(self) -> np.ndarray:
        """Families that the model reproduces, (families,) bool."""
        return self.truth.images

    @property
    def planted(self) -> np.ndarray:
        """Families with several copies, (families,) bool."""
        return self.case.copies > 1

    @property
    def members(self) -> np.ndarray:
        """Families that were trained on once, are not plain and not reproduced, (families,) bool."""
        return ~self.planted & ~_plain(self.case.names) & ~self.positive

    @property
    def strangers(self) -> np.ndarray:
        """Held-out images that are not plain, (held-out images,) bool."""
        return ~_plain(self.case.holdout_names)

    @cached_property
    def features(self) -> np.ndarray:
        """Calibration's measures of complexity, (n, features)."""
        return regressors(self.described)

    @cached_property
    def content(self) -> np.ndarray:
        """Hashes of the images' content, (n,)."""
        return np.asarray(self.described.column("content_hash").to_numpy())

    def images(self, values: np.ndarray) -> tuple[ScoredImages, ScoredImages]:
        """Split a score of all images (n,) into the families' and the held-out images'."""
        n = len(self.positive)
        known = ScoredImages(self.features, values, self.content)
        rows = np.arange(len(values))
        return known[rows[:n]], known[rows[n:]]


def describe_images(pixels: np.ndarray) -> pa.Table:
    """Return the complexity and the hashes of uint8 images (n, C, H, W), under the names of `records.SCORES`."""
    rows = features_of_each(list(pixels))
    return pa.Table.from_pylist(rows, pa.schema([COLUMNS.field(name) for name in rows[0]]))


def states_of(denoiser: Denoiser, pixels: np.ndarray) -> Tensor:
    """Return what the denoiser sees of uint8 images (n, C, H, W): the images in [-1, 1], or their latents."""
    return denoiser.embed(to_tensor(pixels))


def is_understood(subject: Subject) -> bool:
    """Say whether an audit would take the model: whether its answer is the expected noise of what it was trained on."""
    denoiser = load_model(str(subject.trained.model))
    some = states_of(denoiser, subject.case.train[:CHECKED])
    return examine(NoisyStates(denoiser, some, None, SEED, BatchSize(CHECKED))).verdict != "wrong"


def scores_of(subject: Subject, score: Score) -> np.ndarray:
    """Return a score of all images of a subject, (n,). Scores that are built in are cached beside the model."""
    function = score.function
    if isinstance(function, SharedScore):
        return function.sign * measure_shared(subject, function, SEED)[function.column]

    def measure(denoiser: Denoiser, pixels: np.ndarray) -> Columns:
        return {score.name: evaluate(score, denoiser, states_of(denoiser, pixels), SEED)}

    if score not in SCORES:
        if subject.cached_only:
            raise NotMeasuredError(score.name)
        return measure(load_model(str(subject.trained.model)), subject.pixels)[score.name]
    return _cached(subject, score.name, measure)[score.name]


def measure_shared(subject: Subject, shared: SharedScore, seed: int) -> Columns:
    """Return all columns of a measurement of all images of a subject, cached beside the model.

    Args:
        subject: the case.
        shared: a score of that measurement.
        seed: of what is random in the measurement.
    """

    def measure(denoiser: Denoiser, pixels: np.ndarray) -> Columns:
        return evaluate_columns(shared, denoiser, states_of(denoiser, pixels), seed)

    return _cached(subject, shared.measurement + (f", seed {seed}" if seed != SEED else ""), measure)


def _cached(subject: Subject, name: str, measure: Callable[[Denoiser, np.ndarray], Columns]) -> Columns:
    """Return a measurement of all images from the cache, or measure them.

    What is cached is measured again on `AGAIN` of the images, and thrown away if code or settings have changed it.

    Raises:
        NotMeasuredError: the measurement is not cached, and the subject makes none.
    """
    denoiser = load_model(str(subject.trained.model))
    key = hashlib.sha256(name.encode() + subject.pixels.tobytes()).hexdigest()[:12]
    path = subject.trained.model.parent / "scores" / f"{key}.npz"
    if path.exists():
        with np.load(path) as cached:
            found = dict(cached)
        rows = np.linspace(0, len(subject.pixels) - 1, AGAIN).astype(int)
        if _agree(found, measure(denoiser, subject.pixels[rows]), rows):
            return found
    if subject.cached_only:
        raise NotMeasuredError(name)
    columns = measure(denoiser, subject.pixels)
    _keep(path, columns)
    return columns


def keep_derived(subject: Subject, name: str, derive: Callable[[], Columns]) -> Columns:
    """Return arrays that were derived from measurements, from the cache beside the model, or derive them.

    Args:
        subject: the case.
        name: text that changes with all that the arrays depend on.
        derive: returns the arrays by their names.
    """
    path = subject.trained.model.parent / "scores" / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.npz"
    if not path.exists():
        _keep(path, derive())
    with np.load(path) as cached:
        return dict(cached)


def _keep(path: Path, columns: Columns) -> None:
    path.parent.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {**columns}
    np.savez(path.with_suffix(".part.npz"), **arrays)
    path.with_suffix(".part.npz").replace(path)


def _agree(found: Mapping[str, np.ndarray], again: Mapping[str, np.ndarray], rows: np.ndarray) -> bool:
    """Return whether all columns have the values of some rows that were measured again."""
    return found.keys() == again.keys() and all(
        np.abs(again[name] - values[rows]).max() <= SAME * values.std() for name, values in found.items()
    )


def _plain(names: np.ndarray) -> np.ndarray:
    return np.char.startswith(names.astype(str), "plain")
