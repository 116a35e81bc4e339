"""Scores become findings: one row per image, calibrated, with its duplicates.

A cascade leaves most rows with a screen and no other score. The first row of a distinct image decides its test, so that
only that one is ever measured, and copies that are not share its p-value. What does not pass the screen has the p-value
1 in growth and in loss, and so has a sampled row, which is measured only to say what the screen lost.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration.complexity import regressors
from volgrowth.analysis.calibration.error_rates import FDR, q_values
from volgrowth.analysis.calibration.expected_scores import (
    MIN_IMAGES,
    Calibration,
    Passing,
    ScoredImages,
    calibrate,
    pass_screen,
)
from volgrowth.analysis.calibration.screening import Screening
from volgrowth.analysis.duplicates import duplicate_clusters, identical_rows
from volgrowth.errors import DataError, OutputError
from volgrowth.records import FINDINGS, Status

Columns = dict[str, pa.Array]


@dataclass(frozen=True)
class Analysis:
    """Findings of the audited images, of the held-out ones if any, and the calibrations behind them.

    `screening` is that of a cascade.
    """

    findings: pa.Table
    holdout: pa.Table | None
    calibration: Calibration | None
    loss_calibration: Calibration | None
    screening: Screening | None = None


@dataclass(frozen=True)
class Reference:
    """The same rows as measured under a reference model, which adds its score to the regressors."""

    scores: pa.Table
    holdout: pa.Table | None


def analyse(
    scores: pa.Table,
    holdout_scores: pa.Table | None = None,
    reference: Reference | None = None,
    screen_share: float | None = None,
) -> Analysis:
    """Findings from tables like `records.SCORES`. Values are null where a row was not scored or not calibrated.

    Args:
        screen_share: of a cascade: the share of the held-out images that passes its screen.

    Raises:
        DataError: too few held-out images are usable for a cascade.
    """
    audited = _Scored(scores, reference.scores if reference else None)
    holdout = None
    if holdout_scores is not None:
        holdout = _Scored(holdout_scores, reference.holdout if reference else None)
    passed = None if screen_share is None else _screen(audited, holdout, screen_share)
    growth = _calibrate(audited, holdout, "growth", 1, passed)
    whole = holdout if passed and holdout else audited  # of a cascade's audited rows few are measured
    loss = _calibrate(audited, holdout, "loss", -1, passed) if whole.measured("loss") else None
    held_findings = None
    if holdout is not None:
        expected = growth.holdout_expected if growth else None
        held_findings = _findings(holdout, {} if expected is None else _expectation(holdout, expected))
    findings = _findings(audited, _calibrated(audited, growth, loss, passed))
    screening = _screening(audited, findings, growth, passed) if growth and passed else None
    return Analysis(findings, held_findings, growth, loss, screening)


def _screen(audited: "_Scored", holdout: "_Scored | None", share: float) -> Passing:
    """What passes the screen."""
    passed = None if holdout is None else pass_screen(audited.images("screen", 1), holdout.images("screen", 1), share)
    if passed is None:
        raise DataError(
            f"fewer than {MIN_IMAGES} held-out images could be scored and are not audited themselves, too few for a "
            f"cascade: hold out more, or audit without --cascade"
        )
    return passed


def _screening(audited: "_Scored", findings: pa.Table, growth: Calibration, passed: Passing) -> Screening:
    """The distinct images within the calibration's range, by their first rows."""
    assert growth.unscreened_p_value is not None
    first = audited.first
    judged = first[~growth.outside[first]]
    flagged = pc.fill_null(findings.filter(pa.array(audited.mask))["memorized"], False).to_numpy()
    return Screening(
        row=audited.table["row"].to_numpy()[judged],
        passed=passed.audited[judged],
        measured=audited.table["growth"].is_valid().to_numpy()[judged],
        flagged=flagged.astype(bool)[judged],
        p_value=growth.unscreened_p_value[judged],
        tests=len(first),
    )


