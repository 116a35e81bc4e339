"""The charts of the experiments, as PNG files in the report's style and colours."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from volgrowth.report.charts.figures import ACCENT, BAR, COOL, INK, MUTED, RULE, plot

DASHES = (0, (4, 3))
STACK = (ACCENT, INK, COOL, BAR, RULE)


@dataclass(frozen=True)
class Line:
    """A line of a chart: a value for every x, and a band of one standard deviation around it if `spread` is given.

    Attributes:
        x: where its own values are, if not where those of the chart are.
    """

    name: str
    mean: Sequence[float] | np.ndarray
    colour: str
    spread: np.ndarray | None = None
    dashed: bool = False
    x: Sequence[float] | None = None


@dataclass(frozen=True)
class Marks:
    """A group of marks of a chart with rows: some values for each row, as points, or as the ends of a line."""

    name: str
    colour: str
    values: Sequence[Sequence[float]]
    hollow: bool = False
    joined: bool = False


@dataclass(frozen=True)
class Dots:
    """A group of points (n,) and their colour."""

    x: np.ndarray
    y: np.ndarray
    colour: str


def save_figure(figure: Figure, path: Path, source: str = "") -> None:
    """Write a figure as PNG on white; the same figure gives the same bytes. The file says what its source is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=180, facecolor="white", metadata={"Software": None, "Source": source or None})


