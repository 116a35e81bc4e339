"""The data-set memorization report for machines: every number that the page shows."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np

from volgrowth.analysis.complexity import REGRESSORS
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
        "detection": None,
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
        "r2": calibration.r2,
        "residual_spread": calibration.residual_spread,
        "outside_range": int(calibration.outside.sum()),
    }


def _duplicates(analysis: Analysis) -> dict[str, int]:
    copies = analysis.findings.column("copies").to_numpy()
    clusters = analysis.findings.column("cluster").to_numpy()[copies > 1]
    return {
        "clusters": len(np.unique(clusters)),
        "rows_in_clusters": len(clusters),
        "largest": int(copies.max(initial=1)),
    }
