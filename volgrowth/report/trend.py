"""The page of several audits in their order."""

from volgrowth.analysis.comparison.trend import Trend
from volgrowth.report.page import template_environment
from volgrowth.version import VERSION


def render_trend(trend: Trend) -> str:
    """Make a self-contained HTML page: what each audit found and proved, and what was new, as a table with bars."""
    last, first = trend.checkpoints[-1], trend.checkpoints[0]
    largest = max(1, *(each.found for each in trend.checkpoints), *(each.memorized for each in trend.checkpoints))
    return (
        template_environment()
        .get_template("trend.html.j2")
        .render(
            title=f"{last.found:,} images found at the last of {len(trend.checkpoints)} checkpoints, "
            f"{first.found:,} at the first",
            version=VERSION,
            trend=trend,
            largest=largest,
        )
    )