@contextmanager
def _panels(count: int, height: float, rows: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure of `count` panels in rows; the report's style holds while it is drawn."""
    with plot(height) as (figure, _):
        figure.clear()
        figure.set_size_inches(5.2 if count == 1 else 9.0, height)
        panels = list(figure.subplots(rows, count // rows, squeeze=False).ravel())
        for axes in panels:
            axes.set_axisbelow(True)
            axes.grid(axis="y")
        yield figure, panels


def _legend(axes: Axes, columns: int = 4) -> None:
    """Name what has a label, in rows above the plot."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, columnspacing=1.2, borderaxespad=0.2)


def column_dots(groups: Mapping[str, np.ndarray], ylabel: str, ceiling: float, ceiling_name: str) -> Figure:
    """Draw one dot per image and one column per group, the groups' means, and a ceiling across."""
    with _panels(1, 3.2) as (figure, (axes,)):
        for place, (values, colour) in enumerate(zip(groups.values(), (ACCENT, COOL), strict=True)):
            aside = np.random.default_rng(0).uniform(-0.16, 0.16, len(values))
            axes.plot(place + aside, values, "o", color=colour, markersize=4, markeredgewidth=0, alpha=0.8)
            axes.plot([place - 0.3, place + 0.3], [values.mean()] * 2, color=INK, linewidth=1.2)
            axes.annotate(f"mean {values.mean():.0f}", (place + 0.33, float(values.mean())), va="center", color=INK)
        axes.axhline(ceiling, color=MUTED, linewidth=1, linestyle=DASHES)
        axes.annotate(ceiling_name, (1.62, ceiling), ha="right", va="bottom", color=MUTED)
        axes.set(xticks=range(len(groups)), xticklabels=list(groups), xlim=(-0.6, 1.65), ylabel=ylabel)
    return figure


def curves(
    x: Sequence[float],
    panels: Mapping[str, Sequence[Line]],
    xlabel: str,
    ticks: Sequence[float] | None = None,
    marker: str = "o",
) -> Figure:
    """Draw panels side by side over one logarithmic x, each with its lines.

    Args:
        panels: lines by the label of the panel's y axis.
        ticks: numbers on the x axis; every x by default.
    """
    shown = list(x if ticks is None else ticks)
    with _panels(len(panels), 3.2) as (figure, drawn):
        for axes, (ylabel, lines) in zip(drawn, panels.items(), strict=True):
            for line in lines:
                style = {"color": line.colour, "linestyle": DASHES if line.dashed else "-", "label": line.name}
                at = x if line.x is None else line.x
                axes.plot(at, line.mean, marker=marker, markersize=4, linewidth=1.6, **style)  # type: ignore[arg-type]
                if line.spread is not None:
                    low, high = line.mean - line.spread, line.mean + line.spread
                    axes.fill_between(at, low, high, color=line.colour, alpha=0.14, linewidth=0)
            axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
            axes.set_xticks(shown, [f"{value:g}" for value in shown])
            axes.minorticks_off()
            _legend(axes, 3 if len(panels) == 1 or len(lines) < 6 else 2)
    return figure


def null_bars(names: Sequence[str], values: np.ndarray, nulls: np.ndarray, xlabel: str) -> Figure:
    """Draw one horizontal bar per name, with a tick at its null."""
    with _panels(1, 0.62 * len(names) + 0.9) as (figure, (axes,)):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        place = np.arange(len(names))[::-1]
        axes.barh(place, values, height=0.56, color=ACCENT)
        axes.plot(nulls, place, "|", color=COOL, markersize=20, markeredgewidth=2.2, label="held-out null")
        for at, value in zip(place, values, strict=True):
            axes.annotate(f" {value:.3f}", (value, at), va="center", color=INK)
        most = max(values.max(), nulls.max(), 0.01)
        axes.set(yticks=place, yticklabels=list(names), xlabel=xlabel, xlim=(0, 1.18 * most))
        _legend(axes)
    return figure


def marks_by_row(
    names: Sequence[str], groups: Sequence[Marks], xlabel: str, across: float | None = None, scale: str = "linear"
) -> Figure:
    """Draw one row per name with the values of each group, and a line down at `across`; NaN is left out."""
    labels = [fill(name, 34) for name in names]
    tallest = 1 + max(label.count("\n") for label in labels)
    with _panels(1, (0.1 + 0.15 * tallest) * len(names) + 1.1) as (figure, (axes,)):
        axes.grid(axis="x")
        place = np.arange(len(names))[::-1]
        for group in groups:
            at, values = np.repeat(place, [len(row) for row in group.values]), np.concatenate(group.values)
            inside = "white" if group.hollow else group.colour
            style = {"color": group.colour, "markerfacecolor": inside, "markersize": 5, "label": group.name}
            axes.plot(values, at, "|" if group.joined else "o", **style)  # type: ignore[arg-type]
            if group.joined:
                axes.hlines(place, *np.transpose(group.values), color=group.colour, linewidth=1.4)
        if across is not None:
            axes.axvline(across, color=MUTED, linewidth=1, linestyle=DASHES)
        axes.set(yticks=place, yticklabels=labels, ylim=(-0.7, len(names) - 0.3), xlabel=xlabel, xscale=scale)
        if scale == "log":
            axes.set_xticks(ticks := [0.25, 0.5, 1, 2, 4], [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        _legend(axes, 2)
    return figure


def outlines(
    panels: Sequence[tuple[str, np.ndarray]], groups: Mapping[str, np.ndarray], colours: Mapping[str, str]
) -> Figure:
    """Draw panels of a quantity (n,), its label first, with a histogram of equal area for each group (n,) bool.

    Two panels, or an even number of them, stand in rows of two; the group in the accent colour is filled.
    """
    with _panels(len(panels), 2.5 * (len(panels) // 2), len(panels) // 2) as (figure, drawn):
        for axes, (xlabel, values) in zip(drawn, panels, strict=True):
            low, high = np.quantile(values, [0.002, 0.998])
            few = [values[rows].min() for rows in groups.values() if 0 < rows.sum() < 50]
            edges = np.linspace(min(low, *few), high, 45)
            for name, rows in groups.items():
                density, _ = np.histogram(np.clip(values[rows], edges[0], edges[-1]), edges, density=True)
                fill = {"fill": True, "alpha": 0.5} if colours[name] == ACCENT else {"linewidth": 1.4}
                axes.stairs(density, edges, color=colours[name], label=name, **fill)  # type: ignore[arg-type]
            axes.set(xlabel=xlabel, yticks=[])
        _legend(drawn[0])
    return figure


def flow_lines(panels: Mapping[str, np.ndarray], box: tuple[float, float]) -> Figure:
    """Draw paths (steps, paths, 2) around a box with a corner at 0, a panel each, with a dot where a path ends."""
    with _panels(len(panels), 4.6) as (figure, drawn):
        for axes, (name, paths) in zip(drawn, panels.items(), strict=True):
            axes.grid(visible=False)
            axes.plot([0, box[0], box[0], 0, 0], [0, 0, box[1], box[1], 0], color=MUTED, linewidth=1)
            axes.plot(paths[:, :, 0], paths[:, :, 1], color=BAR, linewidth=0.9)
            axes.plot(paths[0, :, 0], paths[0, :, 1], ".", color=BAR, markersize=4, label="start")
            axes.plot(paths[-1, :, 0], paths[-1, :, 1], "o", color=ACCENT, markersize=5, label="end")
            for place, label in (((0, 0), "x0"), ((box[0], 0), "x1"), ((0, box[1]), "x2"), (box, "x1 + x2")):
                right, up = (place[0] > 0, place[1] > 0)
                away = (7 if right else -7, 7 if up else -7)
                beside, beyond = "left" if right else "right", "bottom" if up else "top"
                axes.annotate(label, place, away, textcoords="offset points", ha=beside, va=beyond)
            axes.set(aspect="equal", xlabel=f"{name}: along the first edge", ylabel="along the second edge")
            _legend(axes)
    return figure


def stacked_bars(names: Sequence[str], shares: Mapping[str, np.ndarray], xlabel: str, ylabel: str) -> Figure:
    """Draw one bar for each name, cut into at most five shares."""
    with _panels(1, 3.4) as (figure, (axes,)):
        below = np.zeros(len(names))
        for (label, values), colour in zip(shares.items(), STACK, strict=False):
            axes.bar(names, values, 0.62, below, color=colour, label=label)
            below = below + values
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1))
        _legend(axes, 3)
    return figure


def scatters(panels: Sequence[tuple[str, str, Mapping[str, Dots]]]) -> Figure:
    """Draw panels of points side by side: x label, y label, and groups, the last of them on top."""
    with _panels(len(panels), 3.6) as (figure, drawn):
        for axes, (xlabel, ylabel, groups) in zip(drawn, panels, strict=True):
            for label, group in groups.items():
                axes.plot(group.x, group.y, "o", color=group.colour, markersize=4, markeredgewidth=0, label=label)
            axes.set(xlabel=xlabel, ylabel=ylabel)
            _legend(axes)
    return figure
