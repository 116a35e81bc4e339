"""The figures of a report, chosen and drawn from its tables."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from matplotlib.figure import Figure

from volgrowth.analysis.as_numpy import as_floats, as_mask
from volgrowth.analysis.judging import judge
from volgrowth.report.charts import figures
from volgrowth.report.charts.numbers import (
    LevelRates,
    count_bars,
    counts_directions,
    duplicate_groups,
    expected_by_size,
    level_rates,
    plain_numbers,
)
from volgrowth.report.formats import number, score
from volgrowth.report.gallery.exhibits import Shown
from volgrowth.report.reading import WholeAudit, WholeValues, held_values
from volgrowth.report.words import Summary


@dataclass
class ReportCharts:
    """The figures of a report: their files by name, their SVG for the page by figure, and the numbers in them."""

    files: dict[str, bytes] = field(default_factory=dict)
    svg: dict[str, Markup] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, figure: Figure, alt: str, drawn: Any = None) -> None:
        """Add a figure under a name. `alt` describes it to who cannot see it; `drawn` are numbers the summary lacks."""
        files = figures.figure_files(name, figure)
        self.files |= files
        self.svg[name] = figures.inline_svg(files[f"{name}.svg"], name, alt)
        if drawn is not None:
            self.numbers[name.replace("-", "_")] = plain_numbers(drawn)


def draw_report_charts(
    summary: Summary,
    scores: pa.Table,
    findings: pa.Table,
    shown: Shown,
    holdout: pa.Table | None = None,
    whole: WholeAudit | None = None,
) -> ReportCharts:
    """Draw all figures, and count the table of duplicates; the arguments are those of `render_report`."""
    truth = summary.get("verification")
    made = ReportCharts(numbers={"duplicates": whole.duplicates if whole else duplicate_groups(findings)})
    points = _points(scores, findings, truth)
    counted = whole.values if whole else dict[str, WholeValues]()
    unit = "collapsed directions" if counts_directions(summary["measure"]) else "nats"
    notable, name = points.notable
    made.numbers["notable"] = name if notable.any() else None
    if np.isfinite(points.evidence).any():  # without calibration, and in findings of an older version, there is none
        _evidence(made, points, None if holdout is None else held_values(holdout, "evidence"), counted.get("evidence"))
    for key, values in (("growth", points.growth), ("excess_growth", points.excess)):
        label, heldout = f"{key.replace('_', ' ')}, {unit}", None if holdout is None else held_values(holdout, key)
        bars = counted[key].bars.bars(heldout) if whole else count_bars(values, heldout, notable)
        alt = f"Histogram of {label}: {_in_words(values, counted.get(key))}."
        if heldout is not None:
            alt += f" Held out: {_in_words(heldout)}."
        made.add(key.replace("_", "-"), figures.draw_histogram(bars, name, label), alt, bars)
    _scatter(made, points, f"growth, {unit}", whole)
    pairs = [(each.row, each.control) for each in shown.exhibits if each.control is not None]
    measured = level_rates(scores, pairs, summary["measure"])
    if measured:
        _rates(made, measured, "nats per step" if measured.axis == "step" else "collapsed directions")
    if truth and (back := truth["returns"]):
        alt = f"Share of draws that return, by noise level: flagged {back['flagged']}, controls {back['controls']}."
        made.add("returns", figures.draw_returns(back["levels"], back["flagged"], back["controls"]), alt)
    return made


def _evidence(
    made: ReportCharts, points: figures.ChartPoints, heldout: np.ndarray | None, whole: WholeValues | None
) -> None:
    """Draw the distribution of evidence, and where flags begin: at the least evidence of a flagged image."""
    notable, name = points.notable
    flags = points.evidence[points.flagged & np.isfinite(points.evidence)]
    threshold = whole.least_flagged if whole else float(flags.min()) if flags.size else None
    counted = whole.bars.bars(heldout) if whole else count_bars(points.evidence, heldout, notable)
    alt = f"Histogram of evidence: {_in_words(points.evidence, whole)}."
    if heldout is not None:
        alt += f" Held out: {_in_words(heldout)}."
    if threshold is not None:
        alt += f" Flags begin at {score(threshold)}."
    unit = "spreads" if heldout is None else "held-out spreads"
    figure = figures.draw_histogram(counted, name, f"evidence, {unit}", threshold)
    made.add("evidence", figure, alt, {**plain_numbers(counted), "flags_begin": threshold})


def _scatter(made: ReportCharts, points: figures.ChartPoints, label: str, whole: WholeAudit | None) -> None:
    expected = expected_by_size(points.png_bytes, points.expected)
    figure, dots, ordinary = figures.draw_complexity(points, expected, label)
    above = whole.flagged if whole else int(np.count_nonzero(points.flagged))
    ordinary = whole.ordinary if whole else ordinary
    alt = (
        f"Growth against the size of the image as PNG, with the growth expected at that size. {number(above)} flagged "
        f"images are marked."
    )
    made.add("complexity", figure, alt, {"dots": dots, "ordinary": ordinary, "expected": plain_numbers(expected)})


def _rates(made: ReportCharts, measured: LevelRates, label: str) -> None:
    flagged, controls = (", ".join(map(score, some.median)) for some in (measured.flagged, measured.controls))
    at = ", ".join(f"{level:g}" for level in measured.flagged.at)
    alt = f"Median growth at {measured.axis} {at}: flagged {flagged}; controls {controls}."
    made.add("levels", figures.draw_levels(measured, label), alt, measured)


def _in_words(values: np.ndarray, whole: WholeValues | None = None) -> str:
    """Describe a histogram of values (n,) in words; `values` are a sample if all are counted in `whole`."""
    values = values[np.isfinite(values)]
    if not values.size:
        return "no images"
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    if whole:
        return (
            f"{number(whole.count)} images from {score(whole.low)} to {score(whole.high)}, median about {score(middle)}"
        )
    return f"{number(values.size)} images from {score(low)} to {score(high)}, median {score(middle)}"


def _points(scores: pa.Table, findings: pa.Table, truth: Summary | None) -> figures.ChartPoints:
    """Return one row of each picture: copies that counted would dominate the figures."""
    known = judge(findings, truth)
    first = pa.array(known.first)
    columns = ["row", "growth", "expected_growth", "excess_growth", "memorized"]
    known_evidence = "evidence" in findings.column_names
    findings = findings.select(columns + ["evidence"] * known_evidence).filter(first)
    scores = scores.select(["row", "png_bytes"]).take(
        pc.index_in(findings["row"], value_set=scores["row"].combine_chunks())
    )
    return figures.ChartPoints(
        growth=as_floats(findings["growth"]),
        expected=as_floats(findings["expected_growth"]),
        png_bytes=as_floats(scores["png_bytes"]),
        excess=as_floats(findings["excess_growth"]),
        evidence=as_floats(findings["evidence"]) if known_evidence else np.full(len(findings), np.nan),
        flagged=as_mask(findings["memorized"]),
        reproduced=known.proven[known.first] if truth else None,
    )
