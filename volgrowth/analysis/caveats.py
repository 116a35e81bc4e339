"""Caveats: sentences that change what the verdict of an audit means, such as that nothing could have been flagged.

A caveat stands in the headline of terminal, Markdown and page, beside the verdict. What only helps to read the numbers
is a note, and belongs into the `warnings` of a part of the summary.

To add a caveat, put its fact into the summary, write a function below that turns the summary into a sentence or into
None, and name it in `CAVEATS`. An older summary may lack the fact: read it with `.get`.
"""

from collections.abc import Callable
from typing import Any

from volgrowth.analysis.calibration.error_rates import TAIL, rows_needed
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.calibration.screening import RECALL

Summary = dict[str, Any]

UNJUDGED = 0.01
"""Share of the scored rows beyond which rows outside the calibration's range change what a verdict means."""


LEFT_OUT = 0.1
"""Share of the held-out images beyond which those that were left out change what a verdict means."""


UNCONDITIONAL = 0.1
"""Difference of the shares of audited and held-out rows without a condition that changes what a verdict means."""


def list_caveats(summary: Summary) -> list[str]:
    """Return the caveats of an audit, the weightiest first, from the content of its `summary.json`."""
    return [said for caveat in CAVEATS if (said := caveat(summary))]


def gate_caveats(summary: Summary, exceeded: bool) -> list[str]:
    """Return the caveats of a gate, which sees for itself, at its own rate, how few memorized images it could find.

    Args:
        summary: as in `list_caveats`.
        exceeded: whether more was found than is allowed; then what may be missing does not matter.
    """
    seen = {_resolution, _screened}
    if not exceeded:
        seen |= {_assumed, _uncalibrated, outdated_proof}
    return [said for caveat in CAVEATS if caveat not in seen and (said := caveat(summary))]


def with_caveats(summary: Summary) -> Summary:
    """Return a summary with its `caveats` as its other parts are now."""
    return {**summary, "caveats": list_caveats(summary)}


def _counts(summary: Summary) -> tuple[int, int]:
    """Return the number of rows, and of those with a score."""
    return summary["counts"]["rows"] or 0, summary["counts"]["ok"] or 0


def _empty(summary: Summary) -> str | None:
    rows, scored = _counts(summary)
    if not rows:
        return "There was nothing to audit, which says nothing about the model."
    return None if scored else f"Not one of {rows:,} rows could be scored, which says nothing about the model."


def _failed(summary: Summary) -> str | None:
    rows, scored = _counts(summary)
    allowed = (summary.get("run") or {}).get("max_failed", 0.01)
    if not scored or (rows - scored) / rows <= allowed:
        return None
    return f"{rows - scored:,} of {rows:,} rows have no score, more than the {allowed:.2%} allowed: none was judged."


def _held_out_failed(summary: Summary) -> str | None:
    failures, holdout = (summary.get("failures") or {}).get("held_out"), summary.get("holdout")
    allowed = (summary.get("run") or {}).get("max_failed", 0.01)
    if not failures or not holdout or failures["rows"] / holdout["rows"] <= allowed:
        return None
    return f"{failures['rows']:,} of {holdout['rows']:,} held-out rows have no score: they did not calibrate."


def _misunderstood(summary: Summary) -> str | None:
    checked = summary.get("model_check")
    if not checked or checked["verdict"] == "right":
        return None
    if checked["verdict"] == "untested":
        return f"The model was not checked against these images: {checked['cause']}."
    return (
        f"The model failed its check and was trusted: {checked['cause']}. Scores of a model that is not understood "
        f"mean little."
    )


def _uncalibrated(summary: Summary) -> str | None:
    if summary["detection"] or not summary["counts"]["ok"]:
        return None
    return f"Fewer than {MIN_IMAGES} distinct images could be used to calibrate: images are ranked, and none is judged."


def _assumed(summary: Summary) -> str | None:
    detection = summary["detection"]
    if not detection or detection["null"] == "held-out":
        return None
    return (
        f"Without {'enough ' if summary.get('holdout') else ''}held-out images the error rate is an assumption: that "
        f"at least {TAIL[1]:.0%} of the images are not memorized, and that their excess falls off exponentially beyond "
        f"its upper quartile. Rare kinds of images can break it."
    )


def of_evidence(detection: Summary) -> str:
    """Say which evidence memorized images are assumed to have; nothing if their p-value comes from counting alone."""
    assumed = detection.get("assumed_evidence")
    if assumed is None:
        return ""
    return f" of evidence {assumed:g} (on the benchmark most reproduced images have more; altered copies may have less)"


def _resolution(summary: Summary) -> str | None:
    detection = summary["detection"]
    if not detection or detection["memorized"] or (detection.get("fewest_flags") or 1) <= 1 or not detection["tests"]:
        return None  # where not one image was judged, `_unjudged` says so
    held, fewest, tests = detection["calibration_rows"], detection["fewest_flags"], detection["tests"]
    few = max(detection.get("beyond_holdout", 1), 1)
    ones = f"memorized ones{of_evidence(detection)}"
    none = "nothing" if detection.get("assumed_evidence") is None else f"no {ones}"
    what = f"{none} could be flagged" if fewest > tests else f"fewer than {fewest:,} {ones} cannot be flagged"
    return (
        f"With {held:,} held-out images {what} at this rate: that no image is flagged does not show that there is "
        f"none. It takes {rows_needed(tests, few, detection['fdr']):,} to flag {few:,}."
    )


