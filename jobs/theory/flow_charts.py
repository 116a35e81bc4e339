"""Charts of the theory that the paper's have no shape for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from jobs.charts import Palette, _axes, _legend

ORDER = ("accent", "ink", "cool", "bar", "rule")


def flow_lines(palette: Palette, panels: Mapping[str, np.ndarray], box: tuple[float, float]) -> Figure:
    """Paths (steps, paths, 2) around a box with a corner at 0, a panel each, with a dot where a path ends."""
    with _axes(palette, 4.6, len(panels)) as (figure, axes):
        for each, (name, paths) in zip(axes, panels.items(), strict=True):
            each.grid(visible=False)
            each.plot([0, box[0], box[0], 0, 0], [0, 0, box[1], box[1], 0], color=palette.muted, linewidth=1)
            each.plot(paths[:, :, 0], paths[:, :, 1], color=palette.bar, linewidth=0.9)
            each.plot(paths[0, :, 0], paths[0, :, 1], ".", color=palette.bar, markersize=4, label="start")
            each.plot(paths[-1, :, 0], paths[-1, :, 1], "o", color=palette.accent, markersize=5, label="end")
            for place, label in (((0, 0), "x0"), ((box[0], 0), "x1"), ((0, box[1]), "x2"), (box, "x1 + x2")):
                away = [7 if place[k] else -7 for k in (0, 1)]
                sides = ["left" if away[0] > 0 else "right", "bottom" if away[1] > 0 else "top"]
                each.annotate(label, place, away, textcoords="offset points", ha=sides[0], va=sides[1])
            each.set(aspect="equal", xlabel=f"{name}: along the first edge", ylabel="along the second edge")
            _legend(each, 2)
    return figure


def stacked(
    palette: Palette, names: Sequence[str], shares: Mapping[str, np.ndarray], xlabel: str, ylabel: str
) -> Figure:
    """A bar for each name, cut into shares."""
    with _axes(palette, 3.4) as (figure, axes):
        below = np.zeros(len(names))
        for (label, values), role in zip(shares.items(), ORDER, strict=True):
            axes.bar(names, values, 0.62, below, color=getattr(palette, role), label=label)
            below = below + values
        axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, 1))
        _legend(axes, 3)
    return figure


@dataclass(frozen=True)
class Points:
    """A group's points, and the role of their colour."""

    x: np.ndarray
    y: np.ndarray
    role: str


def scatters(palette: Palette, panels: Sequence[tuple[str, str, Mapping[str, Points]]]) -> Figure:
    """Panels of points side by side: x label, y label, and groups, the last of them on top."""
    with _axes(palette, 3.6, len(panels)) as (figure, axes):
        for each, (xlabel, ylabel, groups) in zip(np.atleast_1d(axes), panels, strict=True):
            for label, group in groups.items():
                colour = getattr(palette, group.role)
                each.plot(group.x, group.y, "o", color=colour, markersize=4, markeredgewidth=0, label=label)
            each.set(xlabel=xlabel, ylabel=ylabel)
            _legend(each, 4)
    return figure
