"""Findings from scores: one row per image, calibrated, with its duplicates.

A cascade leaves most rows with a screen and no other score. The first row of a distinct image with a score decides its
test, so that only that row is ever measured, and the image's other rows share its p-value. An image that does not pass
the screen has the p-value 1 in growth and in loss, and so has a sampled row, which is measured only to bound the loss.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.complexity import regressors
from volgrowth.analysis.calibration.error_rates import q_values
from volgrowth.analysis.calibration.expected_scores import (
    MIN_IMAGES,
    Calibration,
    Passing,
    ScoredImages,
    calibrate,
    pass_screen,
)
from volgrowth.analysis.calibration.screening import Screening
from volgrowth.analysis.distinct import identical_rows
from volgrowth.analysis.duplicates import duplicate_clusters
from volgrowth.analysis.judging import is_flagged
from volgrowth.errors import DataError, OutputError
from volgrowth.records import FINDINGS, Status

Columns = dict[str, pa.Array]


@dataclass(frozen=True)
class Analysis:
    """Findings and the calibration behind them.

    Attributes:
        findings: of the audited images, with the columns of `records.FINDINGS`.
        holdout: the same of the held-out images; None without any.
        calibration: of growth; None if there are too few images to calibrate.
        screening: of a cascade; None of a whole audit.
    """

    findings: pa.Table
    holdout: pa.Table | None
    calibration: Calibration | None
    screening: Screening | None = None


@dataclass(frozen=True)
class Reference:
    """Scores of the same rows under a reference model, whose growth becomes one more regressor."""

    scores: pa.Table
    holdout: pa.Table | None


def analyse(
    scores: pa.Table,
    holdout_scores: pa.Table | None = None,
    reference: Reference | None = None,
    screen_share: float | None = None,
) -> Analysis:
    """Calibrate scores and find duplicates.

    Args:
        scores: of the audited images, with the columns of `records.SCORES`.
        holdout_scores: of the held-out images.
        reference: scores of the same rows under a reference model.
        screen_share: share of the held-out images that passes the screen of a cascade; None for a whole audit.

    Returns:
        The findings; their values are null in rows that were not scored or not calibrated.

    Raises:
        DataError: too few held-out images are usable for a cascade.
    """
    audited = _Scored(scores, reference.scores if reference else None)
    holdout = None
    if holdout_scores is not None:
        holdout = _Scored(holdout_scores, reference.holdout if reference else None)
    passed = None if screen_share is None else _screen(audited, holdout, screen_share)
    growth = _calibrate(audited, holdout, "growth", 1, passed)
    whole = holdout if passed and holdout else audited  # a cascade measures few of the audited rows
    loss = _calibrate(audited, holdout, "loss", -1, passed) if whole.measured("loss") else None
    held_findings = None
    if holdout is not None:
        expected = growth.holdout_expected if growth else None
        held_findings = _findings(holdout, {} if expected is None else _expectation(holdout, expected))
    findings = _findings(audited, _calibrated(audited, growth, loss, passed))
    screening = _screening(audited, findings, growth, passed) if growth and passed else None
    return Analysis(findings, held_findings, growth, screening)


def _screen(audited: "_Scored", holdout: "_Scored | None", share: float) -> Passing:
    """Decide which images pass the screen."""
    passed = None if holdout is None else pass_screen(audited.images("screen", 1), holdout.images("screen", 1), share)
    if passed is None:
        raise DataError(
            f"fewer than {MIN_IMAGES} held-out images could be scored and are not audited themselves, too few for a "
            f"cascade: hold out more, or audit without --cascade"
        )
    return passed


def _screening(audited: "_Scored", findings: pa.Table, growth: Calibration, passed: Passing) -> Screening:
    """Describe the screening of the distinct images within the calibration's range, by their first rows."""
    assert growth.unscreened_p_value is not None
    first = audited.first
    judged = first[~growth.outside[first]]
    flagged = as_mask(findings.filter(pa.array(audited.mask))["memorized"])
    return Screening(
        row=audited.table["row"].to_numpy()[judged],
        passed=passed.audited[judged],
        measured=audited.table["growth"].is_valid().to_numpy()[judged],
        flagged=flagged[judged],
        p_value=growth.unscreened_p_value[judged],
        tests=len(first),
    )


def check_columns(findings: pa.Table, url: str, *names: str) -> None:
    """Check that the findings of an audit have some columns.

    Args:
        findings: read from the audit.
        url: of the audit.
        *names: of the columns that are needed.

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
    """A table of scores: which of its rows were scored, and the arrays of those that calibration needs."""

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
        """Return the scored rows with sign * column as the score, so that high is suspicious; NaN where it is null."""
        features = regressors(self.table)
        if self.reference is not None:
            features = np.column_stack([features, self.reference.column(column).to_numpy()])
        return ScoredImages(features, sign * self.table.column(column).to_numpy(), self.content)

    def full(self, values: np.ndarray) -> pa.Array:
        """Return values of the scored rows as a column of all rows; null in the other rows, and where they are NaN."""
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
    """Return the columns of the audited images' findings that calibration gives."""
    if growth is None:
        return {}
    columns = _expectation(audited, growth.expected)
    columns["outside_range"] = audited.full(growth.outside)
    if loss is not None:
        columns["excess_loss"] = audited.full(audited.images("loss", 1).score + loss.expected)
    for name, prefix, calibration in (("memorized", "", growth), ("precursor", "loss_", loss)):
        if calibration is not None:
            # images outside the range get p = 1 before the adjustment: afterwards they would loosen it for all others
            p_value = np.where(growth.outside, 1.0, calibration.p_value)
            if passed:
                p_value = p_value[audited.first][audited.copy_of]
            q_value = q_values(p_value, audited.content)
            columns[f"{prefix}p_value"] = audited.full(p_value)
            columns[f"{prefix}q_value"] = audited.full(q_value)
            columns[f"{prefix}q_value_by"] = audited.full(q_values(p_value, audited.content, "by"))
            columns[name] = audited.full(is_flagged(q_value))
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
