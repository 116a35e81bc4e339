"""The charts of the paper's experiments, drawn once in a page's colours and once for files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from volgrowth.report.charts import figures


@dataclass(frozen=True)
class Palette:
    """Colours of a figure, by what they mean."""

    ink: str
    muted: str
    rule: str
    bar: str
    accent: str
    cool: str


# stand-ins that `inline_svg` turns into the page's own colours
PAGE = Palette(figures.INK, figures.MUTED, figures.RULE, figures.BAR, figures.ACCENT, figures.COOL)
PRINT = Palette("#1d1c1a", "#66625b", "#e3dfd6", "#bcb7ac", "#b3401a", "#2a6a85")


def _style(palette: Palette) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "volgrowth",
        "font.family": "sans-serif",
        "font.size": 9.5,
        "text.color": palette.ink,
        "text.parse_math": False,
        "axes.labelcolor": palette.muted,
        "axes.edgecolor": palette.muted,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "grid.color": palette.rule,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }


@contextmanager
def _axes(palette: Palette, height: float = 3.2, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes, an array of them where there are several."""
    with mpl.rc_context(_style(palette)):
        figure = Figure(figsize=(5.2 if columns == 1 else 9.0, height), layout="constrained")
        axes = figure.subplots(1, columns)
        for each in np.atleast_1d(axes):
            each.set_axisbelow(True)
            each.grid(axis="y")
        yield figure, axes


def save(figure: Figure, path: Path) -> None:
    """As `path`.png and `path`.svg, on white."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "volgrowth"}):
        figure.savefig(path.with_suffix(".png"), dpi=180, facecolor="white")
        figure.savefig(path.with_suffix(".svg"), facecolor="white", metadata={"Date": None})


def _legend(axes: Axes, columns: int = 4, tall: bool = False) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        handlelength=2.2,
        markerscale=0.5 if tall else 1.0,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def dots(palette: Palette, groups: Mapping[str, np.ndarray], ylabel: str, ceiling: float, ceiling_name: str) -> Figure:
    """One dot an image, a column a group, the mean as a line, and the ceiling across."""
    colours = (palette.accent, palette.cool)
    with _axes(palette) as (figure, axes):
        for place, (values, colour) in enumerate(zip(groups.values(), colours, strict=True)):
            spread = np.random.default_rng(0).uniform(-0.16, 0.16, len(values))
            axes.plot(place + spread, values, "o", color=colour, markersize=4, markeredgewidth=0, alpha=0.8)
            axes.plot([place - 0.3, place + 0.3], [values.mean()] * 2, color=palette.ink, linewidth=1.2)
            label = f"mean {values.mean():.0f}"
            axes.annotate(label, (place + 0.33, float(values.mean())), va="center", color=palette.ink)
        axes.axhline(ceiling, color=palette.muted, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(ceiling_name, (1.62, ceiling), ha="right", va="bottom", color=palette.muted)
        axes.set(xticks=range(len(groups)), xticklabels=list(groups), xlim=(-0.6, 1.65), ylabel=ylabel)
    return figure


@dataclass(frozen=True)
class Line:
    """A group's mean over x, with a band of one standard deviation where given."""

    name: str
    mean: np.ndarray
    spread: np.ndarray | None = None
    role: str = "bar"
    dashed: bool = False


def _draw(axes: Axes, palette: Palette, x: np.ndarray, lines: Sequence[Line], marker: str = "") -> None:
    for line in lines:
        colour = getattr(palette, line.role)
        style = (0, (4, 3)) if line.dashed else "-"
        axes.plot(
            x, line.mean, marker=marker, markersize=4, color=colour, linestyle=style, linewidth=1.6, label=line.name
        )
        if line.spread is not None:
            low, high = line.mean - line.spread, line.mean + line.spread
            axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def trajectories(palette: Palette, whole: Sequence[Line], rates: Sequence[Line]) -> Figure:
    """Log volume over the steps, and what each e-fold of the noise level adds to it."""
    steps = np.arange(1, len(whole[0].mean) + 1)
    with _axes(palette, 3.4, 2) as (figure, (left, right)):
        _draw(left, palette, steps, whole)
        left.set(xlabel="step of 1000", ylabel="log volume, nats per axis")
        _legend(left, 3)
        _draw(right, palette, steps, rates)
        right.set(xscale="log", xlabel="step of 1000, log scale", ylabel="below the point mass, nats per axis")
        shown = [step for step in (1, 10, 100, 1000) if step <= len(steps)]
        right.set_xticks(shown, [str(step) for step in shown])
        right.minorticks_off()
    return figure


def curves(palette: Palette, x: Sequence[float], panels: Sequence[tuple[str, Sequence[Line]]], xlabel: str) -> Figure:
    """Panels side by side over one logarithmic x, each with lines through its points."""
    with _axes(palette, 3.2, len(panels)) as (figure, axes):
        for each, (ylabel, lines) in zip(np.atleast_1d(axes), panels, strict=True):
            _draw(each, palette, np.asarray(x, float), lines, "o")
            each.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
            each.set_xticks(list(x), [f"{value:g}" for value in x])
            each.minorticks_off()
            _legend(each, 2)
    return figure


def bars(palette: Palette, names: Sequence[str], values: np.ndarray, nulls: np.ndarray, xlabel: str) -> Figure:
    """A horizontal bar each, with a tick where its null is."""
    with _axes(palette, 0.62 * len(names) + 0.9) as (figure, axes):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        place = np.arange(len(names))[::-1]
        axes.barh(place, values, height=0.56, color=palette.accent)
        axes.plot(nulls, place, "|", color=palette.cool, markersize=22, markeredgewidth=2.2, label="held-out null")
        for at, value in zip(place, values, strict=True):
            axes.annotate(f" {value:.3f}", (value, at), va="center", color=palette.ink)
        axes.set(
            yticks=place, yticklabels=list(names), xlabel=xlabel, xlim=(0, max(values.max(), nulls.max(), 0.01) * 1.18)
        )
        axes.tick_params(axis="y", length=0)
        _legend(axes, tall=True)
    return figure


def histograms(
    palette: Palette,
    panels: Sequence[tuple[str, np.ndarray]],
    groups: Mapping[str, np.ndarray],
    roles: Mapping[str, str],
) -> Figure:
    """Panels in rows of two, each a quantity (n,); groups (n,) bool as outlines of equal area."""
    with mpl.rc_context(_style(palette)):
        figure = Figure(figsize=(9.0, 2.5 * ((len(panels) + 1) // 2)), layout="constrained")
        axes = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).ravel()
        for each, (xlabel, values) in zip(axes, panels, strict=False):
            low, high = np.quantile(values, [0.002, 0.998])
            edges = np.linspace(
                min(low, *(values[rows].min() for rows in groups.values() if 0 < rows.sum() < 50)), high, 45
            )
            for name, rows in groups.items():
                density, _ = np.histogram(np.clip(values[rows], edges[0], edges[-1]), edges, density=True)
                fill = {"fill": True, "alpha": 0.5} if roles[name] == "accent" else {"linewidth": 1.4}
                each.stairs(density, edges, color=getattr(palette, roles[name]), label=name, **fill)
            each.set(xlabel=xlabel, yticks=[])
            each.spines["left"].set_visible(False)
        _legend(axes[0])
    return figure
