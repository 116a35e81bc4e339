"""Calibration of one score or of several: the evidence of an image, its p-value, and a bound on false flags.

Each part of the evidence is a score, high where it is suspicious, less what an image of that complexity shows anyway,
in units of the held-out images' spread (`expected_scores`). The evidence is the sum of the parts, in units of its own
spread among the held-out images. No part has a weight of its own: sums weighted by the held-out covariance found no
more on the bench (docs/detection.md), and weights that were fitted to the audited set would need to know what is
memorized in it.

A part that no image was measured in, or that hardly varies among the images it is calibrated on, is left out, with
the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from volgrowth.analysis.calibration.error_rates import tail_p_values
from volgrowth.analysis.calibration.expected_scores import (
    MIN_IMAGES,
    Excess,
    Expectation,
    Passing,
    ScoredImages,
    expect,
    spread_of,
    usable,
)
from volgrowth.analysis.calibration.p_values import PValues, held_out_p_values
from volgrowth.analysis.calibration.tails import Tail, fit_tail

REPRODUCED = 5.0
"""Evidence that three quarters of the images that samples reproduce had, or more, in each case of docs/detection.md."""

Parts = Mapping[str, ScoredImages]


@dataclass(frozen=True)
class Calibration:
    """The evidence of n audited images and what it rests on.

    Attributes:
        method: `held-out`, or `cross-fitted` without enough held-out images.
        parts: expectation of each score that the evidence is made of, by its name; the first is the score that an audit
            calls growth.
        left_out: the reason for each score that is not part of the evidence, by its name.
        excess: summed excess of all parts, in units of its spread.
        rows: positions of the distinct images that calibrate, in the held-out set, or the audited one if cross-fitted.
        shared: number of distinct held-out images that were left out because they are audited as well.
        outside: mask of the audited images outside the range of complexity that was fitted, (n,).
        p_values: of each audited image: against held-out images, otherwise of an assumed tail.
        tail: of the held-out images' evidence; None if it could not be fitted, or without held-out images.
        unscreened_p_value: p-values without the screen, (n,), 1 without a score; None without a screen.
    """

    method: Literal["held-out", "cross-fitted"]
    parts: dict[str, Expectation]
    left_out: dict[str, str]
    excess: Excess
    rows: np.ndarray
    shared: int
    outside: np.ndarray
    p_values: PValues
    tail: Tail | None = None
    unscreened_p_value: np.ndarray | None = None

    @property
    def main(self) -> Expectation:
        """The expectation of the first part."""
        return next(iter(self.parts.values()))

    @property
    def evidence(self) -> np.ndarray:
        """Evidence of each audited image, (n,)."""
        return self.excess.mean

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

    @cached_property
    def holdout_evidence(self) -> np.ndarray | None:
        """Evidence of each distinct held-out image of `rows`, (m,); None without any."""
        return None if self.method == "cross-fitted" else self.excess.held


def calibrate(
    audited: ScoredImages | Parts, holdout: ScoredImages | Parts | None = None, passing: Passing | None = None
) -> Calibration | None:
    """Fit the expected scores of every image, add up the evidence, and compute p-values.

    Args:
        audited: the images to judge, with one score or with several by name. Features of the first decide which
            images are outside the range.
        holdout: images that the model was not trained on, with the same scores. With fewer than `MIN_IMAGES` usable
            ones the audited images calibrate themselves.
        passing: result of a screen of the same images; the score of images that do not pass may be -infinity.

    Returns:
        None if the audited images would calibrate themselves and are fewer than `MIN_IMAGES` distinct ones.
    """
    judged = audited if isinstance(audited, Mapping) else {"score": audited}
    held = {"score": holdout} if isinstance(holdout, ScoredImages) else holdout
    first, known = next(iter(judged.values())), held or judged
    rows, shared = usable(first, next(iter(held.values())) if held else None)
    if len(rows) < MIN_IMAGES:
        return None if held is None else calibrate(judged)
    parts, left_out = _expect_parts(judged, held, rows)
    excess = _sum(parts, rows if held is None else None)
    fitted = next(iter(known.values())).features[rows]
    low, high = np.nanmin(fitted, 0), np.nanmax(fitted, 0)
    tail = fit_tail(excess.held) if held else None
    if held is None:
        p_value = tail_p_values(excess.mean, rows)
        p_values = PValues(p_value, np.full(len(p_value), np.nan))
    else:
        p_values = held_out_p_values(excess, tail, passing)
    return Calibration(
        method="cross-fitted" if held is None else "held-out",
        parts=parts,
        left_out=left_out,
        excess=excess,
        rows=rows,
        shared=shared,
        outside=((first.features < low) | (first.features > high)).any(1),
        p_values=p_values,
        tail=tail,
        unscreened_p_value=held_out_p_values(excess, tail).used if passing else None,
    )


def part_p_values(calibration: Calibration, name: str, passing: Passing | None = None) -> np.ndarray:
    """Return p-values of the audited images by one part of the evidence alone, (n,)."""
    excess = calibration.parts[name].excess
    if calibration.method == "cross-fitted":
        return tail_p_values(excess.mean, calibration.rows)
    return held_out_p_values(excess, fit_tail(excess.held), passing).used


def _expect_parts(
    audited: Parts, holdout: Parts | None, rows: np.ndarray
) -> tuple[dict[str, Expectation], dict[str, str]]:
    """Return the expectations of the scores that make the evidence, and why others do not."""
    parts, left_out = dict[str, Expectation](), dict[str, str]()
    for name, images in audited.items():
        held = holdout[name] if holdout else None
        known = (held or images).score[rows]
        if np.isnan(known).any() or np.isnan(images.score).any():
            left_out[name] = "it was not measured in every image"
            continue
        expectation = expect(images, held, rows)
        if parts and not expectation.residual_spread > 0:
            left_out[name] = "most images show exactly what is expected of them, so that it has no spread"
        else:
            parts[name] = expectation
    return parts, left_out


def _sum(parts: Mapping[str, Expectation], own: np.ndarray | None) -> Excess:
    """Add the parts, each in units of its spread, and return the sum in units of its own.

    `own` are the rows whose spread counts where the audited images calibrate themselves.
    """
    varying = [part for part in parts.values() if part.residual_spread > 0] or list(parts.values())
    first = varying[0].excess
    audited = sum((part.excess.audited / (part.residual_spread or 1.0) for part in varying), np.zeros(()))
    held = sum((part.excess.held / (part.residual_spread or 1.0) for part in varying), np.zeros(()))
    spread = spread_of(held if own is None else audited[0, own]) or 1.0
    return replace(first, audited=audited / spread, held=held / spread)
