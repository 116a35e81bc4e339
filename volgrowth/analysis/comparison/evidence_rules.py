"""Whether two audits flag by the same evidence: settings, data and versions of volgrowth may make it another."""

from volgrowth.audit.output.result import Audit


def different_evidence(a: Audit, b: Audit) -> tuple[str, str] | None:
    """Return how each of two audits makes its evidence; None if alike, or if one was not calibrated."""
    rules = _rule(a), _rule(b)
    return None if None in rules or rules[0] == rules[1] else (str(rules[0]), str(rules[1]))


def _rule(audit: Audit) -> str | None:
    """Name the parts of an audit's evidence with their weights and units, and what calibrates them."""
    calibration = audit.summary.get("calibration")
    if calibration is None:
        return None
    parts, method = calibration["evidence"]["parts"], calibration["method"]
    named = [f"{part.get('weight', 1):g} {name}" for name, part in sorted(parts.items())]
    older = "" if all("weight" in part and "unit" in part for part in parts.values()) else ", of an earlier version"
    return f"{' + '.join(named) or 'growth'}, {method}{older}"
