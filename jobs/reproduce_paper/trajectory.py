"""Growth along the way from image to noise, by group of images of a planted case."""

import numpy as np

from jobs.charts import Line, curves
from jobs.experiments import Outcome, say
from jobs.reproduce_paper.planted import planted_case
from jobs.reproduce_paper.published import Growth, published_growth
from jobs.reproduce_paper.workshop import Workshop
from volgrowth.report.charts.figures import ACCENT, COOL, INK, MUTED

AXES = 10
SHOWN = (1, 10, 100, 1000)
STYLES = {
    "memorized": (ACCENT, False),
    "not memorized": (MUTED, False),
    "held out": (COOL, True),
    "plain": (COOL, False),
}


def trajectory(shop: Workshop) -> Outcome:
    """Growth over the steps of memorized, not memorized, held-out and plain images."""
    case, sizes = planted_case(shop), shop.sizes
    axes = min(AXES, case.axes)
    chosen = {
        "memorized": case.distinct[case.memorized],
        "not memorized": case.distinct[~case.memorized & ~case.plain],
        "held out": case.case.holdout[case.strangers],
        "plain": case.distinct[case.plain & ~case.memorized],
    }
    groups = {}
    for name, images in chosen.items():
        say(f"following {min(sizes.trajectory_images, len(images))} {name} images over {sizes.steps} steps")
        groups[name] = published_growth(case.denoiser, images[: sizes.trajectory_images], axes, sizes.steps)
    ceiling = groups["plain"].ceiling / axes
    ours, others, _, plain = (_reached(growth.volume.mean(0) / axes) for growth in groups.values())
    return Outcome(
        sentences=[
            f"Memorized less {name}, nats per axis: "
            + ", ".join(f"{ours[step] - rest[step]:+.3f} {step}" for step in ours)
            + "."
            for name, rest in (("not memorized", others), ("plain", plain))
        ],
        tables={
            "table": [
                *(_group_row(name, growth, axes) for name, growth in groups.items()),
                {"group": "point mass", **_reached(ceiling)},
            ]
        },
        settings={
            **case.settings(),
            "images of each group": sizes.trajectory_images,
            "axes": axes,
            "steps": sizes.steps,
            "radius": 0.05,
        },
        figures={
            "trajectory": curves(
                *_chart(groups, ceiling, axes), ticks=[k for k in SHOWN if k <= sizes.steps], marker=""
            )
        },
    )


def _group_row(name: str, growth: Growth, axes: int) -> dict[str, object]:
    return {
        "group": name,
        "images": len(growth.volume),
        **_reached(growth.volume.mean(0) / axes),
        "sd at the end": (growth.volume[:, -1] / axes).std(),
        "above ceiling": growth.above_ceiling.sum(),
        "sign flips": growth.sign_flip.sum(),
    }


def _reached(path: np.ndarray) -> dict[str, float]:
    """Return the values of a path (steps,) after some of its steps, the last among them."""
    return {f"at step {k}": float(path[k - 1]) for k in sorted({*SHOWN, len(path)}) if k <= len(path)}


def _chart(groups: dict[str, Growth], ceiling: np.ndarray, axes: int) -> tuple[list[float], dict[str, list[Line]], str]:
    """Return x, panels and label of the chart: log volume, and its distance below that of a point mass."""
    whole, below = [], []
    for name, growth in groups.items():
        (colour, dashed), volume = STYLES[name], growth.volume / axes
        whole.append(Line(name, volume.mean(0), colour, volume.std(0), dashed))
        below.append(Line(name, ceiling - volume.mean(0), colour, dashed=dashed))
    whole.append(Line("point mass", ceiling, INK, dashed=True))
    panels = {"log volume, nats per axis": whole, "below the point mass, nats per axis": below}
    return list(range(1, len(ceiling) + 1)), panels, "step of 1000, log scale"
