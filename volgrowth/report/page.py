"""The page of an audit for people: numbers from its tables, put into a template.

`render_report` is pure: tables and numbers go in, text and figures come out. The page holds its style, script, figures
and pictures, and a content security policy under which a browser refuses to fetch anything.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from volgrowth.analysis.caveats import list_caveats
from volgrowth.records import Mark, Status
from volgrowth.report import formats, words
from volgrowth.report.charts.numbers import counts_directions
from volgrowth.report.gallery.cards import FILTERS, SORTS, Card, fit_cards, make_cards
from volgrowth.report.gallery.exhibits import Shown
from volgrowth.report.gallery.pictures import data_url
from volgrowth.report.next_steps import list_name, next_steps
from volgrowth.report.provenance import opened_pairs, provenance_groups
from volgrowth.report.reading import EXAMPLES
from volgrowth.report.words import Summary

if TYPE_CHECKING:
    from volgrowth.report.charts.plots import ReportCharts
    from volgrowth.report.reading import WholeAudit

_HERE = Path(__file__).parent

CAP = 20_000_000
"""The most bytes of a page."""

FRAME = 2_000_000
"""Bytes reserved for everything but the gallery's cards, whose size is bounded."""

FIRST = 24
"""Cards on one page of the gallery; a browser without scripts shows only these."""

PIXELATED_BELOW = 96
"""Images with a side below this are enlarged pixel by pixel, larger ones smoothly."""


@dataclass(frozen=True)
class ReportOrigin:
    """The audit that a page speaks of, for its commands and its list.

    Attributes:
        output: folder or URL of the audit.
        audit: the audit's name in its lists; empty if the page shall give no list.
        by_source: counts of found images by source file (`breakdown.FoundCounts`); None if they were not counted.
        by_class: the same by class; None without a class column too.
    """

    output: str = "OUT"
    audit: str = ""
    by_source: dict[str, Any] | None = None
    by_class: dict[str, Any] | None = None


@dataclass(frozen=True)
class ReportPage:
    """The report of an audit for people.

    Attributes:
        html: the page.
        numbers: behind the figures and the gallery; the summary does not have them yet.
        figures: the PNG and SVG files of the figures, their bytes by file name.
    """

    html: str
    numbers: dict[str, Any]
    figures: dict[str, bytes]


def render_report(
    summary: Summary,
    scores: pa.Table,
    findings: pa.Table,
    shown: Shown,
    holdout: pa.Table | None = None,
    whole: "WholeAudit | None" = None,
    origin: ReportOrigin | None = None,
) -> ReportPage:
    """Make the report: one self-contained HTML page, and its figures.

    Args:
        summary: the content of `summary.json`.
        scores: all rows, with the columns of `records.SCORES`; of very many rows some (`report.reading`).
        findings: the same rows, with the columns of `records.FINDINGS`.
        shown: the images of the gallery. Identical ones share a card.
        holdout: growth, excess_growth and evidence of held-out images, to lay over the histograms.
        whole: numbers of all rows, if the tables hold some of them.
        origin: the audit that the page speaks of; None for one that has no output.

    Raises:
        ValueError: an exhibit is of a row that the tables do not have.
        KeyError: the summary or a table lacks what the page shows, as those of another version may.
    """
    from volgrowth.report.charts.plots import draw_report_charts  # matplotlib takes a second to import

    truth = summary.get("verification") or {}
    detection = summary["detection"] or {}
    drawn = draw_report_charts(summary, scores, findings, shown, holdout, whole)
    copies = whole.copies if whole else None
    parts = ((summary["calibration"] or {}).get("evidence") or {}).get("parts", {})
    weights = {name: part.get("weight", 1) for name, part in parts.items()}
    cards = make_cards(scores, findings, shown, truth.get("rows", ()), detection.get("fdr"), copies, weights)
    made = template_environment()
    try:
        template = made.get_template("card.html.j2")
        texts, pictured = fit_cards(cards, lambda card: _dense(template.render(card=card)), CAP - FRAME)
        page = made.get_template("page.html.j2").render(
            {
                **_context(summary, scores, shown, drawn),
                **_gallery(cards[: len(texts)], texts, pictured),
                **_acting(summary, shown, origin or ReportOrigin()),
                "unlisted": len(cards) - len(texts),
                "sampled": len(findings) if whole else None,
                "warnings": [*detection.get("warnings", ()), *truth.get("warnings", ())],
            }
        )
    except UndefinedError as error:
        raise KeyError(error.message) from error
    said = {**drawn.numbers, "gallery": {"images": len(texts), "with_pictures": pictured}}
    return ReportPage(page, said, drawn.files)