def check_columns(findings: pa.Table, url: str, *names: str) -> None:
    """Refuse the findings of an audit at `url` that lack a column.

    Raises:
        OutputError: an older version wrote them.
    """
    lacking = sorted(set(names) - set(findings.column_names))
    if lacking:
        raise OutputError(
            f"findings in {url} has no column {lacking[0]} (an older version wrote it): delete {url}/_SUCCESS and run "
            f"the same `volgrowth audit` again, which keeps the scores"
        )


class _Scored:
    """A table of scores, which of its rows were scored, and what calibration needs of those."""

    def __init__(self, scores: pa.Table, reference: pa.Table | None):
        self.scores = scores
        mask = pc.equal(scores.column("status"), Status.OK.value)
        self.mask = mask.to_numpy().astype(bool)
        self.table = scores.filter(mask)
        self.reference = None if reference is None else reference.filter(mask)
        self.content = self.table.column("content_hash").to_numpy()
        _, self.first, self.copy_of = np.unique(self.content, return_index=True, return_inverse=True)

    def measured(self, column: str) -> bool:
        return self.table.num_rows > 0 and self.table.column(column).null_count == 0

    def images(self, column: str, sign: int) -> ScoredImages:
        """With sign * column as the score, so that high is suspicious; NaN where it is null."""
        features = regressors(self.table)
        if self.reference is not None:
            features = np.column_stack([features, self.reference.column(column).to_numpy()])
        return ScoredImages(features, sign * self.table.column(column).to_numpy(), self.content)

    def full(self, values: np.ndarray) -> pa.Array:
        """Values of the scored rows among all rows, null elsewhere and where NaN."""
        return pa.array(values, from_pandas=True).take(pa.array(np.cumsum(self.mask) - 1, mask=~self.mask))


def _calibrate(
    audited: _Scored, holdout: _Scored | None, column: str, sign: int, passed: Passing | None
) -> Calibration | None:
    images = audited.images(column, sign)
    if passed:
        images = replace(images, score=np.where(np.isnan(images.score), -np.inf, images.score))
    return calibrate(images, holdout.images(column, sign) if holdout else None, passed)


def _calibrated(
    audited: _Scored, growth: Calibration | None, loss: Calibration | None, passed: Passing | None
) -> Columns:
    """The columns of the audited images' findings that calibration gives, of full length."""
    if growth is None:
        return {}
    columns = _expectation(audited, growth.expected)
    columns["outside_range"] = audited.full(growth.outside)
    if loss is not None:
        columns["excess_loss"] = audited.full(audited.images("loss", 1).score + loss.expected)
    for name, prefix, calibration in (("memorized", "", growth), ("precursor", "loss_", loss)):
        if calibration is not None:
            # taken out before the adjustment: taken out after it they would loosen the rate for all others
            p_value = np.where(growth.outside, 1.0, calibration.p_value)
            if passed:
                p_value = p_value[audited.first][audited.copy_of]
            q_value = q_values(p_value, audited.content)
            columns[f"{prefix}p_value"] = audited.full(p_value)
            columns[f"{prefix}q_value"] = audited.full(q_value)
            columns[f"{prefix}q_value_by"] = audited.full(q_values(p_value, audited.content, "by"))
            columns[name] = audited.full(q_value <= FDR)
    return columns


def _expectation(images: _Scored, expected: np.ndarray) -> Columns:
    expected_growth = images.full(expected)
    growth = images.scores.column("growth").combine_chunks()
    return {"expected_growth": expected_growth, "excess_growth": pc.subtract(growth, expected_growth)}


def _findings(images: _Scored, columns: Columns) -> pa.Table:
    cluster, count = duplicate_clusters(images.scores)
    known = {
        **{name: images.scores.column(name) for name in ("row", "image_id", "growth")},
        "cluster": pa.array(cluster),
        "copies": pa.array(count.astype(np.int32)),
        "identical": pa.array(identical_rows(images.scores)),
        **columns,
    }
    rows = len(images.scores)
    return pa.table([known.get(field.name, pa.nulls(rows, field.type)) for field in FINDINGS], schema=FINDINGS)
