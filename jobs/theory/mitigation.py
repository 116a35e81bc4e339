"""Models that memorize less: the inertia sampler on a circle, and the linear one-step denoiser."""

from math import pi

import numpy as np
import torch
from torch import Tensor

from jobs.charts import Line, curves
from jobs.sections import Chart, Row, Section, table
from jobs.theory.setting import Bench, log_levels
from volgrowth.numerics import EmpiricalDenoiser, LinearDenoiser, VESchedule, volume_growth
from volgrowth.theory import inertia_sample
from volgrowth.theory.inertia import memorized_ratio, memorized_share
from volgrowth.theory.linear import divergence, divergence_of_all, seen_always, seen_once

STOPS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
NUMBER, RADIUS = 100, 1e-3
COUNTS = (10, 20, 30, 40, 55, 80, 150, 300, 1000)
DIMENSION, LEVEL = 40, 0.3


def circle(count: int, generator: torch.Generator) -> Tensor:
    """(n, 10) points of a unit circle in R^10, uniformly at random."""
    angles = 2 * pi * torch.rand(count, generator=generator, dtype=torch.float64)
    points = torch.zeros(count, 10, dtype=torch.float64)
    points[:, 0], points[:, 1] = angles.cos(), angles.sin()
    return points


def inertia(bench: Bench) -> Section:
    """The memorized share against the distance from the manifold, by where the sampler stops."""
    rows = stops(bench)
    first = rows[0]
    tenth = next(row for row in rows if row["stop"] == 0.1)
    return Section(
        name="inertia",
        title="Stopping early: the inertia update",
        setting=f"{NUMBER} points at random on a unit circle in R^10, the exact denoiser of them, {bench.count(4000)} "
        "samples from N(0, 10² I), DDIM on 60 levels from .001 to 10, stopped at the level said and denoised in one "
        f"step. Memorized: within {RADIUS} of a training point. By ratio: nearer to one than a third of the distance "
        "to the second nearest.",
        tables=[table("stops", "Memorized share and mean distance from the circle.", rows)],
        charts=[inertia_chart(rows)],
        findings=[
            f"Stopped at level {first['stop']} the sampler memorizes {first['memorized']:.3f} of its samples, stopped "
            f"at .1 {tenth['memorized']:.3f}, at a mean distance of {tenth['distance']:.4f} from the circle (s²/2 is "
            ".005).",
            f"The rule decides: by the ratio {tenth['memorized, by ratio']:.2f} count as memorized at .1, and of new "
            f"random points of the circle {tenth['by ratio, of new points']:.2f} would.",
        ],
        differences=[
            "Published for n = 100 are .994, and about .001 at s_b = .1. The source's rule for memorized, its noise "
            "schedule and its points are not known to us; the fixed radius is ours."
        ],
    )


def stops(bench: Bench) -> list[Row]:
    """What each level to stop at gives."""
    points = circle(NUMBER, bench.generator(60))
    fresh = circle(bench.count(4000), bench.generator(61))
    denoiser, levels = EmpiricalDenoiser(points), log_levels(1e-3, 10.0, 59)
    start = 10 * bench.randn(bench.count(4000), 10, purpose=62)
    rows: list[Row] = []
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


def inertia_chart(rows: list[Row]) -> Chart:
    """Both sides of the trade-off over the level."""
    shares = [
        Line("within .001", np.array([row["memorized"] for row in rows]), role="accent"),
        Line("by ratio", np.array([row["memorized, by ratio"] for row in rows]), role="cool"),
    ]
    distances = [Line("mean distance", np.array([row["distance"] for row in rows]), role="ink")]
    return Chart(
        "inertia",
        "100 points on a circle. Left: share of samples that are training points. Right: the price, distance from "
        "the circle.",
        "Memorized share and distance from the circle against the noise level at which the sampler stops.",
        lambda palette: curves(
            palette,
            [row["stop"] for row in rows],
            [("memorized share", shares), ("distance from the circle", distances)],
            "stopped at noise level, log scale",
        ),
    )


