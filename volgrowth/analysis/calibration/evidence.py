"""Calibration of one score or of several: the evidence of an image, its p-value, and a bound on false flags.

Each part of the evidence is a score, high where it is suspicious, less what an image of that complexity shows anyway,
in units of the held-out images' spread (`expected_scores`). The evidence is the sum of the parts, in units of its own
spread among the held-out images. No part has a weight of its own: sums weighted by the held-out covariance found no
more on the bench (docs/detection.md), and weights that were fitted to the audited set would need to know what is
memorized in it.

A part that no image was measured in, or that hardly varies among the images it is calibrated on, is left out, with
the reason. A score may also be calibrated and left aside, where others tell more without it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from volgrowth.analysis.calibration.error_rates import tail_p_values
from volgrowth.analysis.calibration.expected_scores import (
    MIN_IMAGES,
    Excess,
    Expectation,
    Learnt,
    Passing,
    ScoredImages,
    learn,
    spread_of,
    usable,
)
from volgrowth.analysis.calibration.held_out import differing_bulk
from volgrowth.analysis.calibration.p_values import PValues, held_out_p_values
from volgrowth.analysis.calibration.tails import Tail, fit_tail
from volgrowth.analysis.chunks import for_chunks

REPRODUCED = 5.0
"""Evidence that is taken for that of a clearly memorized image. In the worst draw on any model of docs/detection.md
three quarters of the images that samples reproduce have more than 3.2."""

NO_SPREAD = "most images show exactly what is expected of them, so that it has no spread"

Parts = Mapping[str, ScoredImages]


@dataclass(frozen=True)
class Calibration:
    """The evidence of n audited images and what it rests on.

    Attributes:
        method: `held-out`, or `cross-fitted` without enough held-out images.
        scores: expectation of each score, by its name; the first is the score that an audit calls growth.
        left_out: the reason for each score that the evidence is not made of, by its name.
        evidence: summed excess of all parts, in units of its spread, of each audited image, (n,).
        holdout_evidence: the same of each distinct held-out image of `rows`, (m,); None without any.
        rows: positions of the distinct images that calibrate, in the held-out set, or the audited one if cross-fitted.
        shared: number of distinct held-out images that were left out because they are audited as well.
        alike: number of those that were left out because they look like an audited one.
        bulk: difference of audited and held-out images where evidence is low (`held_out.differing_bulk`); None if they
            can pass for one kind, or without held-out images, or if a screen let only some be measured.
        outside: mask of the audited images outside the range of complexity that was fitted, (n,).
        p_values: of each audited image: against held-out images, otherwise of an assumed tail.
        tail: of the held-out images' evidence; None if it could not be fitted, or without held-out images.
        unscreened_p_value: p-values without the screen, (n,), 1 without a score; None without a screen.
        part_p_values: p-values by one part of the evidence alone, (n,), by the part's name: of the parts asked for.
    """

    method: Literal["held-out", "cross-fitted"]
    scores: dict[str, Expectation]
    left_out: dict[str, str]
    evidence: np.ndarray
    holdout_evidence: np.ndarray | None
    rows: np.ndarray
    shared: int
    alike: int
    bulk: tuple[float, float] | None
    outside: np.ndarray
    p_values: PValues
    tail: Tail | None = None
    unscreened_p_value: np.ndarray | None = None
    part_p_values: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def main(self) -> Expectation:
        """The expectation of the first score."""
        return next(iter(self.scores.values()))

    @property
    def parts(self) -> dict[str, Expectation]:
        """Expectations of the scores that the evidence is made of, by name."""
        return {name: score for name, score in self.scores.items() if name not in self.left_out}

    @property
    def p_value(self) -> np.ndarray:
        """The p-values that decide, (n,)."""
        return self.p_values.used

    @property
    def smallest_p_value(self) -> float:
        """The p-value of a clearly memorized image: one of evidence `REPRODUCED`, or beyond all held-out ones."""
        beyond_all = 1 / (1 + len(self.rows))
        return (
            beyond_all if self.tail is None else min(beyond_all, float(self.tail.p_values(np.array([REPRODUCED]))[0]))
        )


def calibrate(
    audited: ScoredImages | Parts,
    holdout: ScoredImages | Parts | None = None,
    passing: Passing | None = None,
    alone: Collection[str] = (),
    alike: np.ndarray | None = None,
    aside: Collection[str] = (),
) -> Calibration | None:
    """Fit the expected scores of every image, add up the evidence, and compute p-values.

    Args:
        audited: the images to judge, with one score or with several by name. Features of the first decide which
            images are outside the range.
        holdout: images that the model was not trained on, with the same scores. With fewer than `MIN_IMAGES` usable
            ones the audited images calibrate themselves.
        passing: result of a screen of the same images; the score of images that do not pass may be -infinity.
        alone: names of scores whose own p-values are wanted beside those of the evidence.
        alike: mask of the held-out images that look like audited ones, (m,): they do not calibrate.
        aside: names of scores that are calibrated, but added up only where there is no other.

    Returns:
        None if the audited images would calibrate themselves and are fewer than `MIN_IMAGES` distinct ones.
    """
    judged = audited if isinstance(audited, Mapping) else {"score": audited}
    held = {"score": holdout} if isinstance(holdout, ScoredImages) else holdout
    first, known = next(iter(judged.values())), held or judged
    chosen = usable(first, next(iter(held.values())) if held else None, alike)
    rows = chosen.rows
    if len(rows) < MIN_IMAGES:
        return None if held is None else calibrate(judged, alone=alone, aside=aside)
    learnt, left_out = _learn_parts(judged, known, rows)
    added = _added(learnt, aside, left_out)
    wanted = [name for name in alone if name in learnt]
    outside = _outside(first, next(iter(known.values())).features[rows])
    if held is None:
        found = _judge_themselves(judged, learnt, added, rows, wanted)
    else:
        found = _judge(judged, learnt, added, passing, wanted)
    return Calibration(
        method="cross-fitted" if held is None else "held-out",
        scores={name: found.expectation(name, part, held is None) for name, part in learnt.items()},
        left_out=left_out,
        evidence=found.evidence,
        holdout_evidence=found.held,
        rows=rows,
        shared=chosen.shared,
        alike=chosen.alike,
        bulk=None if found.held is None or passing else _apart(first, found, outside),
        outside=outside,
        p_values=PValues(found.used, found.conformal),
        tail=found.tail,
        unscreened_p_value=found.unscreened,
        part_p_values=found.alone,
    )


def _apart(images: ScoredImages, found: "_Judged", outside: np.ndarray) -> tuple[float, float] | None:
    """Compare the distinct images in the calibration's range with the held-out ones where evidence is low."""
    assert found.held is not None
    rows = images.distinct
    return differing_bulk(found.evidence[rows[~outside[rows]]], found.held)


