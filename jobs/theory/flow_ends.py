"""Where flows of min-norm denoisers end: the source's statements, measured on the closed form and on trained nets."""

from collections import Counter
from itertools import combinations
from math import cos, radians, sqrt

import numpy as np
import torch
from torch import Tensor

from jobs.charts import Line, curves
from jobs.sections import Chart, Row, Section, table
from jobs.theory.flow_charts import flow_lines, stacked
from jobs.theory.setting import Bench, log_levels, scalar, share, simplex
from volgrowth.numerics import EmpiricalDenoiser
from volgrowth.numerics.flow import decode
from volgrowth.theory import (
    HybridDenoiser,
    MinNormDenoiser,
    classify,
    probability_flow,
    score_flow,
    stable_sums,
    vertex_time,
)
from volgrowth.theory.end_points import KINDS
from volgrowth.theory.shallow import Training, stays, train

MEMORIZED = ("origin", "training")
CORNERS = (*MEMORIZED, "virtual")
PUBLISHED_SUMS = {90.5: 32, 92.0: 26, 95.0: 16, 100.0: 6}
PUBLISHED_STABLE = {2: 0.986, 3: 0.835, 4: 0.254}

BOX = (1.0, 1.5, 2.0)
MARGIN, TOP = 0.8, 0.6

# of the trained networks, in the source's largest-coordinate norm, for points one apart
TOLERANCE = 0.2
DIMENSION, POINTS = 30, 31
TRAINING = Training(neurons=100, copies=100, steps=6000, updates=40, learning_rate=1e-2)
FLOW_TRAINING = Training(neurons=80, copies=60, steps=2500, updates=25, learning_rate=1e-2)
LOW, HIGH = log_levels(0.03, 0.2, 5), log_levels(0.2, 5.0, 400)[1:]
TRAINED_DIFFERENCES = [
    "Known to us of the source's settings are the numbers of points and dimensions and the tolerance. Noise "
    "level, scale of the points, neurons, copies, optimiser and schedule are ours, and decide the shares: "
    "shorter training leaves far fewer sums stable, weight decay alone next to none.",
    "High noise has the exact posterior mean in place of networks, so that what is seen is what networks do "
    "where they interpolate.",
    "The source's fall of memorization with the number of points is exact in the closed form (above). These "
    "networks leave wide margins, and the tolerance forgives small moves along an edge, so they show little "
    "of it.",
]


def flows(bench: Bench) -> Section:
    """Stability, end points and their probabilities, in the closed form."""
    facts, sums, falling = orthogonal_facts(bench), obtuse_sums(bench), memorized_by_number(bench)
    deviation = max(abs(row["measured"] - row["Phi(a)^(N - 1)"]) / row["standard error"] for row in falling)
    matched = sum(row["stable"] == row["published"] == row["by the flow"] for row in sums)
    return Section(
        name="flows",
        title="Where flows end",
        setting=f"Orthogonal: edges of {BOX} in five dimensions, margin {MARGIN} times the noise level, flows from "
        f"level {TOP}. Obtuse: five edges of length 1, rho .1. Hybrid: edges of length 2 in 12 dimensions, the exact "
        f"posterior mean down to level .1, 1500 steps, {bench.count(10_000)} samples. float64.",
        tables=[
            table("facts", "Orthogonal data: each statement and the largest error found.", facts),
            table("sums", "Obtuse simplex: stable sums of up to five edges, of 32.", sums),
            table("memorized", "Hybrid flow: share of samples that end at a training point.", falling),
        ],
        charts=[lines_chart(), memorized_chart(falling)],
        findings=[
            "All statements on orthogonal data hold to rounding.",
            f"Stable sums of obtuse data: {matched} of {len(sums)} angles as published, by the criterion and by the "
            "flow.",
            f"The share of memorized samples is within {deviation:.1f} standard errors of Phi(a)^(N - 1): from N = 2 "
            f"to {falling[-1]['N']} it falls from {falling[0]['measured']:.2f} to {falling[-1]['measured']:.2f}.",
        ],
    )


def orthogonal_facts(bench: Bench) -> list[Row]:
    """Each statement about orthogonal data with its error."""
    denoiser = MinNormDenoiser(simplex(BOX, dimension=5), MARGIN)
    count = bench.count(2000)
    starts = 1.3 * bench.randn(count, 5, purpose=1)
    levels = log_levels(1e-3, TOP, 7)
    target = denoiser(starts, scalar(TOP))
    straight = target + levels[0] / TOP * (starts - target)
    reached = probability_flow(denoiser, starts, levels)
    ends = classify(denoiser, decode(denoiser, starts, levels), 1e-8)
    corner = np.array([end.kind in CORNERS for end in ends])
    late = (vertex_time(denoiser, starts) <= TOP**2).numpy()
    corners = torch.stack([denoiser.vertex(m) for k in range(4) for m in combinations(range(1, 4), k)])
    far = starts[((denoiser.coordinates(starts) - denoiser.lengths / 2).abs() > 0.02).all(1)]
    nearest = corners[torch.cdist(far, corners).argmin(1)]
    scored = score_flow(denoiser, far, 0.3, 400.0, 400)

    def row(statement: str, cases: int, error: float) -> Row:
        return {"statement": statement, "cases": cases, "largest error": error}

    return [
        *(row(f"rate at t = {name}: {said}", 3, error) for name, said, error in rates(denoiser)),
        row("corners are fixed points", 8, _error(denoiser(corners, scalar(0.3)), corners)),
        row("the score flow ends at the nearest corner", len(far), _error(scored, nearest)),
        row("the probability flow is a straight line", count, _error(reached, straight)),
        row("and ends at a corner iff T >= tau: share of starts where not", count, float((corner != late).mean())),
    ]


