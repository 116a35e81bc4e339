"""`volgrowth check`: hold a finished audit against what is allowed, for CI."""

from volgrowth.analysis import gate
from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.policy import store_of
from volgrowth.audit.output.result import open_audit


def check_audit(output: str, fdr: float = FDR, max_flagged: float = 0.0, *, junit: str | None = None) -> gate.Gate:
    """Compare the share of images that a finished audit flags with the share that is allowed.

    Args:
        output: folder or URL of the audit.
        fdr: false-discovery rate; an image is flagged if its q_value is at most this.
        max_flagged: share of the judged distinct images that may be flagged, from 0 to 1.
        junit: path or URL of a JUnit file to write.

    Returns:
        The result: `passed`, `sentence`, the counts `flagged` and `judged`, the most certain flagged `images`, and
        `notes` to read before trusting that it passed.

    Raises:
        UsageError: `fdr` or `max_flagged` is out of range.
        OutputError: there is no finished audit, or no image could be judged, so that passing would mean nothing.
    """
    found = gate.check_limit(open_audit(output), fdr, max_flagged)
    if junit:
        store, name = store_of(junit)
        store.write(name, gate.gate_junit(found))
    return found