def _outside(images: ScoredImages, fitted: np.ndarray) -> np.ndarray:
    """Return a mask of the images that are outside the range of the features (m, features) that were fitted, (n,)."""
    low, high = np.nanmin(fitted, 0), np.nanmax(fitted, 0)
    outside = np.empty(len(images.score), bool)

    def compare(chunk: slice) -> None:
        features = images.features[chunk]
        outside[chunk] = ((features < low) | (features > high)).any(1)

    for_chunks(len(outside), compare)
    return outside


class _Judged:
    """What is known of n audited images, filled in a chunk at a time.

    Attributes:
        expected: expected score by each part, (n,).
        excess: mean excess by each part, (n,).
        evidence: (n,).
        used, conformal: p-values, (n,).
        unscreened: p-values without the screen, (n,); None without a screen.
        alone: p-values by one part alone, (n,), by its name.
        held: evidence of the held-out images, (m,); None without any.
        tail: of the held-out images' evidence.
    """

    def __init__(self, count: int, parts: Collection[str], alone: Collection[str], screened: bool):
        self.expected = {name: np.empty(count) for name in parts}
        self.excess = {name: np.empty(count) for name in parts}
        self.alone = {name: np.empty(count) for name in alone}
        self.evidence, self.used, self.conformal = np.empty(count), np.empty(count), np.empty(count)
        self.unscreened = np.empty(count) if screened else None
        self.held: np.ndarray | None = None
        self.tail: Tail | None = None

    def expectation(self, name: str, part: Learnt, own: bool) -> Expectation:
        held, expected = (np.empty(0), None) if own else (part.held, part.expected)
        return Expectation(self.expected[name], self.excess[name], held, expected, part.r2, part.residual_spread)


