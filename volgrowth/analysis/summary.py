"""The content of `summary.json`: the data-set memorization report for machines, with every number of the page."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration.complexity import MEASURED, REGRESSORS
from volgrowth.analysis.calibration.error_rates import FDR, fewest_flags, rows_needed
from volgrowth.analysis.calibration.evidence import REPRODUCED, Calibration, weight_of
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.calibration.false_bounds import innocent_among
from volgrowth.analysis.calibration.screening import LEVEL, RECALL, ScreenLoss, bound_loss
from volgrowth.analysis.calibration.self_check import CHECKED, check_halves
from volgrowth.analysis.caveats import with_caveats
from volgrowth.analysis.cells import ENOUGH
from volgrowth.analysis.conditions import CONDITIONS_TOLD, describe_conditions, warn_of_missing
from volgrowth.analysis.counting import Counts, count_audit
from volgrowth.analysis.failures import count_failures
from volgrowth.analysis.findings import Analysis
from volgrowth.analysis.judging import JudgedAudit
from volgrowth.analysis.parts.survey import SAMPLE
from volgrowth.audit.output.result import Audit
from volgrowth.config import AuditConfig
from volgrowth.records import Mark, Status

FIRST = (10, 20, 40, 100, 200, 400, 1000, 4000, 10_000)
"""Numbers of the most suspicious images for which the report bounds how many are innocent."""

SUMMARISED = (
    *("row", "source", "status", "error", "growth", "marks", "nfe", "content_hash", "phash"),
    *CONDITIONS_TOLD.values(),
    *MEASURED,
)
"""Columns of scores that the summary reads."""

METHOD = {
    "held-out": "cross-conformal p-values, Benjamini-Hochberg over distinct images",
    "tail": "p-values of the held-out images' generalized Pareto tail, Benjamini-Hochberg over distinct images",
    "tails": "p-values of the generalized Pareto tails of held-out and of audited images, the smaller one of each, "
    "Benjamini-Hochberg over distinct images",
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
    frozen, held_out = audit.frozen, audit.holdout_scores
    run, checked = dict(run), run.get("model_check")
    run.pop("model_check", None)
    counts = _count(audit, analysis)
    evaluations = counts.evaluations + (0 if held_out is None else _sum(held_out["nfe"]))
    conditions = describe_conditions(audit, counts.statuses[Status.OK], counts.unconditional)
    measured = _of_measuring(run, analysis, conditions)
    detection = _detection(audit, analysis, counts)
    if detection:
        detection["warnings"] = [*measured, *detection["warnings"]]
    cascade = _cascade(audit, analysis, config, counts, sampled)
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
        "counts": {"rows": counts.rows, **{status.value: counts.statuses[status] for status in Status}},
        "conditions": conditions,
        "failures": {
            "audited": counts.failures.counted(),
            "held_out": None if held_out is None else count_failures(held_out),
        },
        "marks": {mark.value: counts.marks[mark] for mark in Mark},
        "model_check": checked,
        "calibration": _calibration(analysis, config, counts),
        "detection": detection,
        "cascade": cascade,
        "duplicates": {
            "clusters": counts.clusters,
            "rows_in_clusters": counts.clustered_rows,
            "identical_rows": counts.identical_rows,
            "largest": counts.largest,
            **({"embeddings": analysis.embeddings} if analysis.embeddings else {}),
        },
        "run": {**run, "evaluations": evaluations, "max_failed": config.max_failed, "warnings": measured},
        "versions": frozen.versions,
    }
    return with_caveats(summary)


def _count(audit: Audit, analysis: Analysis) -> Counts:
    calibration, held, farthest = analysis.calibration, None, -np.inf
    if calibration is not None and calibration.method == "held-out":
        held = len(calibration.rows)
    if calibration is not None and calibration.holdout_evidence is not None:
        farthest = float(np.max(calibration.holdout_evidence))
    return count_audit(JudgedAudit(audit, None), held, farthest, max(FIRST))


def _of_measuring(run: dict[str, Any], analysis: Analysis, conditions: dict[str, Any] | None) -> list[str]:
    """Warn of what was measured otherwise than it should be, whatever was calibrated."""
    embeddings = _of_embeddings(analysis.embeddings)
    return [*_arithmetic(run.get("noise_floor")), *embeddings, *warn_of_missing(conditions)]


def _of_embeddings(known: dict[str, Any] | None) -> list[str]:
    """Warn of rows that have no embedding, and where the search among embeddings may miss more than it should."""
    said = list[str]()
    if not known:
        return said
    column, rows = known["column"], known["rows"] + known["rows_without"]
    if known["rows_without"]:
        said.append(
            f"{known['rows_without']:,} of {rows:,} rows have no embedding in column {column}: their near duplicates "
            "were found by the perceptual hash alone."
        )
    if known["shared_cells"] < ENOUGH:
        said.append(
            f"The search among the embeddings of column {column} misses up to {1 - known['shared_cells']:.1%} of the "
            "images that are as far from another one as near duplicates may be: a higher embedding_similarity misses "
            "fewer."
        )
    if known["undecided_groups"]:
        said.append(
            f"{known['undecided_groups']:,} groups of near duplicates stayed apart from others that are as near by "
            f"column {column}: so many images lie about as far apart as embedding_similarity allows that the search "
            "did not end."
        )
    return said


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


def _calibration(analysis: Analysis, config: AuditConfig, counts: Counts) -> dict[str, Any] | None:
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
        "one_colour": dict(zip(("rows", "held_out"), calibration.one_colour, strict=True)),
        "r2": calibration.main.r2,
        "residual_spread": calibration.main.residual_spread,
        "outside_range": counts.outside_range,
        "evidence": {
            "parts": {
                name: {
                    "r2": part.r2,
                    "residual_spread": part.residual_spread,
                    "unit": part.unit,
                    "weight": weight_of(name),
                }
                for name, part in calibration.parts.items()
            },
            "left_out": calibration.left_out,
        },
        "tail": _tail(calibration, counts),
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


def _tail(calibration: Calibration, counts: Counts) -> dict[str, Any] | None:
    """Describe the tail that p-values come from, and how far they extrapolate; None without one."""
    tail = calibration.tail
    if tail is None:
        return None
    assert calibration.holdout_evidence is not None  # the tail is theirs
    return {
        "threshold": tail.threshold,
        "fits": [
            {"above": fit.above, "threshold": fit.threshold, "shape": fit.shape, "scale": fit.scale, "fit": fit.fit}
            for fit in tail.fits
        ],
        "refused": list(tail.refused),
        "audited_images": None if tail.audited is None else tail.audited.rows,
        "farthest_held_out": float(np.max(calibration.holdout_evidence)),
        "rows_beyond": counts.beyond,
        "farthest": counts.farthest,
    }


def _detection(audit: Audit, analysis: Analysis, counts: Counts) -> dict[str, Any] | None:
    """Say how many images are flagged and what that promises; None if nothing was calibrated."""
    calibration = analysis.calibration
    if calibration is None:
        return None
    detection = {
        "fdr": FDR,
        "null": calibration.method,
        "method": METHOD[_null(calibration)],
        "memorized": counts.flagged,
        "memorized_duplicated": counts.flagged_copied,
        "memorized_intrinsic": counts.flagged - counts.flagged_copied,
        "memorized_rows": counts.flagged_rows,
        "memorized_any_dependence": counts.flagged_by,
        "precursors": counts.precursors,
        "tests": counts.judged,
        "expected_false": FDR * counts.flagged,
    }
    plain = _one_colour(calibration)
    if calibration.method == "cross-fitted":
        return {**detection, "warnings": [*_left_out(audit, analysis, counts), *_sampled(calibration), *plain]}
    held, above, trials = len(calibration.rows), counts.above, counts.trials
    return {
        **detection,
        "calibration_rows": held,
        "smallest_p_value": calibration.smallest_p_value,
        "assumed_evidence": REPRODUCED if calibration.smallest_p_value < 1 / (1 + held) else None,
        "fewest_flags": fewest_flags(counts.tested, calibration.smallest_p_value),
        "trials": trials,
        "false_bounds": [
            {"first": k, "innocent_at_most": most}
            for k in FIRST
            if k <= len(above) and (most := innocent_among(above[:k], held, trials)) < k
        ],
        "beyond_holdout": counts.unsurpassed,
        "holdout_difference": analysis.difference
        and {"feature": analysis.difference[0], "distance": analysis.difference[1]},
        "bulk_difference": calibration.bulk
        and {"share_below_median": calibration.bulk[0], "distance": calibration.bulk[1]},
        "warnings": [*_warnings(calibration), *plain],
    }


def _cascade(
    audit: Audit, analysis: Analysis, config: AuditConfig, counts: Counts, sampled: np.ndarray | None
) -> dict[str, Any] | None:
    """Count what a cascade left out and saved, with a bound on its loss; None for a whole audit."""
    screening, held = analysis.screening, audit.holdout_scores
    if screening is None or held is None:
        return None
    lost = bound_loss(screening, np.empty(0, int) if sampled is None else sampled)
    rows, evaluations = counts.evaluated + len(held) - held["nfe"].null_count, counts.evaluations + _sum(held["nfe"])
    whole = rows * config.evaluations(audit.frozen.model.has_null)
    return {
        "screen_share": config.screen_share,
        "images": screening.images,
        "kept": screening.images - lost.out,
        "screened_out": lost.out,
        "sample": lost.sampled,
        "missed_in_sample": lost.missed,
        "flags_lost_at_most": lost.flags_lost,
        "recall_at_least": lost.recall,
        "confidence": LEVEL,
        "rows_measured": counts.measured,
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


def _null(calibration: Calibration) -> str:
    """Return the name in `METHOD` of what p-values come from."""
    if calibration.tail is None:
        return calibration.method
    return "tail" if calibration.tail.audited is None else "tails"


def _warnings(calibration: Calibration) -> list[str]:
    """Say what is wrong with the held-out set."""
    warnings = []
    if calibration.tail and calibration.tail.audited:
        warnings.append(
            f"{len(calibration.rows)} held-out images are few for so many audited ones: p-values beyond them rest on "
            f"the tail of {calibration.tail.audited.rows:,} audited images too, nearly all of which are taken for "
            f"innocent."
        )
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


def _one_colour(calibration: Calibration) -> list[str]:
    """Say what becomes of images of one colour, if there are any."""
    rows, held_out = calibration.one_colour
    if not rows + held_out:
        return []
    return [
        f"Images of one colour, or nearly, have no evidence, are never flagged and do not calibrate (audited rows: "
        f"{rows:,}; held-out images: {held_out:,}): a model makes them whether or not it has seen them."
    ]


def _sampled(calibration: Calibration) -> list[str]:
    """Say that a sample of the audited images calibrated all of them, if it did."""
    if len(calibration.rows) < SAMPLE:
        return []
    return [
        f"Of all distinct images {SAMPLE:,} calibrated the others, chosen at random by their hashes: what is expected, "
        f"the spread and the quantiles of the assumed tail are theirs."
    ]


def _left_out(audit: Audit, analysis: Analysis, counts: Counts) -> list[str]:
    """Say why the held-out images were too few to calibrate with, if there are any."""
    held = audit.holdout_scores
    if held is None:
        return []
    return [
        f"Of {len(held)} held-out images {analysis.new_held_out} could be scored, do not look like audited ones and "
        f"are not of one colour, too few to calibrate with: {MIN_IMAGES} are needed, and "
        f"{rows_needed(counts.pictures, 1)} to flag a single image."
    ]
