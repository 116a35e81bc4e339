"""Scores become findings: one row per image, calibrated, with its duplicates."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration import Calibration, Images, calibrate
from volgrowth.analysis.complexity import regressors
from volgrowth.analysis.conformal import FDR, q_values
from volgrowth.analysis.duplicates import clusters, identical
from volgrowth.errors import OutputError
from volgrowth.records import FINDINGS, Status

Columns = dict[str, pa.Array]


@dataclass(frozen=True)
class Analysis:
    """Findings of the audited images, of the held-out ones if any, and the calibrations behind them."""

    findings: pa.Table
    holdout: pa.Table | None
    calibration: Calibration | None
    loss_calibration: Calibration | None


@dataclass(frozen=True)
class Reference:
    """The same rows as measured under a reference model, which adds its score to the regressors."""

    scores: pa.Table
    holdout: pa.Table | None


def analyse(scores: pa.Table, holdout_scores: pa.Table | None = None, reference: Reference | None = None) -> Analysis:
    """Findings from tables like `records.SCORES`. Values are null where a row was not scored or not calibrated."""
    audited = _Scored(scores, reference.scores if reference else None)
    holdout = None
    if holdout_scores is not None:
        holdout = _Scored(holdout_scores, reference.holdout if reference else None)
    growth = _calibrate(audited, holdout, "growth", 1)
    loss = _calibrate(audited, holdout, "loss", -1) if audited.measured("loss") else None
    held_findings = None
    if holdout is not None:
        expected = growth.holdout_expected if growth else None
        held_findings = _findings(holdout, {} if expected is None else _expectation(holdout, expected))
    return Analysis(_findings(audited, _calibrated(audited, growth, loss)), held_findings, growth, loss)


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

    def measured(self, column: str) -> bool:
        return self.table.num_rows > 0 and self.table.column(column).null_count == 0

    def images(self, column: str, sign: int) -> Images:
        """With sign * column as the score, so that high is suspicious."""
        features = regressors(self.table)
        if self.reference is not None:
            features = np.column_stack([features, self.reference.column(column).to_numpy()])
        return Images(features, sign * self.table.column(column).to_numpy(), self.content)

    def full(self, values: np.ndarray) -> pa.Array:
        """Values of the scored rows among all rows, null elsewhere."""
        return pa.array(values).take(pa.array(np.cumsum(self.mask) - 1, mask=~self.mask))


def _calibrate(audited: _Scored, holdout: _Scored | None, column: str, sign: int) -> Calibration | None:
    return calibrate(audited.images(column, sign), holdout.images(column, sign) if holdout else None)


def _calibrated(audited: _Scored, growth: Calibration | None, loss: Calibration | None) -> Columns:
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
    cluster, count = clusters(images.scores)
    known = {
        **{name: images.scores.column(name) for name in ("row", "image_id", "growth")},
        "cluster": pa.array(cluster),
        "copies": pa.array(count.astype(np.int32)),
        "identical": pa.array(identical(images.scores)),
        **columns,
    }
    rows = len(images.scores)
    return pa.table([known.get(field.name, pa.nulls(rows, field.type)) for field in FINDINGS], schema=FINDINGS)
