"""`volgrowth trend`: several audits in their order, such as of a model's checkpoints, on one page."""

from collections.abc import Sequence

from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.comparison.trend import Trend, follow_audits
from volgrowth.analysis.policy import new_file_of
from volgrowth.audit.output.result import open_audit
from volgrowth.errors import UsageError
from volgrowth.plain import plain
from volgrowth.report.formats import number
from volgrowth.report.trend import render_trend


def trend_audits(outputs: Sequence[str], page: str | None = None, *, fdr: float = FDR) -> Trend:
    """Count what several finished audits found, proved, and found for the first time, in their order.

    Args:
        outputs: folders or URLs of the audits, two or more.
        page: HTML file or URL to write; none for None.
        fdr: false-discovery rate at which images are flagged.

    Returns:
        The numbers of each audit, and what limits their comparison.

    Raises:
        UsageError: fewer than two audits, one of them twice, `fdr` is out of range, or `page` is no HTML file, or the
            report of an audit.
        OutputError: an audit has not finished, or an older version wrote its findings.
    """
    if page is not None and not page.endswith(".html"):
        raise UsageError(f"--page {page}: expected a file name that ends in .html")
    place = None if page is None else new_file_of(page)
    trend = follow_audits([open_audit(output) for output in outputs], fdr)
    if place is not None:
        place[0].write(place[1], render_trend(trend).encode())
    return trend


def trend_lines(trend: Trend) -> list[str]:
    """Return what `volgrowth trend` prints: a table, and what limits it."""
    titles = ["memorized", "proven", "new", "gone", "judged"]
    rows = [[each.memorized, each.proven, each.new, each.gone, each.judged] for each in trend.checkpoints]
    cells = [titles, *([number(value) for value in row] for row in rows)]
    names = ["checkpoint", *(plain(each.output) for each in trend.checkpoints)]
    width = max(map(len, names))
    table = [
        f"{name:<{width}}  " + "  ".join(f"{cell:>9}" for cell in row) for name, row in zip(names, cells, strict=True)
    ]
    return [*table, *(plain(note) for note in trend.notes)]
