"""The data-set memorization report for machines: every number that the page shows."""

from collections import Counter
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
    statuses = Counter(scores.column("status").to_pylist())
    marks = Counter(mark for marks in scores.column("marks").to_pylist() for mark in marks or ())
    evaluations = scores.column("nfe").to_pylist()
    if audit.holdout_scores is not None:
        evaluations += audit.holdout_scores.column("nfe").to_pylist()
    return {
        "schema_version": plan.schema_version,
        "volgrowth": plan.versions["volgrowth"],
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config_digest": plan.config_digest,
        "model": {**audit.manifest["model"], "dtype": config.dtype},
        "data": audit.manifest["data"],
        "holdout": audit.manifest["holdout"],
        "measure": {**config.measure.model_dump(mode="json"), "evaluations": config.measure.evaluations},
        "counts": {"rows": len(scores), **{status.value: statuses[status] for status in Status}},
        "marks": {mark.value: marks[mark] for mark in Mark},
        "calibration": _calibration(analysis),
        "detection": _detection(analysis),
        "duplicates": _duplicates(analysis),
        "run": {**run, "evaluations": sum(nfe or 0 for nfe in evaluations)},
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
    p_value = first.column("p_value").drop_null().to_numpy()
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
        "warnings": _warnings(calibration, extreme, tests),
    }


def _count(findings: pa.Table, flag: str) -> int:
    return pc.sum(findings.column(flag)).as_py() or 0


def _warnings(calibration: Calibration, extreme: int, tests: int) -> list[str]:
    """What keeps flags from being made; `extreme` distinct images are beyond all held-out ones."""
    warnings = []
    fewest = fewest_flags(tests, calibration.rows)
    if extreme < fewest:
        warnings.append(
            f"With {calibration.rows} held-out images for {tests} distinct audited ones nothing can be flagged unless "
            f"at least {fewest} images are more extreme than all held-out ones, and {extreme} are: with "
            f"{rows_needed(tests, extreme)} held-out images so few could be flagged."
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
