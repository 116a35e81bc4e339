"""`volgrowth diff`: compare two finished audits."""

from dataclasses import replace

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.comparison.changes import Comparison, compare_audits, write_changes
from volgrowth.audit.output.result import open_audit

COMPARED = ("row", "growth", "content_hash")
"""Columns of scores that the comparison reads."""


def diff_audits(out_a: str, out_b: str, fdr: float = FDR, *, table: str | None = None) -> Comparison:
    """Find the images that became or ceased to be memorized between two audits.

    The audits may be of two checkpoints, or of a data set before and after curation. Images are matched by their
    pixels, so that rows and copies may differ.

    Args:
        out_a: folder or URL of the earlier audit.
        out_b: folder or URL of the audit to compare it with.
        fdr: false-discovery rate of all significant changes together, above 0 and below 1.
        table: Parquet file or URL for the whole table.

    Returns:
        The comparison: `table` with one row per image that is in both audits, `counts` of each verdict, and `warnings`.

    Raises:
        UsageError: the two audits cannot be compared, or `fdr` is out of range.
        OutputError: an audit has not finished or was not calibrated.
    """
    one, other = (replace(open_audit(output), columns=COMPARED) for output in (out_a, out_b))
    comparison = compare_audits(one, other, fdr)
    if table:
        write_changes(comparison, table)
    return comparison
