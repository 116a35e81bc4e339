"""Scores become findings: one row per image, calibrated, with its copies."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from volgrowth.analysis.calibration import Calibration, Images, calibrate
from volgrowth.analysis.complexity import regressors
from volgrowth.records import FINDINGS, Status


@dataclass(frozen=True)
class Analysis:
    """Findings of the audited images, of the held-out ones if any, and the calibration behind them."""

    findings: pa.Table
    holdout: pa.Table | None
    calibration: Calibration | None


def analyse(scores: pa.Table, holdout_scores: pa.Table | None = None) -> Analysis:
    """Findings from tables like `records.SCORES`. Values are null where a row was not scored or not calibrated."""
    scored = _scored(scores)
    images = _images(scores, scored)
    if holdout_scores is None:
        calibration = calibrate(images)
        return Analysis(_findings(scores, scored, calibration.expected if calibration else None), None, calibration)
    holdout_scored = _scored(holdout_scores)
    calibration = calibrate(images, _images(holdout_scores, holdout_scored))
    return Analysis(
        findings=_findings(scores, scored, calibration.expected if calibration else None),
        holdout=_findings(holdout_scores, holdout_scored, calibration.holdout_expected if calibration else None),
        calibration=calibration,
    )


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


def _images(scores: pa.Table, scored: np.ndarray) -> Images:
    table = scores.filter(pa.array(scored))
    return Images(regressors(table), table.column("growth").to_numpy(), table.column("content_hash").to_numpy())


def _findings(scores: pa.Table, scored: np.ndarray, expected_of_scored: np.ndarray | None) -> pa.Table:
    expected = np.full(len(scored), np.nan)
    if expected_of_scored is not None:
        expected[scored] = expected_of_scored
    growth = scores.column("growth").cast(pa.float64()).to_numpy()
    cluster, count = copies(scores)
    known = {
        "row": scores.column("row"),
        "image_id": scores.column("image_id"),
        "growth": scores.column("growth"),
        "expected_growth": pa.array(expected, from_pandas=True),
        "excess_growth": pa.array(growth - expected, from_pandas=True),
        "cluster": pa.array(cluster),
        "copies": pa.array(count.astype(np.int32)),
    }
    columns = [known.get(field.name, pa.nulls(len(scores), field.type)) for field in FINDINGS]
    return pa.table(columns, schema=FINDINGS)