def rates(denoiser: MinNormDenoiser, level: float = 0.3) -> list[tuple[str, str, float]]:
    """Of d/dt (phi(t) - t) at both ends and in the middle of each edge: where, what it should be, error."""
    rho, lengths = denoiser.margin * level, denoiser.lengths
    found = []
    for name, said, place, expected in (
        ("0 and l", "-1", lengths * 0, -torch.ones_like(lengths)),
        ("l / 2", "2 rho / (l - 2 rho)", lengths / 2, 2 * rho / (lengths - 2 * rho)),
    ):
        slope = torch.func.jacrev(lambda t: denoiser.ramps(t[None], scalar(level))[0])(place).diagonal()
        found.append((name, said, _error(slope - 1, expected)))
    return found


def _error(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()


def obtuse_sums(bench: Bench) -> list[Row]:
    """Stable sums by angle, by the criterion and by pushing each corner and letting the score flow go."""
    rows = []
    for angle, published in PUBLISHED_SUMS.items():
        denoiser = MinNormDenoiser(simplex([1.0] * 5, cos(radians(angle))), 1.0)
        corners = torch.stack([denoiser.vertex(m) for k in range(6) for m in combinations(range(1, 6), k)])
        back = score_flow(denoiser, corners + 1e-3 * bench.randn(32, 5, purpose=2), 0.1, 40.0, 400)
        returned = int(((back - corners).abs().amax(1) < 1e-9).sum())
        stable = len(stable_sums(denoiser, 0.1))
        rows.append({"angle, degrees": angle, "stable": stable, "by the flow": returned, "published": published})
    return rows


def memorized_by_number(bench: Bench, margin: float = 1.5) -> list[Row]:
    """The hybrid flow's memorized share for N training points."""
    rows: list[Row] = []
    samples = bench.count(10_000)
    phi = torch.special.ndtr(scalar(margin)).item()
    for number in (2, 3, 5, 8, 12):
        low = MinNormDenoiser(simplex([2.0] * (number - 1), dimension=12), margin)
        hybrid = HybridDenoiser(low, EmpiricalDenoiser(low.points), 0.1)
        chosen = torch.randint(number, (samples,), generator=bench.generator(3))
        start = low.points[chosen] + 5.0 * bench.randn(samples, 12, purpose=4)
        ends = classify(low, decode(hybrid, start, log_levels(1e-3, 5.0, 1500)), 1e-6)
        said = phi ** (number - 1)
        rows.append(
            {
                "N": number,
                "Phi(a)^(N - 1)": said,
                "measured": share(ends, *MEMORIZED),
                "standard error": sqrt(said * (1 - said) / samples),
                "virtual": share(ends, "virtual"),
                "manifold": share(ends, "manifold"),
            }
        )
    return rows


def lines_chart() -> Chart:
    """Both flows in the plane of two edges."""
    denoiser = MinNormDenoiser(simplex((1.0, 1.5)), MARGIN)
    grid = torch.cartesian_prod(*(torch.linspace(-0.35, 1.35 * length, 6).double() for length in (1.0, 1.5)))
    score = torch.stack(
        [score_flow(denoiser, grid, 0.3, duration, 60) for duration in [0.0, *np.geomspace(0.02, 40, 90)]]
    )
    flow = torch.stack([probability_flow(denoiser, grid, log_levels(s, 0.3, 1)) for s in np.linspace(0.299, 1e-3, 30)])
    return Chart(
        "lines",
        "Two edges, of length 1 and 1.5. Left: at one noise level all starts go to a corner of the box, training "
        "points or their sum. Right: while noise falls, starts on a ramp stop between corners.",
        "Paths of the score flow and of the probability flow from a grid of starts around a box.",
        lambda palette: flow_lines(
            palette, {"score flow": score.numpy(), "probability flow": flow.numpy()}, (1.0, 1.5)
        ),
    )


def memorized_chart(rows: list[Row]) -> Chart:
    """Measured share over N, with the formula."""
    lines = [
        Line("measured", np.array([row["measured"] for row in rows]), role="accent"),
        Line("Phi(a)^(N - 1)", np.array([row["Phi(a)^(N - 1)"] for row in rows]), role="ink", dashed=True),
    ]
    return Chart(
        "memorized",
        "The more training points, the fewer samples end at one: a = 1.5.",
        "Share of samples that end at a training point against the number of training points.",
        lambda palette: curves(
            palette, [row["N"] for row in rows], [("share at a training point", lines)], "training points N, log scale"
        ),
    )


def trained(bench: Bench) -> Section:
    """Shallow networks that were trained: stable sums, and end points by the number of points."""
    sums = trained_sums(bench)
    ends = [ends_of(bench, number) for number in ((2, 8, 31) if bench.quick else (2, 4, 8, 16, 31))]
    memorized = [row["origin"] + row["training"] for row in ends]
    return Section(
        name="trained",
        title="Trained shallow networks",
        setting=f"{POINTS} points in {DIMENSION} dimensions, the origin and the unit vectors. Stable sums: networks "
        f"for noise level .1, {_words(TRAINING, bench)}; a sum is stable if 300 iterations of h leave it within "
        f"{TOLERANCE} in every coordinate. End points: networks for six levels from .03 to .2, "
        f"{_words(FLOW_TRAINING, bench)}, and the exact posterior mean above; {bench.count(2000)} samples from "
        "training points with noise of level 5, 400 DDIM steps down to .2 and one for each network; end points "
        f"within {TOLERANCE} in every coordinate. Adam, learning rate .01, falling to 0 in the second half.",
        tables=[
            table("stable", "Sums of training points that are stable, of all there are.", sums),
            table("ends", "Share of end points by the number of training points.", ends),
        ],
        charts=[ends_chart(ends)],
        findings=[
            "Stable sums of "
            + ", ".join(
                f"{row['points in the sum']}: {row['stable, mean']:.1%} ({row['lowest']:.1%} to {row['highest']:.1%}; "
                f"published {row['published']:.1%})"
                for row in sums
                if row["published"] is not None
            )
            + ". In the closed form all are stable.",
            "Samples that end at a training point: "
            + ", ".join(f"{part:.0%} with {row['N']}" for part, row in zip(memorized, ends, strict=True))
            + " points.",
        ],
        differences=TRAINED_DIFFERENCES,
    )


def _words(training: Training, bench: Bench) -> str:
    training = _shorter(training, bench)
    return (
        f"{training.neurons} neurons, {training.copies} noisy copies a point, {training.steps} steps, decay "
        f"{training.decay:g}, augmented Lagrangian, {training.updates} updates"
    )


def _shorter(training: Training, bench: Bench) -> Training:
    if not bench.quick:
        return training
    return Training(
        training.neurons, training.copies, training.decay, training.steps // 10, training.updates // 5, 1e-2
    )


def trained_sums(bench: Bench, level: float = 0.1) -> list[Row]:
    """Which sums of 1 to 4 edges a trained network keeps."""
    points = simplex([1.0] * (POINTS - 1), dimension=DIMENSION)
    training = _shorter(TRAINING, bench)
    networks = []
    for seed in range(1 if bench.quick else 3):
        bench.say(f"network {seed + 1} for stable sums")
        networks.append(train(points, torch.tensor([level]), training, bench.generator(500 + seed), bench.say))
    rows = []
    for size in range(5):
        chosen = list(combinations(range(DIMENSION), size))
        sums = torch.zeros(len(chosen), DIMENSION).scatter_(1, torch.tensor(chosen, dtype=torch.long), 1.0)
        kept = [stays(network, sums, level, TOLERANCE).mean().item() for network in networks]
        rows.append(
            {
                "points in the sum": size,
                "sums": len(chosen),
                "stable, mean": sum(kept) / len(kept),
                "lowest": min(kept),
                "highest": max(kept),
                "published": PUBLISHED_STABLE.get(size),
            }
        )
    return rows


def ends_of(bench: Bench, number: int) -> Row:
    """Where samples of networks trained on so many points end."""
    points = simplex([1.0] * (number - 1), dimension=DIMENSION)
    generator, samples = bench.generator(6), bench.count(2000)
    bench.say(f"networks for {number} points")
    networks = train(points, LOW, _shorter(FLOW_TRAINING, bench), generator)
    denoiser = HybridDenoiser(networks, EmpiricalDenoiser(points), switch=LOW[-1].item() * 1.001)
    chosen = torch.randint(number, (samples,), generator=generator)
    start = points[chosen] + HIGH[-1] * bench.randn(samples, DIMENSION, purpose=7)
    drawn = decode(denoiser, start.float(), torch.cat([LOW, HIGH]))
    ends = Counter(end.kind for end in classify(MinNormDenoiser(points, 1.0), drawn, TOLERANCE))
    return {"N": number, **{kind: ends[kind] / samples for kind in KINDS}}


def ends_chart(rows: list[Row]) -> Chart:
    """Stacked shares over N."""
    shares: dict[str, np.ndarray] = {kind: np.array([row[kind] for row in rows]) for kind in KINDS}
    return Chart(
        "ends",
        "What samples of trained shallow networks are.",
        "Stacked bars: origin, training points, virtual points, manifold points, others, by number of training points.",
        lambda palette: stacked(
            palette, [str(row["N"]) for row in rows], shares, "training points N", "share of samples"
        ),
    )
