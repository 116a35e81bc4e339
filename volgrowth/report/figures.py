"""The figures: matplotlib draws them, and they come out as inline SVG that follows the page's colours.

A figure is drawn with stand-in colours which `inline_svg` turns into CSS variables, so that one drawing serves light,
dark and print. Nothing from the data set is written into a figure; names go into the page around it.
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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from volgrowth.report.formats import number, score

# Stand-ins: colours that nothing else in a figure has. The fallbacks serve an SVG outside the page.
INK, MUTED, RULE, BAR, ACCENT, COOL = (f"#00000{k}" for k in range(1, 7))
_CSS = {
    INK: "var(--ink, #1d1c1a)",
    MUTED: "var(--muted, #6b6862)",
    RULE: "var(--rule, #dedad2)",
    BAR: "var(--bar, #b9b5ab)",
    ACCENT: "var(--accent, #b3401a)",
    COOL: "var(--cool, #2a6a85)",
}

BINS = 44
SCATTER_POINTS = 1500
MARKED_POINTS = 400
_REACH = 12.0
"""Histograms reach this many interquartile ranges beyond the quartiles; what lies further is in the last bar."""

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


@dataclass(frozen=True)
class Points:
    """The rows a figure shows, all arrays (N,), scores NaN where missing."""

    growth: np.ndarray
    expected: np.ndarray
    excess: np.ndarray
    png_bytes: np.ndarray
    notable: np.ndarray
    """bool: measured to be reproduced or, where nothing was measured, flagged"""
    shown: np.ndarray
    """bool: in the gallery"""


@contextmanager
def plot(height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of one plot in the page's style, which holds while it is drawn; `height` in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        yield figure, axes


def histogram(
    values: np.ndarray, heldout: np.ndarray | None, notable: np.ndarray, notable_name: str, xlabel: str
) -> Figure:
    """Images per bin; the notable ones stacked on top and ticked below, held-out ones as an outline.

    The held-out outline is scaled to the number of audited images, so that shapes can be compared.
    """
    finite = np.isfinite(values)
    edges = _edges(values[finite], heldout)
    low, high = edges[0], edges[-1]
    plain = np.histogram(np.clip(values[finite & ~notable], low, high), edges)[0]
    special = np.histogram(np.clip(values[finite & notable], low, high), edges)[0]
    with plot(3.0) as (figure, axes):
        axes.stairs(plain, edges, fill=True, color=BAR, label="audited")
        if special.any():
            axes.stairs(plain + special, edges, baseline=plain, fill=True, color=ACCENT, label=notable_name)
        if heldout is not None and heldout.size:
            outline = np.histogram(np.clip(heldout, low, high), edges)[0] * (finite.sum() / heldout.size)
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
        axes.set(xlabel=xlabel, ylabel="images", xlim=(low, high))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        legend(axes)
    return figure


def complexity_scatter(points: Points, notable_name: str, ylabel: str) -> tuple[Figure, int, int]:
    """Growth against PNG size with what was expected of it.

    Returns:
        The figure, how many of the ordinary images it shows, and how many there are.
    """
    known = np.isfinite(points.growth) & (points.png_bytes > 0)
    special = known & (points.notable | points.shown)
    ordinary = _sample(np.flatnonzero(known & ~special), SCATTER_POINTS)
    with plot(3.6) as (figure, axes):
        _dots(axes, points, ordinary, "audited", color=BAR, markersize=2.6)
        _draw_expected(axes, points, known)
        notable = _sample(np.flatnonzero(known & points.notable), MARKED_POINTS)
        _dots(axes, points, notable, notable_name, color=ACCENT, markersize=3.4)
        shown = _sample(np.flatnonzero(known & points.shown), MARKED_POINTS)
        _dots(axes, points, shown, "in the gallery", color="none", markeredgecolor=ACCENT, markersize=5.6)
        _scale_sizes(axes, points.png_bytes[known])
        axes.set(xlabel="size as PNG, bytes", ylabel=ylabel)
        legend(axes)
    return figure, ordinary.size, int(np.count_nonzero(known & ~special))


def returns(levels: list[float], flagged: list[float], controls: list[float]) -> Figure:
    """Share of noised and decoded images that come back, by noise level."""
    with plot(3.0) as (figure, axes):
        axes.plot(levels, flagged, "o-", color=ACCENT, markersize=4, label="flagged")
        axes.plot(levels, controls, "o-", color=BAR, markersize=4, label="controls")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="noise level", ylabel="share that returns", ylim=(-0.02, 1.05))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        legend(axes)
    return figure


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an `<svg>` element for an HTML page; the same figure gives the same bytes."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    body = re.sub(r"<!--.*?-->|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    view_box = re.search(r'viewBox="([\d. -]+)"', body)
    assert view_box is not None  # matplotlib writes one
    body = body[body.index(">") + 1 :].replace("xlink:href", "href")
    # several figures share a page: what they refer to needs names of its own, what nothing refers to none
    body = re.sub(r' id="[a-z]+[A-Z]*_\d+"', "", body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for stand_in, css in _CSS.items():
        body = body.replace(stand_in, css)
    opening = f'<svg viewBox="{view_box[1]}" role="img" aria-label="{escape(alt)}">'
    return Markup(opening + re.sub(r"\s*\n\s*", "\n", body))


def describe(values: np.ndarray) -> str:
    """What a histogram shows, for those who do not see it."""
    values = values[np.isfinite(values)]
    if not values.size:
        return "no images"
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{number(values.size)} images from {score(low)} to {score(high)}, median {score(middle)}"


def beyond_reach(values: np.ndarray, heldout: np.ndarray | None = None) -> int:
    """How many audited images a histogram gathers in its first and last bar."""
    values = values[np.isfinite(values)]
    edges = _edges(values, heldout)
    return int(np.count_nonzero((values < edges[0]) | (values > edges[-1])))


def _edges(values: np.ndarray, heldout: np.ndarray | None) -> np.ndarray:
    everything = values if heldout is None else np.concatenate([values, heldout])
    if not everything.size:
        return np.linspace(0.0, 1.0, BINS + 1)
    low, high = float(everything.min()), float(everything.max())
    first, third = np.quantile(everything, [0.25, 0.75])
    if third > first:
        reach = _REACH * (third - first)
        low, high = max(low, float(first - reach)), min(high, float(third + reach))
    margin = 0.02 * (high - low) or 0.02 * max(1.0, abs(high))
    return np.linspace(low - margin, high + margin, BINS + 1)


def _sample(indices: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, the same ones every time."""
    if indices.size <= most:
        return indices
    return np.sort(np.random.default_rng(0).choice(indices, most, replace=False))


