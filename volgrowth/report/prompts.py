"""The page of captions without images."""

from typing import Any

import pyarrow as pa

from volgrowth.report.formats import plural
from volgrowth.report.page import template_environment
from volgrowth.version import VERSION

SHOWN = 200
"""Captions on the page: those that steer the model furthest."""


def prompts_title(summary: dict[str, Any]) -> str:
    """Return how many captions are flagged, in a sentence."""
    flagged, tests = summary["flagged"], summary["tests"]
    if not tests:
        return "No caption could be scored"
    return f"{plural(flagged, 'caption')} of {tests:,} {'is' if flagged == 1 else 'are'} flagged as memorized"


def render_prompts(findings: pa.Table, summary: dict[str, Any]) -> str:
    """Make a self-contained HTML page: the flagged captions and those next to them, and what limits the flags."""
    order = [("p_value", "ascending"), ("score", "descending"), ("line", "ascending")]
    rows = findings.sort_by(order).slice(0, SHOWN).to_pylist()
    template = template_environment().get_template("prompts.html.j2")
    return template.render(title=prompts_title(summary), version=VERSION, summary=summary, rows=rows)
