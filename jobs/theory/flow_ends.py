"""Where flows of min-norm denoisers end: the source's statements, measured on the closed form."""

from collections.abc import Iterator
from itertools import combinations
from math import cos, radians, sqrt
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from jobs.charts import Line, curves, flow_lines
from jobs.experiments import Outcome
from jobs.theory.setting import Laboratory, log_levels, simplex
from volgrowth.numerics import EmpiricalDenoiser
from volgrowth.numerics.flow import decode
from volgrowth.report.charts.figures import ACCENT, INK
from volgrowth.theory import (
    HybridDenoiser,
    MinNormDenoiser,
    classify,
    probability_flow,
    score_flow,
    stable_sums,
    vertex_time,
)

Row = dict[str, Any]

PUBLISHED_SUMS = {90.5: 32, 92.0: 26, 95.0: 16, 100.0: 6}
BOX, MARGIN, TOP = (1.0, 1.5, 2.0), 0.8, 0.6


def flow_ends(lab: Laboratory) -> Outcome:
    """Stability, end points and their probabilities, in the closed form."""
    facts, sums, falling = _orthogonal_facts(lab), obtuse_sums(lab), _memorized_by_number(lab)
    deviation = max(abs(row["measured"] - row["Phi(a)^(N - 1)"]) / row["standard error"] for row in falling)
    matched = sum(row["stable"] == row["published"] == row["by the flow"] for row in sums)
    share = {
        "share at a training point": [
            Line("measured", [row["measured"] for row in falling], ACCENT),
            Line("Phi(a)^(N - 1)", [row["Phi(a)^(N - 1)"] for row in falling], INK, dashed=True),
        ]
    }
    return Outcome(
        sentences=[
            f"Statements on orthogonal data hold to {max(row['largest error'] for row in facts):.0e}.",
            f"Stable sums of obtuse data: {matched} of {len(sums)} angles as published, by the criterion and by the "
            "flow.",
            f"The share of memorized samples is within {deviation:.1f} standard errors of Phi(a)^(N - 1): from N = 2 "
            f"to {falling[-1]['N']} it falls from {falling[0]['measured']:.2f} to {falling[-1]['measured']:.2f}.",
        ],
        tables={"facts": facts, "sums": sums, "memorized": falling},
        settings={"starts": facts[-1]["cases"], "samples of the hybrid flow": lab.count(10_000)},
        figures={
            "lines": _lines(),
            "memorized": curves([row["N"] for row in falling], share, "training points N, log scale"),
        },
    )


def _orthogonal_facts(lab: Laboratory) -> list[Row]:
    """Return each statement about orthogonal data with its largest error."""
    denoiser = MinNormDenoiser(simplex(BOX, dimension=5), MARGIN)
    starts, levels = 1.3 * lab.randn(lab.count(2000), 5, purpose=1), log_levels(1e-3, TOP, 7)
    target = denoiser(starts, _level(TOP))
    straight = target + levels[0] / TOP * (starts - target)
    ends = classify(denoiser, decode(denoiser, starts, levels), 1e-8)
    at_corner = np.array([end.kind in ("origin", "training", "virtual") for end in ends])
    late = (vertex_time(denoiser, starts) <= TOP**2).numpy()
    corners = _corners(denoiser, 3)
    far = starts[((denoiser.coordinates(starts) - denoiser.lengths / 2).abs() > 0.02).all(1)]
    nearest = corners[torch.cdist(far, corners).argmin(1)]
    found = [
        *_ramp_rates(denoiser),
        ("corners are fixed points", 8, _error(denoiser(corners, _level(0.3)), corners)),
        (
            "the score flow ends at the nearest corner",
            len(far),
            _error(score_flow(denoiser, far, 0.3, 400.0, 400), nearest),
        ),
        (
            "the probability flow is a straight line",
            len(starts),
            _error(probability_flow(denoiser, starts, levels), straight),
        ),
        (
            "and ends at a corner iff T >= tau: share of starts where not",
            len(starts),
            float((at_corner != late).mean()),
        ),
    ]
    return [dict(zip(("statement", "cases", "largest error"), row, strict=True)) for row in found]