def _dots(axes: Axes, points: Points, chosen: np.ndarray, label: str, **style: object) -> None:
    if chosen.size:
        style = {"linestyle": "none", "marker": "o", "markeredgewidth": 0.9, **style}
        style.setdefault("markeredgecolor", "none")
        axes.plot(points.png_bytes[chosen], points.growth[chosen], label=label, **style)  # type: ignore[arg-type]


def _draw_expected(axes: Axes, points: Points, known: np.ndarray) -> None:
    """Median and central 80% of the expectation along PNG size; it depends on other features too."""
    known = known & np.isfinite(points.expected)
    sizes, expected = points.png_bytes[known], points.expected[known]
    if not sizes.size:
        return
    # of equal width on the log axis: bins of equal count would straddle the gap between plain and other images
    edges = np.geomspace(sizes.min(), sizes.max() + 1, 25)
    bins = np.digitize(sizes, edges)
    occupied = np.unique(bins)
    centres = [np.median(sizes[bins == k]) for k in occupied]
    low, middle, high = np.array([np.quantile(expected[bins == k], [0.1, 0.5, 0.9]) for k in occupied]).T
    axes.fill_between(centres, low, high, color=COOL, alpha=0.16, linewidth=0)
    lonely = {"marker": "_", "markersize": 12} if len(centres) == 1 else {}
    axes.plot(centres, middle, color=COOL, linewidth=1.6, label="expected", **lonely)  # type: ignore[arg-type]


def _scale_sizes(axes: Axes, sizes: np.ndarray) -> None:
    if sizes.size and sizes.max() > 8 * sizes.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def legend(axes: Axes) -> None:
    """What has a label, in a row above the plot."""
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
