"""The data-set memorization report for machines: every number that the page shows."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration import Calibration
from volgrowth.analysis.complexity import REGRESSORS
from volgrowth.analysis.conformal import FDR, fewest_flags, rows_needed
from volgrowth.analysis.findings import Analysis
from volgrowth.audit.result import Audit
from volgrowth.config import AuditConfig
from volgrowth.records import Mark, Status


def summarize(audit: Audit, analysis: Analysis, config: AuditConfig, run: dict[str, Any]) -> dict[str, Any]:
    """Summary of scored and analysed images. `run` says how the scores were made: seconds, workers, device."""
    plan, scores = audit.plan, audit.scores
    statuses = _value_counts(scores.column("status"))
    marks = _value_counts(pc.list_flatten(scores.column("marks")))
    evaluations = _sum(scores.column("nfe"))
    if audit.holdout_scores is not None:
        evaluations += _sum(audit.holdout_scores.column("nfe"))
    return {
        "schema_version": plan.schema_version,
        "volgrowth": plan.versions["volgrowth"],
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config_digest": plan.config_digest,
        "model": {**audit.manifest["model"], "dtype": config.dtype},
        "data": audit.manifest["data"],
        "holdout": audit.manifest["holdout"],
        "measure": {**config.measure.model_dump(mode="json"), "evaluations": config.measure.evaluations},
        "counts": {"rows": len(scores), **{status.value: statuses.get(status, 0) for status in Status}},
        "marks": {mark.value: marks.get(mark, 0) for mark in Mark},
        "calibration": _calibration(analysis),
        "detection": _detection(analysis),
        "duplicates": _duplicates(analysis),
        "run": {**run, "evaluations": evaluations},
        "versions": plan.versions,
    }


def _calibration(analysis: Analysis) -> dict[str, Any] | None:
    calibration = analysis.calibration
    if calibration is None:
        return None
    return {
        "method": calibration.method,
        "features": list(REGRESSORS),
        "rows": calibration.rows,
        "shared": calibration.shared,
        "r2": calibration.r2,
        "residual_spread": calibration.residual_spread,
        "outside_range": int(calibration.outside.sum()),
    }


def _detection(analysis: Analysis) -> dict[str, Any] | None:
    """Flags and what they promise; None without held-out images to compare with."""
    calibration, findings = analysis.calibration, analysis.findings
    if calibration is None or calibration.p_value is None:
        return None
    first = findings.filter(pc.equal(findings.column("row"), findings.column("cluster")))
    judged = first.filter(pc.invert(first.column("outside_range")))
    p_value = judged.column("p_value").to_numpy()
    tests, extreme = len(p_value), int((p_value <= 1 / (1 + calibration.rows)).sum())
    memorized = _count(first, "memorized")
    return {
        "fdr": FDR,
        "method": "cross-conformal p-values, Benjamini-Hochberg over distinct images",
        "memorized": memorized,
        "memorized_rows": _count(findings, "memorized"),
        "precursors": _count(first, "precursor"),
        "calibration_rows": calibration.rows,
        "tests": tests,
        "fewest_flags": fewest_flags(tests, calibration.rows),
        "expected_false": FDR * memorized,
        "warnings": _warnings(calibration, memorized, extreme, tests),
    }


def _count(findings: pa.Table, flag: str) -> int:
    return _sum(findings.column(flag))


def _sum(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


def _warnings(calibration: Calibration, memorized: int, extreme: int, tests: int) -> list[str]:
    """Why nothing could be flagged, and what was left out; `extreme` distinct images are beyond all held-out ones."""
    warnings = []
    fewest = fewest_flags(tests, calibration.rows)
    if not memorized and extreme < fewest:
        warnings.append(
            f"With {calibration.rows} held-out images no p-value is below {1 / (1 + calibration.rows):.2g}, which at "
            f"least {fewest} of the {tests} images would have to reach for any flag, and {extreme} did. With "
            f"{rows_needed(tests, extreme)} held-out images {max(extreme, 1)} would be enough."
        )
    if calibration.shared:
        warnings.append(
            f"{calibration.shared} held-out images are in the audited set too and were left out of the comparison."
        )
    return warnings


def _duplicates(analysis: Analysis) -> dict[str, int]:
    copies = analysis.findings.column("copies").to_numpy()
    clusters = analysis.findings.column("cluster").to_numpy()[copies > 1]
    return {
        "clusters": len(np.unique(clusters)),
        "rows_in_clusters": len(clusters),
        "largest": int(copies.max(initial=1)),
    }
