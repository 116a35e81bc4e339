"""Models that memorize less: the inertia sampler on a circle, and the linear one-step denoiser."""

from math import pi
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.charts import Line, curves
from jobs.experiments import Outcome
from jobs.theory.setting import Laboratory, log_levels
from volgrowth.numerics import EmpiricalDenoiser, LinearDenoiser, VESchedule, volume_growth
from volgrowth.report.charts.figures import ACCENT, COOL, INK
from volgrowth.theory import inertia_sample
from volgrowth.theory.inertia import memorized_ratio, memorized_share
from volgrowth.theory.linear import divergence, divergence_of_all, seen_always, seen_once

STOPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
NUMBER, RADIUS = 100, 1e-3
COUNTS = (10, 20, 30, 40, 55, 80, 150, 300, 1000)
DIMENSION, LEVEL = 40, 0.3


def inertia(lab: Laboratory) -> Outcome:
    """The memorized share and the distance from the circle, by the noise level at which the sampler stops."""
    rows = _stops(lab)
    first, tenth = rows[0], next(row for row in rows if row["stop"] == 0.1)
    panels = {
        "memorized share": [
            Line("within .001", [row["memorized"] for row in rows], ACCENT),
            Line("by ratio", [row["memorized, by ratio"] for row in rows], COOL),
        ],
        "distance from the circle": [Line("mean distance", [row["distance"] for row in rows], INK)],
    }
    return Outcome(
        sentences=[
            f"Stopped at level {first['stop']} the sampler memorizes {first['memorized']:.3f} of its samples, stopped "
            f"at .1 {tenth['memorized']:.3f}, at a mean distance of {tenth['distance']:.4f} from the circle (s²/2 is "
            ".005).",
            f"The rule decides: by the ratio {tenth['memorized, by ratio']:.2f} count as memorized at .1, and of new "
            f"random points of the circle {tenth['by ratio, of new points']:.2f} would.",
        ],
        tables={"table": rows},
        settings={"training points": NUMBER, "samples": lab.count(4000)},
        figures={"inertia": curves(STOPS, panels, "stopped at noise level, log scale")},
    )


def _stops(lab: Laboratory) -> list[dict[str, Any]]:
    """Return a row for each level at which the sampler stops."""
    points, fresh = _circle(NUMBER, lab.generator(60)), _circle(lab.count(4000), lab.generator(61))
    denoiser, levels = EmpiricalDenoiser(points), log_levels(1e-3, 10.0, 59)
    start = 10 * lab.randn(lab.count(4000), 10, purpose=62)
    rows = []
    for stop in STOPS:
        drawn = torch.cat([inertia_sample(denoiser, part, levels, stop) for part in start.split(500)])
        rows.append(
            {
                "stop": stop,
                "memorized": memorized_share(drawn, points, RADIUS),
                "memorized, by ratio": memorized_ratio(drawn, points),
                "by ratio, of new points": memorized_ratio(fresh, points),
                "distance": (drawn[:, :2].norm(dim=1) - 1).abs().mean().item(),
                "s²/2": stop**2 / 2,
            }
        )
    return rows


def _circle(count: int, generator: torch.Generator) -> Tensor:
    """Return (n, 10) points of a unit circle in R^10, uniformly at random."""
    angles = 2 * pi * torch.rand(count, generator=generator, dtype=torch.float64)
    points = torch.zeros(count, 10, dtype=torch.float64)
    points[:, 0], points[:, 1] = angles.cos(), angles.sin()
    return points


def linear(lab: Laboratory) -> Outcome:
    """The linear one-step denoiser: divergence by the number of samples, and growth of any image."""
    rows = [_divergence_row(lab, count) for count in COUNTS]
    worst = max(rows, key=lambda row: row["seen once"])["n"]
    after = [row["seen once"] for row in rows if row["n"] >= DIMENSION]
    falls = "falls" if after == sorted(after, reverse=True) else "does not fall"
    spread, error = _growth_spread(lab)
    styles = (("seen once", ACCENT, False), ("seen with every noise", COOL, False), ("infinitely many", INK, True))
    lines = [
        Line(name, np.log10([row[name] for row in rows]), colour, dashed=dashed) for name, colour, dashed in styles
    ]
    return Outcome(
        sentences=[
            f"With each sample seen once the divergence is largest at n = {worst} and {falls} monotonically from n = D "
            f"= {DIMENSION} on.",
            f"Growth differs by less than {spread:.0e} nats between images and is within {error:.0e} nats of the "
            "formula.",
        ],
        tables={"divergence": rows},
        settings={"dimensions": DIMENSION, "draws of data and noise": lab.count(50)},
        figures={"divergence": curves(COUNTS, {"log10 KL per dimension": lines}, "samples n, log scale")},
    )


def _divergence_row(lab: Laboratory, count: int) -> dict[str, Any]:
    """Return medians over draws."""
    once, always, generator = [], [], lab.generator(70)
    for _ in range(lab.count(50)):
        data, noise = torch.randn(2, count, DIMENSION, generator=generator, dtype=torch.float64)
        once.append(divergence(seen_once(data, noise, LEVEL), LEVEL))
        always.append(divergence(seen_always(data, LEVEL), LEVEL))
    return {
        "n": count,
        "seen once": float(np.median(once)),
        "seen with every noise": float(np.median(always)),
        "infinitely many": divergence_of_all(LEVEL),
    }


def _growth_spread(lab: Laboratory) -> tuple[float, float]:
    """Return the largest difference of growth between images, and from the closed form."""
    denoiser = LinearDenoiser(lab.randn(5, 6, purpose=71))
    images, levels = 3 * lab.randn(12, 6, purpose=72), log_levels(0.01, 100.0, 400)
    frame = torch.eye(6, dtype=torch.float64).expand(12, -1, -1)
    growth = volume_growth(denoiser, images, VESchedule(), levels, "heun", tangents=frame, coordinates="y").log_volume
    missing = 6 - len(denoiser.variances)
    ratio = (denoiser.variances + levels[-1] ** 2) / (denoiser.variances + levels[0] ** 2)
    said = ratio.log().sum() / 2 + missing * (levels[-1] / levels[0]).log()
    return max(1e-12, float(np.ptp(growth[:, -1].numpy()))), float((growth[:, -1] - said).abs().max())
