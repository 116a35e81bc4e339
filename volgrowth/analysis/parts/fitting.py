"""What all rows are judged by, fitted once: to held-out images, or to a sample of the audited ones."""

from collections.abc import Callable

import numpy as np

from volgrowth.analysis.calibration.evidence import Audited, Calibration, calibrate
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES, ScoredImages, Screen, Usable, fit_screen, usable
from volgrowth.analysis.parts.judge import Judge, ScoreTable
from volgrowth.analysis.parts.survey import FULL, PARTS, SAMPLE, Measured, Survey
from volgrowth.errors import DataError

ALONE = ("loss",)
"""Parts of the evidence that have p-values of their own."""
CROWD = 200_000
"""Audited images whose tail is fitted; more would hardly make it narrower."""


def fit_judge(
    survey: Survey,
    holdout: ScoreTable | None,
    sample: Callable[[int], ScoreTable],
    screen_share: float | None,
) -> Judge:
    """Fit what all rows are judged by.

    Args:
        survey: of the audited rows.
        holdout: the held-out rows; None without any.
        sample: returns at most so many distinct audited rows: they calibrate if held-out ones cannot, and their tail
            counts beside that of few held-out ones.
        screen_share: share of the held-out images that passes the screen of a cascade; None for a whole audit.

    Raises:
        DataError: too few held-out images are usable for a cascade.
    """
    cascade, calibration, screen = screen_share is not None, None, None
    held = None if holdout is None else _measured(holdout)
    whole = [each for each in (held, None if cascade else survey.measured) if each is not None]
    names = [name for name in PARTS if name == "growth" or all(each.everywhere(name) for each in whole)]
    aside = () if whole and whole[0].everywhere(FULL) else ("growth",)
    complete = {name: cascade or survey.measured.complete(name) for name in names}
    audited = Audited(survey.measured.rows, complete, survey.flat)
    chosen = None
    if holdout is not None and survey.overlap is not None:
        shared, alike = survey.overlap.shared[holdout.mask], survey.overlap.alike[holdout.mask]
        chosen = usable(holdout.part("growth"), shared, alike, holdout.flat)
    if screen_share is not None:
        screen = _fit_screen(holdout, chosen, screen_share, survey.measured.rows)
    if holdout is not None and chosen is not None:
        parts, screened = {name: holdout.part(name) for name in names}, None if screen is None else screen.held
        crowd = None if cascade else lambda: _judged(sample(CROWD), names)
        calibration = calibrate(parts, chosen, audited, screened=screened, alone=ALONE, aside=aside, crowd=crowd)
    if calibration is None:
        calibration = _fit_to_audited(sample(SAMPLE), names, audited, aside)
    if calibration is not None:
        calibration.left_out.update({name: _why_not(name, whole) for name in PARTS if name not in names})
    return Judge(calibration, tuple(names), screen, "growth" if survey.measured.everywhere("growth") else "screen")


def _fit_screen(holdout: ScoreTable | None, chosen: Usable | None, share: float, count: int) -> Screen:
    """Fit the screen of a cascade."""
    screen = None
    if holdout is not None and chosen is not None:
        screen = fit_screen(holdout.screen(), chosen.rows, share, count)
    if screen is None:
        raise DataError(
            f"fewer than {MIN_IMAGES} held-out images could be scored, do not look like audited ones and are not of "
            f"one colour, too few for a cascade: hold out more, or audit without --cascade"
        )
    return screen


def _fit_to_audited(
    sample: ScoreTable, names: list[str], audited: Audited, aside: tuple[str, ...]
) -> Calibration | None:
    """Calibrate audited images by themselves."""
    parts = {name: sample.part(name) for name in names}
    chosen = usable(parts["growth"], flat=sample.flat)
    return calibrate(parts, chosen, audited, held_out=False, alone=ALONE, aside=aside)


def _judged(rows: ScoreTable, names: list[str]) -> dict[str, ScoredImages]:
    """Return the scores of the rows that are judged."""
    return {name: rows.part(name)[np.flatnonzero(~rows.flat)] for name in names}


def _measured(rows: ScoreTable) -> Measured:
    found = Measured()
    found.add(rows.table)
    return found


def _why_not(column: str, images: list[Measured]) -> str:
    """Say why a column of scores makes no part of the evidence."""
    somewhere = any(each.valid[column] > 0 for each in images)
    return "it was not measured in every image" if somewhere else "the preset does not measure it"
