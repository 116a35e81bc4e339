"""Growth along the way from image to noise, by group of images of a planted case."""

from dataclasses import dataclass

import numpy as np

from jobs.charts import Line, trajectories
from jobs.reproduce_paper.planted import planted
from jobs.reproduce_paper.published import Growth, published_growth
from jobs.sections import Chart, Row, Section, Workshop, table

AXES = 10
SHOWN = (1, 10, 100, 1000)


@dataclass(frozen=True)
class Group:
    """Images followed together: log volume per axis, nats, (n, steps); how they are drawn."""

    name: str
    growth: Growth
    axes: int
    role: str
    dashed: bool = False

    @property
    def volume(self) -> np.ndarray:
        return self.growth.volume / self.axes

    @property
    def ceiling(self) -> np.ndarray:
        """(steps,) of a point mass."""
        return self.growth.ceiling / self.axes

    def row(self) -> Row:
        """Means after some of the steps."""
        return {
            "group": self.name,
            "images": len(self.volume),
            **reached(self.volume.mean(0)),
            "sd at the end": self.volume[:, -1].std(),
            "above ceiling": int(self.growth.above_ceiling.sum()),
            "sign flips": int(self.growth.sign_flip.sum()),
        }


def reached(path: np.ndarray) -> Row:
    """A path (steps,) after some of its steps, the last among them."""
    return {f"at step {k}": float(path[k - 1]) for k in sorted({*SHOWN, len(path)}) if k <= len(path)}


def follow(shop: Workshop) -> list[Group]:
    """Memorized, not memorized, held-out and plain images."""
    case, count = planted(shop), shop.scale.trajectory_images
    stranger = ~np.char.startswith(case.trained.case.holdout_names.astype(str), "plain")
    axes, groups = min(AXES, case.axes), []
    for name, images, role, dashed in (
        ("memorized", case.images[case.memorized], "accent", False),
        ("not memorized", case.images[~case.memorized & ~case.plain], "muted", False),
        ("held out", case.holdout[stranger], "cool", True),
        ("plain", case.images[case.plain & ~case.memorized], "cool", False),
    ):
        shop.say(f"following {min(count, len(images))} {name} images over {shop.scale.steps} steps")
        growth = published_growth(case.denoiser, images[:count], axes, shop.scale.steps)
        groups.append(Group(name, growth, axes, role, dashed))
    return groups


def trajectory(shop: Workshop) -> Section:
    """Growth along the way from image to noise, by group."""
    groups, case = follow(shop), planted(shop)
    ceiling = groups[0].ceiling
    ours, others, _, plain = (reached(group.volume.mean(0)) for group in groups)
    return Section(
        name="trajectory",
        title="Growth along the trajectory",
        setting=f"{case.setting()} The first {shop.scale.trajectory_images} images of each group, {groups[0].axes} "
        f"axes, {shop.scale.steps} steps, radius .05.",
        tables=[
            table(
                "trajectory",
                "Mean log volume per axis, nats, x-coordinates.",
                [*(group.row() for group in groups), {"group": "point mass", **reached(ceiling)}],
            )
        ],
        charts=[trajectory_chart(groups)],
        findings=[
            f"Memorized less {name}, nats per axis: "
            + ", ".join(f"{ours[step] - rest[step]:+.3f} {step}" for step in ours)
            + "."
            for name, rest in (("not memorized", others), ("plain", plain))
        ],
        differences=[
            "Held-out and plain images are added to the paper's groups, and the point mass, above which no exact flow "
            "can be."
        ],
    )


def trajectory_chart(groups: list[Group]) -> Chart:
    """Means over the steps."""
    whole = [Line(g.name, g.volume.mean(0), g.volume.std(0), g.role, g.dashed) for g in groups]
    whole.append(Line("point mass", groups[0].ceiling, None, "ink", True))
    below = [Line(g.name, (g.ceiling - g.volume).mean(0), None, g.role, g.dashed) for g in groups]
    return Chart(
        "trajectory",
        "Left: mean log volume per axis, bands of one standard deviation. Right: how far below a point mass.",
        "Log volume of four groups of images over the steps of the probability flow.",
        lambda palette: trajectories(palette, whole, below),
    )
