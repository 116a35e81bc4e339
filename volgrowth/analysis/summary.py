"""The content of `summary.json`: the data-set memorization report for machines, with every number of the page."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration.complexity import MEASURED, REGRESSORS
from volgrowth.analysis.calibration.error_rates import FDR, fewest_flags, rows_needed
from volgrowth.analysis.calibration.evidence import Calibration
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.calibration.false_bounds import innocent_among
from volgrowth.analysis.calibration.screening import LEVEL, RECALL, ScreenLoss, bound_loss
from volgrowth.analysis.calibration.self_check import CHECKED, check_halves
from volgrowth.analysis.caveats import with_caveats
from volgrowth.analysis.failures import count_failures
from volgrowth.analysis.findings import Analysis
from volgrowth.analysis.judging import judge, strongest_above
from volgrowth.audit.output.result import Audit
from volgrowth.config import AuditConfig
from volgrowth.records import Mark, Status

FIRST = (10, 20, 40, 100, 200, 400, 1000, 4000, 10_000)
"""Numbers of the most suspicious images for which the report bounds how many are innocent."""

SUMMARISED = (
    *("row", "source", "status", "error", "growth", "marks", "nfe", "content_hash", "phash"),
    *MEASURED,
)
"""Columns of scores that the summary reads."""

METHOD = {
    "held-out": "cross-conformal p-values, Benjamini-Hochberg over distinct images",
    "tail": "p-values of the held-out images' generalized Pareto tail, Benjamini-Hochberg over distinct images",
    "cross-fitted": "p-values of an exponential tail, Benjamini-Hochberg over distinct images",
}


def summarize_audit(
    audit: Audit, analysis: Analysis, config: AuditConfig, run: dict[str, Any], sampled: np.ndarray | None = None
) -> dict[str, Any]:
    """Summarise an audit.

    Args:
        audit: its scores and findings.
        analysis: the calibration behind the findings.
        config: settings of the audit.
        run: record of how the scores were made: seconds, workers, device, the check of the model.
        sampled: rows of a cascade that were measured to bound the loss of its screen.

    Returns:
        The content of `summary.json`.
    """
    frozen, scores = audit.frozen, audit.scores
    run, checked = dict(run), run.get("model_check")
    run.pop("model_check", None)
    statuses = _value_counts(scores.column("status"))
    marks = _value_counts(pc.list_flatten(scores.column("marks")))
    evaluations = _sum(scores.column("nfe"))
    if audit.holdout_scores is not None:
        evaluations += _sum(audit.holdout_scores.column("nfe"))
    arithmetic = _arithmetic(run.get("noise_floor"))
    detection = _detection(audit, analysis)
    if detection:
        detection["warnings"] = [*arithmetic, *detection["warnings"]]
    cascade = _cascade(audit, analysis, config, evaluations, sampled)
    if cascade and detection:
        detection["warnings"] += cascade["warnings"]
    summary = {
        "schema_version": frozen.schema_version,
        "volgrowth": frozen.versions["volgrowth"],
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config_digest": frozen.config_digest,
        "model": {**audit.manifest["model"], "dtype": config.dtype},
        "data": _data(audit.manifest["data"]),
        "holdout": _data(audit.manifest["holdout"]),
        "measure": {
            **config.measure.model_dump(mode="json"),
            "evaluations": config.evaluations(audit.frozen.model.has_null),
        },
        "counts": {"rows": len(scores), **{status.value: statuses.get(status, 0) for status in Status}},
        "failures": {
            "audited": count_failures(scores),
            "held_out": None if audit.holdout_scores is None else count_failures(audit.holdout_scores),
        },
        "marks": {mark.value: marks.get(mark, 0) for mark in Mark},
        "model_check": checked,
        "calibration": _calibration(analysis, config),
        "detection": detection,
        "cascade": cascade,
        "duplicates": _duplicates(analysis),
        "run": {**run, "evaluations": evaluations, "max_failed": config.max_failed, "warnings": arithmetic},
        "versions": frozen.versions,
    }
    return with_caveats(summary)


def _arithmetic(floor: dict[str, Any] | None) -> list[str]:
    """Warn where the self-check found arithmetic that should not be trusted, or that had to do without a derivative."""
    check, warnings = (floor or {}).get("derivative"), list[str]()
    if problem := (floor or {}).get("problem"):
        warnings.append(f"The check of the arithmetic was not finished: {problem}.")
    if compiling := (floor or {}).get("compiling") or (check or {}).get("compiling"):
        warnings.append(f"The network was not compiled: {compiling}.")
    if not check:
        return warnings
    if check["differenced"]:
        warnings.append(
            f"The network has no derivative ({check['differenced']}): growth rests on differences in float32."
        )
    if not check["deviation"] <= check["tolerance"]:
        warnings.append(
            f"Derivatives by {check['used']} differ from central differences in {check['against']} by "
            f"{check['deviation']:.2%}, and at most {check['tolerance']:.0%} was expected: an operation of the network "
            f"hides its derivative, or its precision is too low. Growth may mean little: audit with dtype float32, "
            f"TF32 off, and look for operations such as round and detach."
        )
    return warnings


def _data(info: dict[str, Any] | None) -> dict[str, Any] | None:
    """Drop the record of how a data set's listing is kept, which no reader needs."""
    return info and {name: value for name, value in info.items() if name != "listing"}