def _ramp_rates(denoiser: MinNormDenoiser, level: float = 0.3) -> Iterator[tuple[str, int, float]]:
    """Yield d/dt (phi(t) - t) at the ends and in the middle of each edge: the statement, cases and error."""
    rho, lengths = denoiser.margin * level, denoiser.lengths
    for statement, place, expected in (
        ("0 and l: -1", lengths * 0, -torch.ones_like(lengths)),
        ("l / 2: 2 rho / (l - 2 rho)", lengths / 2, 2 * rho / (lengths - 2 * rho)),
    ):
        slope = torch.func.jacrev(lambda t: denoiser.ramps(t[None], _level(level))[0])(place).diagonal()
        yield f"rate at t = {statement}", 3, _error(slope - 1, expected)


def _corners(denoiser: MinNormDenoiser, edges: int) -> Tensor:
    """Return all sums of so many edges."""
    return torch.stack([denoiser.vertex(m) for k in range(edges + 1) for m in combinations(range(1, edges + 1), k)])


def _error(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()


def _level(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def obtuse_sums(lab: Laboratory) -> list[Row]:
    """Return the number of stable sums by angle: by the criterion, and by pushing each corner into the score flow."""
    rows = []
    for angle, published in PUBLISHED_SUMS.items():
        denoiser = MinNormDenoiser(simplex([1.0] * 5, cos(radians(angle))), 1.0)
        corners = _corners(denoiser, 5)
        back = score_flow(denoiser, corners + 1e-3 * lab.randn(32, 5, purpose=2), 0.1, 40.0, 400)
        returned = int(((back - corners).abs().amax(1) < 1e-9).sum())
        stable = len(stable_sums(denoiser, 0.1))
        rows.append({"angle, degrees": angle, "stable": stable, "by the flow": returned, "published": published})
    return rows


def _memorized_by_number(lab: Laboratory, margin: float = 1.5) -> list[Row]:
    """Return the hybrid flow's shares of end points for N training points."""
    rows, samples = [], lab.count(10_000)
    for number in (2, 3, 5, 8, 12):
        low = MinNormDenoiser(simplex([2.0] * (number - 1), dimension=12), margin)
        hybrid = HybridDenoiser(low, EmpiricalDenoiser(low.points), 0.1)
        chosen = torch.randint(number, (samples,), generator=lab.generator(3))
        start = low.points[chosen] + 5.0 * lab.randn(samples, 12, purpose=4)
        kinds = [end.kind for end in classify(low, decode(hybrid, start, log_levels(1e-3, 5.0, 1500)), 1e-6)]
        said = torch.special.ndtr(_level(margin)).item() ** (number - 1)
        rows.append(
            {
                "N": number,
                "Phi(a)^(N - 1)": said,
                "measured": (kinds.count("origin") + kinds.count("training")) / samples,
                "standard error": sqrt(said * (1 - said) / samples),
                "virtual": kinds.count("virtual") / samples,
                "manifold": kinds.count("manifold") / samples,
            }
        )
    return rows


def _lines() -> Figure:
    """Draw both flows in the plane of two edges."""
    denoiser = MinNormDenoiser(simplex((1.0, 1.5)), MARGIN)
    grid = torch.cartesian_prod(*(torch.linspace(-0.35, 1.35 * length, 6).double() for length in (1.0, 1.5)))
    durations, levels = [0.0, *np.geomspace(0.02, 40, 90)], np.linspace(0.299, 1e-3, 30)
    score = torch.stack([score_flow(denoiser, grid, 0.3, duration, 60) for duration in durations])
    flow = torch.stack([probability_flow(denoiser, grid, log_levels(level, 0.3, 1)) for level in levels])
    return flow_lines({"score flow": score.numpy(), "probability flow": flow.numpy()}, (1.0, 1.5))
