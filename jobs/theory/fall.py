r"""Which settings of training decide how memorization falls with the number of points.

A shallow network learns its margin from its noisy copies: along the edge of two points it keeps those images in place
that are not farther out than their copies. Of M copies the one that is farthest out is at about m(M) s, with m(M) the
expected maximum of M standard normal numbers and s the noise level. So a network of M copies is like the closed form
with the margin m(M), and of the samples

    Phi(t / s)^(N - 1),    t = rho + tolerance (l - 2 rho) / l,    rho = min(m(M) s, l / 2)

end at a training point or within the tolerance of one: the ramp of the closed form moves what was at t beyond the
tolerance. s is the highest level at which networks are used, where the flow meets them first. The formula knows nothing
of directions beside the edges: it needs more copies than dimensions.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import norm

from jobs.charts import Line, curves
from jobs.experiments import Outcome, say
from jobs.theory.setting import Laboratory, log_levels, simplex
from jobs.theory.trained_networks import DIMENSION, FLOW_TRAINING, TOLERANCE, draw_ends, end_shares, shorter
from volgrowth.report.charts.figures import ACCENT, INK
from volgrowth.theory.shallow import Training

NUMBERS = (2, 4, 8, 16, 31)
STRICT = 0.05
MANY = replace(FLOW_TRAINING, steps=1500)
FEW = replace(MANY, copies=10)


@dataclass(frozen=True)
class Setting:
    """One way to train the networks and to draw from them.

    Attributes:
        name: what is different about it, for the table.
        training: settings of training.
        dimension: D of the points; None for N - 1, as many as there are edges, and two at least.
        levels: number of networks, one for each noise level.
        top: highest noise level that has a network.
    """

    name: str
    training: Training
    dimension: int | None = None
    levels: int = 6
    top: float = 0.2


SETTINGS = (
    Setting("60 copies, 30 dimensions", MANY, DIMENSION),
    Setting("10 copies, 30 dimensions", FEW, DIMENSION),
    Setting("60 copies, N - 1 dimensions", MANY),
    Setting("30 copies, N - 1 dimensions", replace(MANY, copies=30)),
    Setting("10 copies, N - 1 dimensions", FEW),
    Setting("the same, twice as many levels", FEW, levels=12),
    Setting("the same, networks up to level .1", FEW, levels=4, top=0.1),
    Setting("the same, a fifth of the steps", replace(FEW, steps=FEW.steps // 5)),
    Setting("the same, weight decay alone", replace(FEW, updates=0)),
)


def fall(lab: Laboratory) -> Outcome:
    """The share of memorized samples by the number of points, for each setting of the networks."""
    settings = (SETTINGS[0], SETTINGS[4]) if lab.quick else SETTINGS
    numbers = (2, 8) if lab.quick else NUMBERS
    found = {each.name: [_memorized(lab, each, number) for number in numbers] for each in settings}
    wide, few = SETTINGS[0], SETTINGS[4]
    rows = [_row(each, found[each.name], numbers) for each in settings]
    panels = {
        each.name: [
            Line("measured", [at[0] for at in found[each.name]], ACCENT),
            Line("by the formula", [_said(each, number, TOLERANCE) for number in numbers], INK, dashed=True),
        ]
        for each in (few, wide)
    }
    return Outcome(
        sentences=[
            f"{each.name}: "
            + ", ".join(f"{at[0]:.0%}" for at in found[each.name])
            + f" with {_listed(numbers)} points."
            for each in (wide, few)
        ],
        tables={"table": rows},
        settings={
            "samples": lab.count(2000),
            "training steps": shorter(MANY, lab).steps,
            "training points": _listed(numbers),
        },
        figures={"shares": curves(numbers, panels, "training points N, log scale")},
    )


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _row(setting: Setting, found: list[tuple[float, float]], numbers: tuple[int, ...]) -> dict[str, Any]:
    """Return the row of the table: measured, and by the formula, for each number of points."""
    shares = {
        f"N = {number}": f"{at[0]:.2f} ({_said(setting, number, TOLERANCE):.2f})"
        for number, at in zip(numbers, found, strict=True)
    }
    return {"networks": setting.name, **shares, f"N = {numbers[-1]}, within {STRICT}": f"{found[-1][1]:.2f}"}


def _memorized(lab: Laboratory, setting: Setting, number: int) -> tuple[float, float]:
    """Return the share of samples that end within the tolerance of a training point, and within the strict one."""
    say(setting.name)
    points = simplex([1.0] * (number - 1), dimension=setting.dimension or max(2, number - 1))
    low = log_levels(0.03, setting.top, setting.levels - 1)
    drawn = draw_ends(lab, points, setting.training, low)
    wide, strict = (end_shares(points, drawn, tolerance) for tolerance in (TOLERANCE, STRICT))
    return wide["origin"] + wide["training"], strict["origin"] + strict["training"]


def _said(setting: Setting, number: int, tolerance: float) -> float:
    return tolerated_share(widest_copy(setting.training.copies), setting.top, number, tolerance)


def widest_copy(copies: int) -> float:
    """Return m(M), the expected maximum of M standard normal numbers (Blom's approximation, to 1%)."""
    return float(norm.ppf((copies - 0.375) / (copies + 0.25)))


def tolerated_share(margin: float, level: float, number: int, tolerance: float) -> float:
    """Return the formula's share, for edges of length 1.

    Args:
        margin: a, so that rho = a * level.
        level: s, the noise level at which the flow meets the networks.
        number: N, training points.
        tolerance: largest difference of a coordinate at which a sample counts as memorized.
    """
    rho = min(margin * level, 0.5)
    reached = torch.tensor((rho + tolerance * (1 - 2 * rho)) / level, dtype=torch.float64)
    return torch.special.ndtr(reached).item() ** (number - 1)