def _calibration(analysis: Analysis, config: AuditConfig) -> dict[str, Any] | None:
    calibration = analysis.calibration
    if calibration is None:
        return None
    return {
        "method": calibration.method,
        "features": [*REGRESSORS, *(["reference"] if config.reference else [])],
        "reference": config.reference,
        "rows": len(calibration.rows),
        "shared": calibration.shared,
        "near_duplicates": calibration.alike,
        "r2": calibration.main.r2,
        "residual_spread": calibration.main.residual_spread,
        "outside_range": _sum(analysis.findings["outside_range"]),
        "evidence": {
            "parts": {
                name: {"r2": part.r2, "residual_spread": part.residual_spread}
                for name, part in calibration.parts.items()
            },
            "left_out": calibration.left_out,
        },
        "tail": _tail(calibration, analysis.findings["evidence"].drop_null().to_numpy()),
        "self_check": _self_check(calibration),
    }


def _self_check(calibration: Calibration) -> dict[str, Any] | None:
    """Describe how well held-out images keep the promise among themselves; None without any."""
    if calibration.holdout_evidence is None:
        return None
    found = check_halves(calibration.holdout_evidence)
    shares = zip(CHECKED, found.realised, found.allowed, strict=True)
    return {
        "rows": found.rows,
        "splits": found.splits,
        "splits_with_a_tail": found.tails,
        "shares": [{"p_value": level, "realised": share, "allowed": most} for level, share, most in shares],
        "flagged": found.flagged,
        "promised": FDR,
        "holds": found.holds,
    }


def _tail(calibration: Calibration, evidence: np.ndarray) -> dict[str, Any] | None:
    """Describe the tail that p-values come from, and how far they extrapolate; None without one."""
    tail = calibration.tail
    if tail is None:
        return None
    assert calibration.holdout_evidence is not None  # the tail is theirs
    farthest = float(np.max(calibration.holdout_evidence))
    return {
        "threshold": tail.threshold,
        "fits": [
            {"above": fit.above, "threshold": fit.threshold, "shape": fit.shape, "scale": fit.scale, "fit": fit.fit}
            for fit in tail.fits
        ],
        "refused": list(tail.refused),
        "farthest_held_out": farthest,
        "rows_beyond": int((evidence > farthest).sum()),
        "farthest": float(evidence.max(initial=farthest)),
    }


def _detection(audit: Audit, analysis: Analysis) -> dict[str, Any] | None:
    """Count flags and say what they promise; None if nothing was calibrated."""
    calibration, findings = analysis.calibration, analysis.findings
    if calibration is None:
        return None
    known = judge(findings)
    counted = findings.select(["copies", "q_value_by", "precursor", "trials"])
    first, judged, flagged = (
        counted.filter(pa.array(known.first & rows)) for rows in (known.tested, known.judged, known.flagged)
    )
    memorized, duplicated = len(flagged), int((flagged.column("copies").to_numpy() > 1).sum())
    detection = {
        "fdr": FDR,
        "null": calibration.method,
        "method": METHOD[calibration.method if calibration.tail is None else "tail"],
        "memorized": memorized,
        "memorized_duplicated": duplicated,
        "memorized_intrinsic": memorized - duplicated,
        "memorized_rows": int(known.flagged.sum()),
        "memorized_any_dependence": int((flagged.column("q_value_by").to_numpy() <= FDR).sum()),
        "precursors": _sum(first["precursor"]),
        "tests": len(judged),
        "expected_false": FDR * memorized,
    }
    if calibration.method == "cross-fitted":
        return {**detection, "warnings": _left_out(audit, analysis)}
    held = len(calibration.rows)
    _, above = strongest_above(known, held)
    trials = int(judged["trials"].to_numpy().sum())
    return {
        **detection,
        "calibration_rows": held,
        "smallest_p_value": calibration.smallest_p_value,
        "fewest_flags": fewest_flags(len(first), calibration.smallest_p_value),
        "trials": trials,
        "false_bounds": [
            {"first": k, "innocent_at_most": most}
            for k in FIRST
            if k <= len(above) and (most := innocent_among(above[:k], held, trials)) < k
        ],
        "beyond_holdout": int((above == 0).sum()),
        "holdout_difference": analysis.difference
        and {"feature": analysis.difference[0], "distance": analysis.difference[1]},
        "bulk_difference": calibration.bulk
        and {"share_below_median": calibration.bulk[0], "distance": calibration.bulk[1]},
        "warnings": _warnings(calibration),
    }


