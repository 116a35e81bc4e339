"""Calibration of one score or of several: the evidence of an image, its p-value, and a bound on false flags.

Each part of the evidence is a score, high where it is suspicious, less what an image of that complexity shows anyway,
in units of the held-out images' spread, or of that of their upper tail where it is heavier (`expected_scores.Learnt`).
The evidence is the sum of the parts, each with a fixed weight (`WEIGHTS`), in units of its own spread among the
held-out images. Sums weighted by the held-out covariance found no more on the bench (docs/detection.md), and weights
that were fitted to the audited set would need to know what is memorized in it.

A part that no image was measured in, or that hardly varies among the images it is calibrated on, is left out, with
the reason. A score may also be calibrated and left aside, where others tell more without it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from volgrowth.analysis.calibration.boosted_trees import Predict
from volgrowth.analysis.calibration.error_rates import AssumedTail
from volgrowth.analysis.calibration.expected_scores import (
    MIN_IMAGES,
    Excess,
    Learnt,
    Passing,
    ScoredImages,
    Usable,
    deal_folds,
    learn,
    spread_of,
    usable,
)
from volgrowth.analysis.calibration.p_values import held_out_p_values
from volgrowth.analysis.calibration.tails import Tail, fit_tail, wants_audited
from volgrowth.analysis.chunks import for_chunks

REPRODUCED = 5.0
"""Evidence that is taken for that of a memorized image. On every model that has targets in docs/detection.md, in the
worst draw, three quarters of the images that samples reproduce have more, judged by the strongest of their rows as an
audit judges; altered photographs can have less."""

WEIGHTS: Mapping[str, float] = {"noise_norm": 0.5}
"""The weight of a part in the sum, where it is not 1. Over the models of docs/detection.md half of the noise norm finds
most: photographs in pixels stand out in the loss, and shifted digits in both."""

NO_SPREAD = "most images show exactly what is expected of them, so that it has no spread"

Parts = Mapping[str, ScoredImages]


@dataclass(frozen=True)
class Audited:
    """What calibration has to know of all audited images.

    Attributes:
        count: their number.
        complete: whether every one of them has each score, by its name.
        flat: number of those of one colour, which are never flagged.
    """

    count: int
    complete: Mapping[str, bool]
    flat: int = 0

    @classmethod
    def of(cls, images: Parts) -> "Audited":
        """Return it for images in memory."""
        complete = {name: not np.isnan(some.score).any() for name, some in images.items()}
        return cls(len(next(iter(images.values())).score), complete)


@dataclass(frozen=True)
class Calibration:
    """What the images that calibrate say of all others. It holds none of those, judges any of them, and may be pickled.

    Attributes:
        method: `held-out`, or `cross-fitted` without enough held-out images.
        scores: what was learnt of each score, by its name; the first is the score that an audit calls growth.
        left_out: the reason for each score that the evidence is not made of, by its name.
        added: names of the scores that the evidence is the sum of.
        known: the images that calibrate: the held-out ones that are usable, or a sample of the audited ones.
        low, high: range of the features of these images, (features,).
        spread: of the weighted sum of excess among them.
        holdout_evidence: evidence of the held-out images of `known`, (m,); None without any.
        tail: of the held-out images' evidence; None if it could not be fitted, or without held-out images.
        alone: tails of the parts whose own p-values are wanted, by name; None as `tail`.
        assumed: tails of evidence (by the name None) and of the parts of `alone` without held-out images.
        screened: mask of the held-out images of `known` that pass a screen, (m,); None without a screen.
        audited: what is known of the images that will be judged: for many of them predictions are made ready.
        bulk: difference of audited and held-out images where evidence is low (`held_out.Bulk`); None if they can pass
            for one kind, or without held-out images, or if a screen let only some be measured.
    """

    method: Literal["held-out", "cross-fitted"]
    scores: dict[str, Learnt]
    left_out: dict[str, str]
    added: tuple[str, ...]
    known: Usable
    low: np.ndarray
    high: np.ndarray
    spread: float
    holdout_evidence: np.ndarray | None
    tail: Tail | None
    alone: dict[str, Tail | None]
    assumed: dict[str | None, AssumedTail]
    screened: np.ndarray | None
    audited: Audited
    bulk: tuple[float, float] | None = None

    @property
    def main(self) -> Learnt:
        """What was learnt of the first score."""
        return next(iter(self.scores.values()))

    @property
    def parts(self) -> dict[str, Learnt]:
        """What was learnt of the scores that the evidence is made of, by name."""
        return {name: score for name, score in self.scores.items() if name not in self.left_out}

    @property
    def rows(self) -> np.ndarray:
        """Positions of the images that calibrate, in the held-out set or in the sample of the audited one."""
        return self.known.rows

    @property
    def shared(self) -> int:
        """Number of distinct held-out images that were left out because they are audited as well."""
        return self.known.shared

    @property
    def alike(self) -> int:
        """Number of those that were left out because they look like an audited one."""
        return self.known.alike

    @property
    def smallest_p_value(self) -> float:
        """The p-value of a memorized image: one of evidence `REPRODUCED`, or beyond all held-out ones."""
        beyond_all = 1 / (1 + len(self.rows))
        return (
            beyond_all if self.tail is None else min(beyond_all, float(self.tail.p_values(np.array([REPRODUCED]))[0]))
        )

    @property
    def one_colour(self) -> tuple[int, int]:
        """Number of audited rows with an image of one colour, and of held-out images left out for that alone."""
        return self.audited.flat, self.known.flat if self.method == "held-out" else 0

    @cached_property
    def _predictors(self) -> dict[str, list[Predict]]:
        """Predictions of each score by each fold."""
        return {name: part.predictors(self.audited.count) for name, part in self.scores.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_predictors"}

    def judge(self, images: Parts, passed: np.ndarray | None = None) -> "Judged":
        """Judge images.

        Args:
            images: the scores of some images, by name.
            passed: mask of those that pass the screen, (n,); the score of the others may be -infinity. None without a
                screen.
        """
        found = Judged(self, len(next(iter(images.values())).score), passed is not None)
        judge = self._against_held_out if self.method == "held-out" else self._among_themselves
        first, by_fold = next(iter(images.values())), self._predictors  # made here, once, and not in every thread

        def each(chunk: slice) -> None:
            features = first.features[chunk]
            found.outside[chunk] = ~((features >= self.low) & (features <= self.high)).all(1)  # NaN is outside
            some = {name: images[name][chunk] for name in by_fold}
            judge(some, found, chunk, None if passed is None else passed[chunk])

        for_chunks(len(found.evidence), each)
        return found

    def _against_held_out(self, images: Parts, found: "Judged", chunk: slice, passed: np.ndarray | None) -> None:
        """Judge images by held-out ones, in each fold."""
        assert self.holdout_evidence is not None
        screen = None if passed is None or self.screened is None else Passing(passed, self.screened)
        fold, total = self.main.fold, np.zeros(())
        for name, predict in self._predictors.items():
            expected = np.stack([one(images[name].features[:]) for one in predict])
            excess = images[name].score - expected
            found.expected[name][chunk], found.excess[name][chunk] = expected.mean(0), excess.mean(0)
            if name in self.added:
                total = total + _counted(name, self.scores[name], excess)
            if name in self.alone:
                own = Excess(excess, self.scores[name].held, fold)
                found.alone[name][chunk] = held_out_p_values(own, self.alone[name], screen).used
        both = Excess(total / self.spread, self.holdout_evidence, fold)
        found.evidence[chunk] = both.audited.mean(0)
        p_values = held_out_p_values(both, self.tail, screen)
        found.used[chunk], found.conformal[chunk] = p_values.used, p_values.conformal
        if found.unscreened is not None:
            found.unscreened[chunk] = held_out_p_values(both, self.tail).used

    def _among_themselves(self, images: Parts, found: "Judged", chunk: slice, _: np.ndarray | None) -> None:
        """Judge images that calibrate themselves, each by the fold that has not seen it, and by an assumed tail."""
        total = np.zeros(())
        for name, predict in self._predictors.items():
            expected = _of_own_fold(predict, images[name])
            excess = images[name].score - expected
            found.expected[name][chunk], found.excess[name][chunk] = expected, excess
            if name in self.added:
                total = total + _counted(name, self.scores[name], excess)
            if name in self.alone:
                found.alone[name][chunk] = self.assumed[name].p_values(excess)
        found.evidence[chunk] = total / self.spread
        found.used[chunk] = self.assumed[None].p_values(found.evidence[chunk])
        found.conformal[chunk] = np.nan


class Judged:
    """What is known of n images, filled in a chunk at a time.

    Attributes:
        calibration: by which they are judged.
        expected: expected score by each part, (n,): the mean over folds, or that of its own fold if it is cross-fitted.
        excess: excess over it by each part, (n,).
        evidence: weighted sum of the excess of all parts, in units of its spread, (n,).
        outside: mask of the images outside the range of complexity that was fitted, or without a feature that those
            images have, such as the score of a reference audit, (n,).
        used, conformal: p-values, (n,): those that decide, and those from counting held-out images.
        unscreened: p-values without the screen, (n,), 1 without a score; None without a screen.
        alone: p-values by one part of the evidence alone, (n,), by the part's name.
    """

    def __init__(self, calibration: Calibration, count: int, screened: bool):
        self.calibration = calibration
        self.expected = {name: np.empty(count) for name in calibration.scores}
        self.excess = {name: np.empty(count) for name in calibration.scores}
        self.alone = {name: np.empty(count) for name in calibration.alone}
        self.evidence, self.used, self.conformal = np.empty(count), np.empty(count), np.empty(count)
        self.outside = np.empty(count, bool)
        self.unscreened = np.empty(count) if screened else None

    @property
    def first_expected(self) -> np.ndarray:
        """The expected score by the first part, (n,)."""
        return next(iter(self.expected.values()))


def calibrate(
    known: Parts,
    usable: Usable,
    audited: Audited,
    held_out: bool = True,
    screened: np.ndarray | None = None,
    alone: Collection[str] = (),
    aside: Collection[str] = (),
    crowd: Callable[[], Parts] | None = None,
) -> Calibration | None:
    """Fit the expected scores of every image, and what p-values rest on.

    Args:
        known: the held-out images, or the audited ones or a sample of them if they calibrate themselves, with one score
            or several by name. Features of the first decide which images are outside the range.
        usable: the images among them that calibrate.
        audited: the images that will be judged.
        held_out: whether the known images are held-out ones.
        screened: mask of the usable images that pass a screen, (m,); None without a screen.
        alone: names of scores whose own p-values are wanted beside those of the evidence.
        aside: names of scores that are calibrated, but added up only where there is no other.
        crowd: returns distinct audited images, or a sample of them, whose tail counts where few images are held out
            (`tails`); None where not every audited image is measured.

    Returns:
        None if fewer than `MIN_IMAGES` images can calibrate.
    """
    rows = usable.rows
    if len(rows) < MIN_IMAGES:
        return None
    learnt, left_out = _learn_parts(known, audited, rows, held_out)
    added = _added(learnt, aside, left_out)
    fitted = next(iter(known.values())).features[rows]
    total = sum((_counted(name, learnt[name], learnt[name].held) for name in added), np.zeros(()))
    spread = spread_of(total) or 1.0
    evidence, wanted = total / spread, [name for name in alone if name in learnt]
    excess: dict[str | None, np.ndarray] = {None: evidence}
    excess |= {name: learnt[name].held for name in wanted}
    low, high, beside = np.nanmin(fitted, 0), np.nanmax(fitted, 0), None
    if held_out and crowd is not None and wants_audited(len(rows)):
        beside = _evidence_of_crowd(crowd(), learnt, added, (low, high)) / spread
    assumed = {} if held_out else {name: AssumedTail.of(each) for name, each in excess.items()}
    return Calibration(
        method="held-out" if held_out else "cross-fitted",
        scores=learnt,
        left_out=left_out,
        added=tuple(added),
        known=usable,
        low=low,
        high=high,
        spread=spread,
        holdout_evidence=evidence if held_out else None,
        tail=fit_tail(evidence, beside) if held_out else None,
        alone={name: fit_tail(learnt[name].held) if held_out else None for name in wanted},
        assumed=assumed,
        screened=screened,
        audited=audited,
    )


def judge_images(
    audited: ScoredImages | Parts,
    holdout: ScoredImages | Parts | None = None,
    alone: Collection[str] = (),
    alike: np.ndarray | None = None,
    aside: Collection[str] = (),
    passing: Passing | None = None,
) -> Judged | None:
    """Calibrate images in memory by held-out ones, or by themselves without enough of those, and judge them all.

    Args:
        audited: the images, with one score or with several by name.
        holdout: images that the model was not trained on, with the same scores.
        alone, aside: as in `calibrate`.
        alike: mask of the held-out images that look like audited ones, (m,): they do not calibrate.
        passing: result of a screen of the same images; the score of images that do not pass may be -infinity.

    Returns:
        None if the images would calibrate themselves and are fewer than `MIN_IMAGES` distinct ones.
    """
    judged = {"score": audited} if isinstance(audited, ScoredImages) else audited
    held = {"score": holdout} if isinstance(holdout, ScoredImages) else holdout
    first, every, found = next(iter(judged.values())), Audited.of(judged), None
    if held:
        known = next(iter(held.values()))
        chosen = usable(known, np.isin(known.content, first.content), alike)
        screened = None if passing is None else passing.held
        crowd = None if passing else lambda: {name: some[some.distinct] for name, some in judged.items()}
        found = calibrate(held, chosen, every, screened=screened, alone=alone, aside=aside, crowd=crowd)
    if found is None:
        found, passing = calibrate(judged, usable(first), every, held_out=False, alone=alone, aside=aside), None
    return None if found is None else found.judge(judged, None if passing is None else passing.audited)


def _learn_parts(
    known: Parts, audited: Audited, rows: np.ndarray, held_out: bool
) -> tuple[dict[str, Learnt], dict[str, str]]:
    """Fit the scores that make the evidence, and say why others do not."""
    parts, left_out = dict[str, Learnt](), dict[str, str]()
    for name, images in known.items():
        if np.isnan(images.score[rows]).any() or not audited.complete[name]:
            left_out[name] = "it was not measured in every image"
            continue
        part = learn(images, rows, held_out)
        if parts and not part.residual_spread > 0:
            left_out[name] = NO_SPREAD
        else:
            parts[name] = part
    return parts, left_out


def _added(learnt: Mapping[str, Learnt], aside: Collection[str], left_out: dict[str, str]) -> list[str]:
    """Return the scores that are added up: those with a spread, if any has one, and of these others than `aside`.

    `left_out` gets the reason for each of the others.
    """
    varying = [name for name, part in learnt.items() if part.residual_spread > 0] or list(learnt)
    added = [name for name in varying if name not in aside] or varying
    reasons = {name: NO_SPREAD if name not in varying else "the others tell more without it" for name in learnt}
    left_out |= {name: reason for name, reason in reasons.items() if name not in added}
    return added


def weight_of(name: str) -> float:
    """Return the weight of a part in the sum."""
    return WEIGHTS.get(name, 1.0)


def _counted(name: str, part: Learnt, excess: np.ndarray) -> np.ndarray:
    """Return the excess of some images by a part as it counts in the sum."""
    return weight_of(name) * excess / part.unit


def _evidence_of_crowd(
    crowd: Parts, learnt: Mapping[str, Learnt], added: Collection[str], complexity: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return the summed excess of audited images in the range of complexity, each by the regression of its own fold.

    That is how held-out images have theirs, so that innocent ones have the same distribution.
    """
    total = np.zeros(())
    for name in added:
        some = crowd[name]
        expected = _of_own_fold(learnt[name].predictors(len(some.score)), some)
        total = total + _counted(name, learnt[name], some.score - expected)
    features = next(iter(crowd.values())).features[:]
    return total[~((features < complexity[0]) | (features > complexity[1])).any(1)]


def _of_own_fold(predict: "list[Predict]", images: ScoredImages) -> np.ndarray:
    """Predict each image by the regression of its own fold, (n,)."""
    fold, expected = deal_folds(images.content), np.empty(len(images.score))
    for number, one in enumerate(predict):
        own = np.flatnonzero(fold == number)
        expected[own] = one(images.features[own])
    return expected
