"""Scores become findings: one row per image, calibrated, with its copies."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration import Calibration, Images, calibrate
from volgrowth.analysis.complexity import regressors
from volgrowth.analysis.conformal import FDR, q_values
from volgrowth.records import FINDINGS, Status

Columns = dict[str, pa.Array]


@dataclass(frozen=True)
class Analysis:
    """Findings of the audited images, of the held-out ones if any, and the calibrations behind them."""

    findings: pa.Table
    holdout: pa.Table | None
    calibration: Calibration | None
    loss_calibration: Calibration | None


def analyse(scores: pa.Table, holdout_scores: pa.Table | None = None) -> Analysis:
    """Findings from tables like `records.SCORES`. Values are null where a row was not scored or not calibrated."""
    growth = _calibrate(scores, holdout_scores, "growth", 1)
    loss = None
    if pc.any(scores.column("loss").is_valid()).as_py():
        loss = _calibrate(scores, holdout_scores, "loss", -1)
    known = _audited_columns(scores, growth, loss)
    holdout = None
    if holdout_scores is not None:
        expected = growth.holdout_expected if growth else None
        holdout = _findings(holdout_scores, _expectation(holdout_scores, expected))
    return Analysis(_findings(scores, known), holdout, growth, loss)


def _calibrate(scores: pa.Table, holdout_scores: pa.Table | None, column: str, sign: int) -> Calibration | None:
    """Calibrate sign * column, so that high is suspicious."""
    audited = _images(scores, column, sign)
    return calibrate(audited, None if holdout_scores is None else _images(holdout_scores, column, sign))


def _audited_columns(scores: pa.Table, growth: Calibration | None, loss: Calibration | None) -> Columns:
    """The columns of the audited images' findings that calibration gives, of full length."""
    if growth is None:
        return {}
    scored, content = _scored(scores), _images(scores, "growth", 1).content
    columns = _expectation(scores, growth.expected)
    columns["outside_range"] = _full(scored, growth.outside)
    if loss is not None:
        columns["excess_loss"] = _full(scored, _images(scores, "loss", 1).score + loss.expected)
    flags = (("memorized", "", growth), ("precursor", "loss_", loss))
    for name, prefix, calibration in flags:
        if calibration is not None and calibration.p_value is not None:
            q_value = q_values(calibration.p_value, content)
            columns[f"{prefix}p_value"] = _full(scored, calibration.p_value)
            columns[f"{prefix}q_value"] = _full(scored, q_value)
            columns[name] = _full(scored, (q_value <= FDR) & ~growth.outside)
    return columns


def copies(scores: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(cluster, copies) of each row: the first row with the same pixels, and how many rows have them.

    Rows without an image are clusters of their own.
    """
    hashes = scores.column("content_hash")
    known = hashes.is_valid().to_numpy()
    cluster = scores.column("row").to_numpy().copy()
    count = np.ones(len(cluster), cluster.dtype)
    values = hashes.drop_null().to_numpy()
    _, first, inverse, counts = np.unique(values, return_index=True, return_inverse=True, return_counts=True)
    cluster[known], count[known] = cluster[known][first][inverse], counts[inverse]
    return cluster, count


def _scored(scores: pa.Table) -> np.ndarray:
    return np.array(scores.column("status").to_pylist()) == Status.OK


def _images(scores: pa.Table, column: str, sign: int) -> Images:
    table = scores.filter(pa.array(_scored(scores)))
    return Images(regressors(table), sign * table.column(column).to_numpy(), table.column("content_hash").to_numpy())


def _full(scored: np.ndarray, values: np.ndarray) -> pa.Array:
    """Values of the scored rows among all rows, null elsewhere."""
    index = np.cumsum(scored) - 1
    return pa.array(values).take(pa.array(index, mask=~scored))


def _expectation(scores: pa.Table, expected: np.ndarray | None) -> Columns:
    if expected is None:
        return {}
    expected_growth = _full(_scored(scores), expected)
    growth = scores.column("growth").combine_chunks()
    return {"expected_growth": expected_growth, "excess_growth": pc.subtract(growth, expected_growth)}


def _findings(scores: pa.Table, columns: Columns) -> pa.Table:
    cluster, count = copies(scores)
    known = {
        **{name: scores.column(name) for name in ("row", "image_id", "growth")},
        "cluster": pa.array(cluster),
        "copies": pa.array(count.astype(np.int32)),
        **columns,
    }
    return pa.table([known.get(field.name, pa.nulls(len(scores), field.type)) for field in FINDINGS], schema=FINDINGS)
