"""`volgrowth diff`: compare two finished audits."""

from collections.abc import Iterator
from contextlib import contextmanager

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.comparison.changes import Comparison, WholeComparison
from volgrowth.analysis.comparison.comparing import Compared, changes_file, compare_in_parts, write_changes
from volgrowth.analysis.findings import check_columns
from volgrowth.audit.output.result import FINDINGS_FILE, open_audit


def diff_audits(out_a: str, out_b: str, fdr: float = FDR, *, table: str | None = None) -> WholeComparison:
    """Find the images that became or ceased to be memorized between two audits.

    The audits may be of two checkpoints, or of a data set before and after curation. Images are matched by their
    pixels, so that rows and copies may differ.

    Args:
        out_a: folder or URL of the earlier audit.
        out_b: folder or URL of the audit to compare it with.
        fdr: false-discovery rate of all significant changes together, above 0 and below 1.
        table: Parquet or CSV file or URL for the whole table.

    Returns:
        The comparison: `table` with one row per image that is in both audits, `counts` of each verdict, and `warnings`.

    Raises:
        UsageError: the two audits cannot be compared, or `fdr` is out of range.
        OutputError: an audit has not finished or was not calibrated.
    """
    with _compared(out_a, out_b, fdr, table) as found:
        return found.whole()


def describe_changes(out_a: str, out_b: str, fdr: float, table: str | None) -> Comparison:
    """Compare two audits as `diff_audits` does, without holding the table of all images."""
    with _compared(out_a, out_b, fdr, table) as found:
        return found.comparison


@contextmanager
def _compared(out_a: str, out_b: str, fdr: float, table: str | None) -> Iterator[Compared]:
    """Compare two audits, and write the table of all images if a file is named for it."""
    if table:
        changes_file(table)  # refused before the work
    one, other = open_audit(out_a), open_audit(out_b)
    for audit in (one, other):
        columns = audit.store.read_schema(FINDINGS_FILE)
        check_columns(columns, audit.store.url, "outside_range", "memorized", "identical")
    with compare_in_parts(one, other, fdr) as found:
        if table:
            write_changes(found, table)
        yield found
