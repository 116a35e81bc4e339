"""The page: what the tables say, put into the template.

`render` is pure: tables and numbers in, one string out. The page carries its style, script, figures and pictures
inside, and a content security policy under which a browser would refuse to fetch anything.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from volgrowth.records import Mark, Status
from volgrowth.report import figures, formats, words
from volgrowth.report.gallery import gallery
from volgrowth.report.provenance import provenance
from volgrowth.report.words import Summary

_HERE = Path(__file__).parent

EXAMPLES = 20
PIXELATED_BELOW = 96
"""Images smaller than this are shown with their pixels, larger ones smoothly."""


def render(
    summary: Summary,
    scores: pa.Table,
    findings: pa.Table,
    thumbnails: Mapping[int, bytes],
    holdout: pa.Table | None = None,
) -> str:
    """The report as one self-contained HTML page.

    Args:
        summary: The content of `summary.json`.
        scores: All rows, with the columns of `records.SCORES`.
        findings: All rows, with the columns of `records.FINDINGS`.
        thumbnails: PNG bytes by row: the images to show. Identical ones share a card.
        holdout: growth, expected_growth and excess_growth of held-out images, to lay over the histograms.

    Raises:
        ValueError: a thumbnail is of a row that the tables do not have.
        KeyError: the summary or a table lacks what the page shows, as those of another version may.
    """
    truth = summary.get("verification") or {}
    detection = summary["detection"] or {}
    context = {
        "summary": summary,
        "version": summary["volgrowth"],
        "title": words.title(summary),
        "verdict": words.verdict(summary),
        "judged": words.has_error_rate(summary),
        "warnings": [*detection.get("warnings", ()), *truth.get("warnings", ())],
        "headline_numbers": words.headline_numbers(summary),
        "provenance": provenance(summary),
        "figures": _figures(summary, scores, findings, thumbnails, holdout),
        "cards": gallery(scores, findings, thumbnails, truth.get("rows", ()), detection.get("fdr")),
        "pixelated": max(summary["model"]["image_shape"][1:]) < PIXELATED_BELOW,
        "statuses": [(s.value, summary["counts"][s.value], words.STATUS_MEANING[s]) for s in Status],
        "marks": [(m.value, summary["marks"][m.value], words.MARK_MEANING[m]) for m in Mark],
        "failures": _failures(scores),
    }
    try:
        return environment().get_template("page.html.j2").render(context)
    except UndefinedError as error:
        raise KeyError(error.message) from error


def environment() -> Environment:
    """Where templates find filters, style and `shell.html.j2`, which every page extends and tells a `version`."""
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
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    made.globals.update(style=style, script=Markup(script), script_digest=digest)
    return made


def _figures(
    summary: Summary,
    scores: pa.Table,
    findings: pa.Table,
    thumbnails: Mapping[int, bytes],
    holdout: pa.Table | None,
) -> dict[str, Any]:
    """The figures as SVG, and what has to be said beside them."""
    truth = summary.get("verification")
    points = _points(scores, findings, truth, thumbnails)
    name = "reproduced" if truth else "flagged"
    unit = "collapsed directions" if summary["measure"].get("preset") == "standard" else "nats"
    drawn: dict[str, Any] = {
        "notable": name if points.notable.any() else None,
        "holdout": holdout is not None,
    }
    for key, values, label in (
        ("growth", points.growth, f"growth, {unit}"),
        ("excess_growth", points.excess, f"excess growth, {unit}"),
    ):
        heldout = None if holdout is None else _finite(holdout[key])
        figure = figures.histogram(values, heldout, points.notable, name, label)
        alt = f"Histogram of {label}: {figures.describe(values)}."
        if heldout is not None:
            alt += f" Held out: {figures.describe(heldout)}."
        drawn[key] = figures.inline_svg(figure, key.replace("_", "-"), alt)
        drawn[f"{key}_beyond"] = figures.beyond_reach(values, heldout)
    returns = truth["returns"] if truth else None
    drawn["returns"] = None
    if returns:
        alt = (
            f"Share of draws that return, by noise level: flagged {returns['flagged']}, controls {returns['controls']}."
        )
        figure = figures.returns(returns["levels"], returns["flagged"], returns["controls"])
        drawn["returns"] = figures.inline_svg(figure, "returns", alt)
    figure, drawn["dots"], drawn["ordinary"] = figures.complexity_scatter(points, name, f"growth, {unit}")
    alt = "Growth against the size of the image as PNG, with the growth expected at that size."
    drawn["complexity"] = figures.inline_svg(figure, "complexity", alt)
    return drawn


def _points(
    scores: pa.Table, findings: pa.Table, truth: Summary | None, thumbnails: Mapping[int, bytes]
) -> figures.Points:
    scores = scores.select(["row", "png_bytes"]).take(
        pc.index_in(findings["row"], value_set=scores["row"].combine_chunks())
    )
    rows = findings["row"].to_numpy()
    flagged = pc.fill_null(findings["memorized"], False).to_numpy()
    reproduced = np.isin(rows, np.array(truth["rows"] if truth else [], dtype=np.int64))
    return figures.Points(
        growth=_floats(findings["growth"]),
        expected=_floats(findings["expected_growth"]),
        excess=_floats(findings["excess_growth"]),
        png_bytes=_floats(scores["png_bytes"]),
        notable=reproduced if truth else flagged.astype(bool),
        shown=np.isin(rows, np.array(list(thumbnails), dtype=np.int64)),
    )


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return pc.cast(column, pa.float64()).to_numpy()


def _finite(column: pa.ChunkedArray) -> np.ndarray:
    values = _floats(column)
    return values[np.isfinite(values)]


def _failures(scores: pa.Table) -> list[dict[str, Any]]:
    """Examples of rows that could not be scored, as many of each status as there is room for."""
    failed = scores.select(["row", "image_id", "source", "status", "error"])
    failed = failed.filter(pc.not_equal(failed["status"], Status.OK.value)).sort_by("row")
    statuses = pc.unique(failed["status"]).to_pylist()
    each = EXAMPLES // max(1, len(statuses))
    return [
        record
        for status in sorted(statuses)
        for record in failed.filter(pc.equal(failed["status"], status)).slice(0, each).to_pylist()
    ]