def code_digest() -> str:
    """Return a digest of the code, templates and styles that make the page."""
    files = (path for path in sorted(_HERE.rglob("*")) if path.is_file() and path.suffix != ".pyc")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _dense(text: str) -> str:
    """Strip the indentation of markup, which is a tenth of the bytes of thousands of cards."""
    return re.sub(r">\s*\n\s*", ">", text)


def _context(summary: Summary, scores: pa.Table, shown: Shown, drawn: "ReportCharts") -> dict[str, Any]:
    """Return the variables of the template, without those of the gallery."""
    groups = drawn.numbers["duplicates"]
    pictures = {group["row"]: shown.rows.get(group["row"]) for group in groups["largest"]}
    return {
        "summary": summary,
        "version": summary["volgrowth"],
        "collapsed": counts_directions(summary["measure"]),
        "title": words.title(summary),
        "caveats": list_caveats(summary),
        "verdict": words.verdict_sentence(summary),
        "verdict_rows": words.verdict_rows(summary),
        "judged": words.has_error_rate(summary),
        "opened": opened_pairs(summary["data"]),
        "provenance": provenance_groups(summary),
        "figures": drawn,
        "groups": groups,
        "group_pictures": {row: data_url(picture) for row, picture in pictures.items() if picture},
        "redacted": shown.redacted,
        "pixelated": max(summary["model"]["image_shape"][1:]) < PIXELATED_BELOW,
        "statuses": [(s.value, summary["counts"][s.value], words.STATUS_MEANING[s]) for s in Status],
        "marks": [(m.value, summary["marks"][m.value], words.MARK_MEANING[m]) for m in Mark],
        "failures": _failures(scores),
        "reasons": words.failure_sentences(summary),
    }


def _gallery(cards: list[Card], texts: list[Markup], pictured: int) -> dict[str, Any]:
    """Return the variables of the gallery: its cards, and the filters that any card passes."""
    counts = {kind: sum(kind in card["kinds"] for card in cards) for kind in FILTERS}
    return {
        "cards": texts[:FIRST],
        "rest": texts[FIRST:],
        "pictured": pictured,
        "shown_rows": {card["row"] for card in cards},
        "filters": [(kind, FILTERS[kind], count) for kind, count in counts.items() if count],
        "sorts": SORTS,
    }


def _acting(summary: Summary, shown: Shown, origin: ReportOrigin) -> dict[str, Any]:
    """Return the variables of what a reader does next, and of what was found by class and source."""
    output = "OUT" if shown.redacted else origin.output
    return {
        "steps": next_steps(summary, output, origin.audit),
        "audit": origin.audit,
        "list_name": list_name(origin.audit),
        "by_source": origin.by_source,
        "by_class": origin.by_class,
    }


def template_environment() -> Environment:
    """Return the Jinja environment of all pages: its filters, style and `shell.html.j2`, which every page extends."""
    made = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=formats.finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for each in (
        *(formats.number, formats.score, formats.signed, formats.percent, formats.plural),
        *(formats.moment, formats.duration, formats.visible, formats.untrusted),
    ):
        made.filters[each.__name__] = each
    script = "".join((_HERE / name).read_text(encoding="utf-8") for name in ("page.js", "decisions.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    made.globals.update(style=style, script=Markup(script), script_digest=digest)
    return made


def _failures(scores: pa.Table) -> list[dict[str, Any]]:
    """Return examples of rows that could not be scored, equally many of each status."""
    failed = scores.select(["row", "image_id", "source", "status", "error"])
    failed = failed.filter(pc.not_equal(failed["status"], Status.OK.value)).sort_by("row")
    statuses = pc.unique(failed["status"]).to_pylist()
    each = EXAMPLES // max(1, len(statuses))
    return [
        record
        for status in sorted(statuses)
        for record in failed.filter(pc.equal(failed["status"], status)).slice(0, each).to_pylist()
    ]