def _learn_parts(audited: Parts, known: Parts, rows: np.ndarray) -> tuple[dict[str, Learnt], dict[str, str]]:
    """Fit the scores that make the evidence, and say why others do not."""
    parts, left_out = dict[str, Learnt](), dict[str, str]()
    for name, images in audited.items():
        if np.isnan(known[name].score[rows]).any() or np.isnan(images.score).any():
            left_out[name] = "it was not measured in every image"
            continue
        part = learn(known[name], rows)
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


def _judge(
    audited: Parts,
    learnt: Mapping[str, Learnt],
    added: Collection[str],
    passing: Passing | None,
    alone: Collection[str],
) -> _Judged:
    """Judge images against held-out ones. What belongs to each fold is kept for one chunk of images at a time."""
    first = next(iter(audited.values()))
    count, fold = len(first.score), next(iter(learnt.values())).fold
    found = _Judged(count, learnt, alone, passing is not None)
    units = {name: part.residual_spread or 1.0 for name, part in learnt.items()}
    held = sum((learnt[name].held / units[name] for name in added), np.zeros(()))
    spread = spread_of(held) or 1.0
    found.held = held = held / spread
    found.tail = fit_tail(held)
    tails = {name: fit_tail(learnt[name].held) for name in alone}
    by_fold = {name: part.predictors(audited[name].features, count) for name, part in learnt.items()}

    def judge(chunk: slice) -> None:
        passed = None if passing is None else Passing(passing.audited[chunk], passing.held)
        total = np.zeros(())
        for name, predict in by_fold.items():
            features = audited[name].features[chunk]
            expected = np.stack([one(features) for one in predict])
            excess = audited[name].score[chunk] - expected
            found.expected[name][chunk], found.excess[name][chunk] = expected.mean(0), excess.mean(0)
            if name in added:
                total = total + excess / units[name]
            if name in alone:
                own = Excess(excess, learnt[name].held, fold)
                found.alone[name][chunk] = held_out_p_values(own, tails[name], passed).used
        both = Excess(total / spread, held, fold)
        found.evidence[chunk] = both.audited.mean(0)
        p_values = held_out_p_values(both, found.tail, passed)
        found.used[chunk], found.conformal[chunk] = p_values.used, p_values.conformal
        if found.unscreened is not None:
            found.unscreened[chunk] = held_out_p_values(both, found.tail).used

    for_chunks(count, judge)
    return found


def _judge_themselves(
    audited: Parts, learnt: Mapping[str, Learnt], added: Collection[str], rows: np.ndarray, alone: Collection[str]
) -> _Judged:
    """Judge images that calibrate themselves, `rows` the distinct ones, by an assumed tail."""
    found = _Judged(len(next(iter(audited.values())).score), learnt, alone, False)
    for name, part in learnt.items():
        found.expected[name] = part.expected
        found.excess[name] = audited[name].score - part.expected
    total = sum((found.excess[name] / (learnt[name].residual_spread or 1.0) for name in added), np.zeros(()))
    found.evidence = total / (spread_of(total[rows]) or 1.0)
    found.used, found.conformal = tail_p_values(found.evidence, rows), np.full(len(total), np.nan)
    found.alone = {name: tail_p_values(found.excess[name], rows) for name in alone}
    return found