def _cascade(
    audit: Audit, analysis: Analysis, config: AuditConfig, evaluations: int, sampled: np.ndarray | None
) -> dict[str, Any] | None:
    """Count what a cascade left out and saved, with a bound on its loss; None for a whole audit."""
    screening, held = analysis.screening, audit.holdout_scores
    if screening is None or held is None:
        return None
    lost = bound_loss(screening, np.empty(0, int) if sampled is None else sampled)
    rows = sum(len(table) - table["nfe"].null_count for table in (audit.scores, held))
    whole = rows * config.evaluations(audit.frozen.model.has_null)
    return {
        "screen_share": config.screen_share,
        "images": len(screening.row),
        "kept": len(screening.row) - lost.out,
        "screened_out": lost.out,
        "sample": lost.sampled,
        "missed_in_sample": lost.missed,
        "flags_lost_at_most": lost.flags_lost,
        "recall_at_least": lost.recall,
        "confidence": LEVEL,
        "rows_measured": len(audit.scores) - audit.scores["growth"].null_count,
        "evaluations_saved": whole - evaluations,
        "evaluations_share": evaluations / max(whole, 1),
        "warnings": _lost(lost),
    }


def _lost(lost: ScreenLoss) -> list[str]:
    """Warn if the bound on a cascade's loss says little."""
    if not lost.out or lost.recall is None or lost.recall >= RECALL:
        return []
    said = (
        f"Of {lost.out} images that the cascade screened out {lost.sampled} were measured at random, and {lost.missed} "
        f"of these would have been flagged. That only says that no more than {lost.flags_lost} flags were lost, and "
        f"that {lost.recall:.0%} or more of the flags of a whole audit were found."
    )
    if lost.missed:
        return [f"{said} The screen loses flags here: audit with a larger --set screen_share, or without --cascade."]
    if lost.needed >= lost.out / 2:
        return [f"{said} With so few images and flags {RECALL:.0%} can only be had by an audit without --cascade."]
    return [f"{said} With --set screen_sample={lost.needed} and none of these it would be {RECALL:.0%}."]


def _sum(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


def _warnings(calibration: Calibration) -> list[str]:
    """Say what is wrong with the held-out set."""
    warnings = []
    if calibration.shared:
        warnings.append(
            f"{calibration.shared} held-out images are in the audited set too and were left out of the comparison."
        )
    if calibration.alike:
        warnings.append(
            f"{calibration.alike} held-out images look like audited ones (by perceptual hash, brightness and contrast) "
            f"and were left out of the comparison: a model that knows those may know these."
        )
    return warnings


def _left_out(audit: Audit, analysis: Analysis) -> list[str]:
    """Say why the held-out images were too few to calibrate with, if there are any."""
    held = audit.holdout_scores
    if held is None:
        return []
    return [
        f"Of {len(held)} held-out images {analysis.new_held_out} could be scored and do not look like audited ones, "
        f"too few to calibrate with: {MIN_IMAGES} are needed, and "
        f"{rows_needed(len(audit.findings['cluster'].unique()), 1)} to flag a single image."
    ]


def _duplicates(analysis: Analysis) -> dict[str, int]:
    """Count the groups of near duplicates with more than one row, and the rows with an identical one elsewhere."""
    copies, cluster, identical = (analysis.findings.column(n).to_numpy() for n in ("copies", "cluster", "identical"))
    clusters = cluster[copies > 1]
    _, rows = np.unique(identical, return_counts=True)
    return {
        "clusters": len(np.unique(clusters)),
        "rows_in_clusters": len(clusters),
        "identical_rows": int(rows[rows > 1].sum()),
        "largest": int(copies.max(initial=1)),
    }