def linear(bench: Bench) -> Section:
    """The linear one-step denoiser: divergence over the number of samples, growth of any image."""
    rows = [divergence_row(bench, count) for count in COUNTS]
    once = {row["n"]: row["seen once"] for row in rows}
    worst = max(once, key=lambda n: once[n])
    after = [once[n] for n in COUNTS if n >= DIMENSION]
    falls = "falls monotonically" if after == sorted(after, reverse=True) else "does not fall monotonically"
    spread, error = growth_spread(bench)
    return Section(
        name="linear",
        title="The linear one-step denoiser",
        setting=f"Data N(0, I) in {DIMENSION} dimensions, one step from level {LEVEL}, {bench.count(50)} draws of the "
        "data and the noise for each n; divergence of generated from true data, both blurred by .1. Medians. Growth: "
        "12 images in 6 dimensions, data of 5 samples, Heun, 400 steps from level .01 to 100.",
        tables=[table("divergence", f"KL divergence, nats per dimension, {DIMENSION} dimensions.", rows)],
        charts=[linear_chart(rows)],
        findings=[
            f"With each sample seen once the divergence is largest at n = {worst} and {falls} from n = D = "
            f"{DIMENSION} on, as published. A denoiser that saw every noise has no peak, and its divergence falls all "
            "along.",
            f"Growth differs by less than {spread:.0e} nats between images and is within {error:.0e} nats of the "
            "formula: under a linear model growth says nothing of an image.",
        ],
        differences=["How the source fits its denoiser we infer from its statement, which the first fit reproduces."],
    )


def divergence_row(bench: Bench, count: int) -> Row:
    """Medians over draws."""
    once, always = [], []
    generator = bench.generator(70)
    for _ in range(bench.count(50)):
        data, noise = torch.randn(2, count, DIMENSION, generator=generator, dtype=torch.float64)
        once.append(divergence(seen_once(data, noise, LEVEL), LEVEL))
        always.append(divergence(seen_always(data, LEVEL), LEVEL))
    return {
        "n": count,
        "seen once": float(np.median(once)),
        "seen with every noise": float(np.median(always)),
        "infinitely many": divergence_of_all(LEVEL),
    }


def growth_spread(bench: Bench) -> tuple[float, float]:
    """Largest difference of growth between images, and from the closed form."""
    denoiser = LinearDenoiser(bench.randn(5, 6, purpose=71))
    images = 3 * bench.randn(12, 6, purpose=72)
    levels = log_levels(0.01, 100.0, 400)
    frame = torch.eye(6, dtype=torch.float64).expand(12, -1, -1)
    growth = volume_growth(denoiser, images, VESchedule(), levels, "heun", tangents=frame, coordinates="y").log_volume
    missing = 6 - len(denoiser.variances)
    ratio = (denoiser.variances + levels[-1] ** 2) / (denoiser.variances + levels[0] ** 2)
    said = ratio.log().sum() / 2 + missing * (levels[-1] / levels[0]).log()
    return max(1e-12, float(np.ptp(growth[:, -1].numpy()))), float((growth[:, -1] - said).abs().max())


def linear_chart(rows: list[Row]) -> Chart:
    """Divergence over n, on a logarithmic scale."""
    lines = [
        Line(name, np.log10([row[name] for row in rows]), role=role, dashed=dashed)
        for name, role, dashed in (
            ("seen once", "accent", False),
            ("seen with every noise", "cool", False),
            ("infinitely many", "ink", True),
        )
    ]
    return Chart(
        "divergence",
        f"Seen once, {DIMENSION} samples in {DIMENSION} dimensions are the worst case.",
        "Logarithm of the divergence against the number of samples, for two fits and the limit.",
        lambda palette: curves(
            palette, [row["n"] for row in rows], [("log10 KL per dimension", lines)], "samples n, log scale"
        ),
    )
