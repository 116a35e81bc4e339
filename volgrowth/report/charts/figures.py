"""Drawing of figures: matplotlib draws each once as a PNG and once as an SVG file; the page holds the SVG too.

A figure is drawn in the page's light colours on white; `inline_svg` turns each colour into its CSS variable and leaves
the white out, so that one drawing serves light, dark and print. Nothing from the data set is written into a figure;
names go into the page around it.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from volgrowth.report.charts.numbers import Bars, LevelRates, Spread
from volgrowth.report.formats import number

_PAPER = "#ffffff"
# Six colours that nothing else in a figure has, by what they mean.
INK, MUTED, RULE, BAR, ACCENT, COOL = "#1d1c1a", "#66625b", "#e3dfd6", "#bcb7ac", "#b3401a", "#2a6a85"
_CSS = {
    colour: f"var(--{name}, {colour})"
    for name, colour in zip(
        ("ink", "muted", "rule", "bar", "accent", "cool"), (INK, MUTED, RULE, BAR, ACCENT, COOL), strict=True
    )
}

SCATTER_POINTS = 1500
MARKED_POINTS = 400
DPI = 200

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "volgrowth",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "xtick.major.width": 0.7,
    "xtick.minor.size": 0,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
}

_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class ChartPoints:
    """The n images of a figure, as arrays (n,); missing scores are NaN.

    Attributes:
        growth, expected, excess, evidence, png_bytes: as in the columns of these names.
        flagged: mask of the flagged images.
        reproduced: mask of the images that samples reproduced; None if none were drawn.
    """

    growth: np.ndarray
    expected: np.ndarray
    excess: np.ndarray
    evidence: np.ndarray
    png_bytes: np.ndarray
    flagged: np.ndarray
    reproduced: np.ndarray | None

    @property
    def notable(self) -> tuple[np.ndarray, str]:
        """Mask of the images to look at and the word for them: reproduced ones if known, else flagged ones."""
        return (self.flagged, "flagged") if self.reproduced is None else (self.reproduced, "reproduced")


@contextmanager
def plot(height: float) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure of one plot in the page's style, to be drawn inside the `with` block; `height` in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        yield figure, axes


def draw_histogram(bars: Bars, notable_name: str, xlabel: str, threshold: float | None = None) -> Figure:
    """Draw images per bin: notable ones stacked on top and ticked below the axis, held-out ones as an outline.

    The outline is scaled to the number of audited images, so that shapes can be compared. Flags begin at the
    `threshold`, a dashed line; None for no line.
    """
    edges, plain, special, held = bars.edges, bars.ordinary, bars.notable, bars.held_out
    with plot(3.0) as (figure, axes):
        axes.stairs(plain, edges, fill=True, color=BAR, label="audited")
        if special.any():
            axes.stairs(plain + special, edges, baseline=plain, fill=True, color=ACCENT, label=notable_name)
        if held is not None:
            outline = held * ((plain.sum() + special.sum()) / held.sum())
            axes.stairs(outline, edges, color=COOL, linewidth=1.4, label="held out, scaled")
        if special.any():
            # a bin with three images of a million has no visible height, but it has a tick
            axes.plot(
                ((edges[1:] + edges[:-1]) / 2)[special > 0],
                np.full(np.count_nonzero(special), -0.035),
                "|",
                color=ACCENT,
                markersize=5,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )
            axes.tick_params(axis="x", pad=7)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="flags begin")
        axes.set(xlabel=xlabel, ylabel="images", xlim=(edges[0], edges[-1]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        legend(axes)
    return figure


def draw_complexity(points: ChartPoints, expected: Spread | None, ylabel: str) -> tuple[Figure, int, int]:
    """Draw growth against PNG size, with the growth that was expected.

    Returns:
        The figure, the number of ordinary images that it shows, and the number that there are.
    """
    known = np.isfinite(points.growth) & (points.png_bytes > 0)
    notable, name = points.notable
    ordinary = known & ~notable & ~points.flagged
    chosen = _sample(np.flatnonzero(ordinary), SCATTER_POINTS)
    with plot(3.6) as (figure, axes):
        _dots(axes, points, chosen, "audited", color=BAR, markersize=2.6)
        _draw_expected(axes, expected)
        marked = _sample(np.flatnonzero(known & notable), MARKED_POINTS)
        _dots(axes, points, marked, name, color=ACCENT, markersize=3.4)
        if points.reproduced is not None:
            circled = _sample(np.flatnonzero(known & points.flagged), MARKED_POINTS)
            _dots(axes, points, circled, "flagged", color="none", markeredgecolor=ACCENT, markersize=5.6)
        _scale_sizes(axes, points.png_bytes[known])
        axes.set(xlabel="size as PNG, bytes", ylabel=ylabel)
        legend(axes)
    return figure, chosen.size, int(np.count_nonzero(ordinary))


def draw_levels(measured: LevelRates, ylabel: str) -> Figure:
    """Draw growth by noise level, of flagged images and of their controls: medians and quartiles."""
    with plot(3.0) as (figure, axes):
        axes.axhline(0, color=RULE, linewidth=0.7)
        for spread, colour, name in ((measured.controls, COOL, "controls"), (measured.flagged, ACCENT, "flagged")):
            axes.plot(spread.at, spread.median, "o-", color=colour, markersize=4, label=name)
            if len(spread.at) > 1:
                axes.fill_between(spread.at, spread.low, spread.high, color=colour, alpha=0.16, linewidth=0)
            else:
                axes.vlines(spread.at, spread.low, spread.high, color=colour, linewidth=1.2)
        axes.set(xlabel=measured.axis, ylabel=ylabel)
        if measured.axis == "noise level":
            _log_levels(axes, measured.flagged.at)
        legend(axes)
    return figure


def draw_returns(levels: list[float], flagged: list[float], controls: list[float]) -> Figure:
    """Draw the share of noised and decoded images that come back, by noise level."""
    with plot(3.0) as (figure, axes):
        axes.plot(levels, controls, "o-", color=COOL, markersize=4, label="controls")
        axes.plot(levels, flagged, "o-", color=ACCENT, markersize=4, label="flagged")
        axes.set(xlabel="noise level", ylabel="share that returns", ylim=(-0.02, 1.05))
        _log_levels(axes, np.array(levels))
        legend(axes)
    return figure


def _log_levels(axes: Axes, levels: np.ndarray) -> None:
    """Set a log axis of noise levels; few levels get a tick each."""
    axes.set_xscale("log")
    if len(levels) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(levels.tolist()))
    else:
        axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def figure_files(name: str, figure: Figure) -> dict[str, bytes]:
    """Return a figure as PNG and SVG files on white, bytes by file name; the same figure gives the same bytes."""
    made = {}
    with mpl.rc_context(_STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", _NO_METADATA)):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, facecolor=_PAPER, metadata=metadata)
            made[f"{name}.{kind}"] = buffer.getvalue()
    return made


def inline_svg(file: bytes, name: str, alt: str) -> Markup:
    """Return the SVG file of a figure as an `<svg>` element for an HTML page.

    `name` is unique on the page and starts the ids inside; `alt` describes the figure to those who cannot see it.
    """
    svg = file.decode().replace(f"fill: {_PAPER}", "fill: none")
    body = re.sub(r"<!--.*?-->|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    view_box = re.search(r'viewBox="([\d. -]+)"', body)
    assert view_box is not None  # matplotlib always writes one
    body = body[body.index(">") + 1 :].replace("xlink:href", "href")
    # several figures share a page: ids that a figure refers to become unique, the others go
    body = re.sub(r' id="[a-z]+[A-Z]*_\d+"', "", body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for colour, css in _CSS.items():
        body = body.replace(colour, css)
    opening = f'<svg viewBox="{view_box[1]}" role="img" aria-label="{escape(alt)}">'
    return Markup(opening + re.sub(r"\s*\n\s*", "\n", body))


def _sample(indices: np.ndarray, most: int) -> np.ndarray:
    """Draw at most `most` of the indices, the same ones every time."""
    if indices.size <= most:
        return indices
    return np.sort(np.random.default_rng(0).choice(indices, most, replace=False))


def _dots(axes: Axes, points: ChartPoints, chosen: np.ndarray, label: str, **style: object) -> None:
    if chosen.size:
        style = {"linestyle": "none", "marker": "o", "markeredgewidth": 0.9, **style}
        style.setdefault("markeredgecolor", "none")
        axes.plot(points.png_bytes[chosen], points.growth[chosen], label=label, **style)  # type: ignore[arg-type]


def _draw_expected(axes: Axes, expected: Spread | None) -> None:
    """Draw median and central 80% of the expected growth along PNG size; it depends on other features too."""
    if expected is None:
        return
    axes.fill_between(expected.at, expected.low, expected.high, color=COOL, alpha=0.16, linewidth=0)
    lonely = {"marker": "_", "markersize": 12} if len(expected.at) == 1 else {}
    axes.plot(expected.at, expected.median, color=COOL, linewidth=1.6, label="expected", **lonely)  # type: ignore[arg-type]


def _scale_sizes(axes: Axes, sizes: np.ndarray) -> None:
    if sizes.size and sizes.max() > 8 * sizes.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def legend(axes: Axes) -> None:
    """Draw the legend in a row above the plot, if anything has a label."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(-0.01, 1.0),
            ncols=len(handles),
            handlelength=1.1,
            handletextpad=0.5,
            columnspacing=1.4,
            borderaxespad=0.2,
        )
