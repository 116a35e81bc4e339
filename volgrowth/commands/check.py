"""`volgrowth check`: hold a finished audit against what is allowed, for CI."""

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.gate.forms import gate_junit
from volgrowth.analysis.gate.limit import Gate, check_limit
from volgrowth.analysis.policy import new_file_of
from volgrowth.audit.output.result import open_audit


def check_audit(output: str, fdr: float = FDR, max_flagged: float = 0.0, *, junit: str | None = None) -> Gate:
    """Compare the share of images that a finished audit found memorized with the share that is allowed.

    Found are images that are flagged at the rate, and images that samples of `volgrowth verify` reproduced.

    Args:
        output: folder or URL of the audit.
        fdr: false-discovery rate; an image is flagged if its q_value is at most this.
        max_flagged: share of the judged distinct images that may be found, from 0 to 1.
        junit: path or URL of a JUnit file to write.

    Returns:
        The result. `passed` is True if no more than allowed is found and more would have been seen; `decided` is False
        if neither can be told, for the reasons in `doubts`. `sentence` says it in words; `found`, `flagged`, `proven`
        and `judged` are the counts, `images` the most certain of the found ones, and `caveats` what else to know.

    Raises:
        UsageError: `fdr` or `max_flagged` is out of range.
        OutputError: there is no finished audit, or an older version wrote its findings.
    """
    place = new_file_of(junit) if junit else None
    found = check_limit(open_audit(output), fdr, max_flagged)
    if place:
        place[0].write(place[1], gate_junit(found))
    return found