def _other_kind(summary: Summary) -> str | None:
    different = (summary["detection"] or {}).get("holdout_difference")
    return different and (
        f"The held-out images are of another kind: their {different['feature']} is distributed differently (distance "
        f"of Kolmogorov and Smirnov {different['distance']:.2f}). The error rate is promised only for images of the "
        f"same kinds: hold out a random part of the data set."
    )


def _other_bulk(summary: Summary) -> str | None:
    detection = summary["detection"] or {}
    different = detection.get("bulk_difference")
    if not different or detection.get("holdout_difference"):
        return None
    return (
        f"Of the audited images {different['share_below_median']:.0%} have less evidence than the median held-out one, "
        f"where half of them should, and the distribution below it differs by {different['distance']:.2f} (distance of "
        f"Kolmogorov and Smirnov): the held-out images are of another kind, or the model knows a large part of the "
        f"audited ones. The error rate is promised only for images of the same kinds: hold out a random part of the "
        f"data set."
    )


def _torn_apart(summary: Summary) -> str | None:
    calibration = summary["calibration"] or {}
    left_out = (calibration.get("shared") or 0) + (calibration.get("near_duplicates") or 0)
    held = left_out + (calibration.get("rows") or 0)
    if left_out <= LEFT_OUT * held:
        return None
    return (
        f"{left_out:,} of {held:,} held-out images are audited as well, or look like an audited one, and did not "
        f"calibrate: what is left may be of another kind. Hold out whole groups of near duplicates."
    )


def _self_check(summary: Summary) -> str | None:
    check = (summary["calibration"] or {}).get("self_check")
    if not check or check["holds"]:
        return None
    beyond = [share for share in check["shares"] if share["realised"] > share["allowed"]]
    said = [f"{each['realised']:.2%} have a p-value of at most {each['p_value']:g}" for each in beyond]
    said += [f"{check['flagged']:.0%} of the halves have a flag, where {check['promised']:.0%} is promised"]
    return (
        f"Held-out images that are calibrated by each other do not keep the promise: {', and '.join(said)}. The tail "
        f"of their evidence is heavier than the fitted one, and more flags may be false than the rate says."
    )


def _unconditional(summary: Summary) -> str | None:
    known = summary.get("conditions")
    if not known or not known["audited"]["rows"]:
        return None
    audited, held = known["audited"], known["held_out"]
    none = f"no {known['kind']} in column {known['column']}"
    share = audited["without"] / audited["rows"]
    share_held = held["without"] / held["rows"] if held and held["rows"] else share
    if abs(share - share_held) > UNCONDITIONAL:
        return (
            f"Of the scored rows {share:.0%} have {none}, and of the held-out ones {share_held:.0%}: these were "
            f"measured without one. The error rate is promised only for images that are measured alike: give both "
            f"sets their conditions, or none to either."
        )
    return f"All {audited['rows']:,} scored rows have {none} and were measured without one." if share == 1 else None


def _deviating(summary: Summary) -> str | None:
    floor = (summary.get("run") or {}).get("noise_floor") or {}
    check = floor.get("derivative")
    if not check or check["deviation"] <= check["tolerance"]:
        return None
    return f"Derivatives of the network are off by {check['deviation']:.2%}: growth may mean little."


def _unjudged(summary: Summary) -> str | None:
    scored, outside = _counts(summary)[1], (summary["calibration"] or {}).get("outside_range") or 0
    if outside <= UNJUDGED * scored:
        return None
    return (
        f"{outside:,} of {scored:,} scored rows were not judged: they are simpler or more complex than the images that "
        f"calibrated."
    )


def _screened(summary: Summary) -> str | None:
    cascade = summary.get("cascade")
    recall = cascade and cascade["recall_at_least"]
    if not cascade or recall is None or recall >= RECALL:
        return None
    return (
        f"The cascade's screen may have lost up to {cascade['flags_lost_at_most']:,} flags: only {recall:.0%} of those "
        f"of a whole audit, or more, were found."
    )


def outdated_proof(summary: Summary) -> str | None:
    """Say that samples were drawn, and that what they prove is not counted."""
    if not summary.get("verification_outdated"):
        return None
    return (
        "Samples that `volgrowth verify` drew were compared with this audit as it was before, and what they prove is "
        "not counted: run the same `volgrowth verify` again."
    )


def loss_unbounded(summary: Summary, fdr: float) -> str | None:
    """Say that a cascade's screen may have lost more flags at the rate `fdr` than its bound says."""
    if not summary.get("cascade") or not summary["detection"] or fdr <= summary["detection"]["fdr"]:
        return None
    return (
        f"The bound on the flags that the cascade's screen may have lost holds at rates up to "
        f"{summary['detection']['fdr']:g}, and not at --fdr {fdr:g}: choose a lower one, or audit without --cascade."
    )


CAVEATS: tuple[Callable[[Summary], str | None], ...] = (
    _empty,
    _misunderstood,
    _deviating,
    _unconditional,
    _uncalibrated,
    _assumed,
    _other_kind,
    _other_bulk,
    _self_check,
    _torn_apart,
    _resolution,
    outdated_proof,
    _failed,
    _held_out_failed,
    _unjudged,
    _screened,
)
