"""Whether two audits flag by the same evidence: settings, data and versions of volgrowth may make it another."""

from volgrowth.audit.output.result import Audit


def different_evidence(a: Audit, b: Audit) -> tuple[str, str] | None:
    """Return how each of two audits makes its evidence; None if alike, or if one was not calibrated."""
    rules = _rule(a), _rule(b)
    return None if None in rules or rules[0] == rules[1] else (str(rules[0]), str(rules[1]))


def _rule(audit: Audit) -> str | None:
    """Name the parts of an audit's evidence with their weights, what calibrates them, and an earlier version."""
    calibration = audit.summary.get("calibration")
    if calibration is None:
        return None
    evidence = calibration.get("evidence")
    parts = (evidence or {}).get("parts", {})
    weights = {name.replace("_", " "): part.get("weight", 1) for name, part in sorted(parts.items())}
    named = " + ".join(name if weight == 1 else f"{weight:g} x {name}" for name, weight in weights.items()) or "growth"
    by = "held-out images" if calibration["method"] == "held-out" else "the audited images themselves"
    beside = " and a reference audit" if calibration.get("reference") else ""
    known = evidence is not None and all("weight" in part and "unit" in part for part in parts.values())
    return f"{named}, calibrated on {by}{beside}{'' if known else ', by an earlier version'}"
