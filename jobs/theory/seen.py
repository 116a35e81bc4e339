r"""What an audit sees in models of which everything is known.

**Min-norm.** Between the levels s_0 and s_T the flow of a min-norm denoiser on orthogonal data is a straight line in
each coordinate. Off the ramps a direction grows by s_T / s_0. On one, t - l/2 is proportional to l - 2 a s, so it
shrinks. With k coordinates on ramps, those of a manifold point,

    growth = (D - k) log(s_T / s_0) + sum over ramps of log((l - 2 a s_T) / (l - 2 a s_0))

and for every corner, training point or not, D log(s_T / s_0). With the training points blurred by s_T at the start the
flow has the density log p(x) = B = growth + log p_T(x_T), and a corner v stays where it is, x_T = v. The share of all
samples that end there, its *basin mass*, is

    P(v) = sum_k w_k prod_n q_n(v_n, x_kn)

with q_n the probability that x_kn + s_T e is on the side of v_n off the ramp, weights w_k of the training points.

**Mixtures.** The exact denoiser of weighted points ends at each of them with its weight as probability.
"""

from itertools import combinations

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from jobs.benchmark.detection.compared_scores import SCORES, evaluate
from jobs.benchmark.detection.metrics import detect
from jobs.sections import Chart, Row, Section, table
from jobs.theory.flow_charts import Points, scatters
from jobs.theory.setting import Bench, log_levels, simplex
from volgrowth.numerics import EmpiricalDenoiser, VESchedule, trace_growth, volume_growth
from volgrowth.numerics.flow import decode, encode
from volgrowth.theory import HybridDenoiser, MinNormDenoiser

SHAPE, MARGIN, SWITCH, LOWEST = (1, 5, 6), 1.0, 0.6, 0.01
GROUPS = ("training", "virtual", "manifold", "elsewhere")


class Laboratory:
    """Ten orthogonal edges of length 2 to 3 in 30 dimensions, points with 1 to 40 copies, min-norm below level .6.

    Attributes:
        weights: (11,) copies of each point.
        low, denoiser: the min-norm denoiser, and with the posterior mean above it.
        groups: images of each of `GROUPS`.
    """

    def __init__(self, bench: Bench):
        lengths = torch.linspace(2.0, 3.0, 10).tolist()
        points = simplex(lengths, dimension=30).reshape(-1, *SHAPE)
        self.weights = torch.logspace(0, np.log10(40), 11, dtype=torch.float64)[
            torch.randperm(11, generator=bench.generator(10))
        ].round()
        self.low = MinNormDenoiser(points, MARGIN)
        self.mixture = EmpiricalDenoiser(points, self.weights)
        self.denoiser = HybridDenoiser(self.low, self.mixture, SWITCH)
        count = bench.count(100)
        self.groups = {
            "training": points,
            "virtual": self.sums(bench, count),
            "manifold": self.between(bench, count),
            "elsewhere": 0.6 * bench.randn(count, *SHAPE, purpose=13),
        }

    def sums(self, bench: Bench, count: int) -> Tensor:
        """Sums of two to four edges, chosen at random."""
        every = [m for size in (2, 3, 4) for m in combinations(range(1, 11), size)]
        order = torch.randperm(len(every), generator=bench.generator(11))[:count]
        return torch.stack([self.low.vertex(every[k]) for k in order.tolist()])

    def between(self, bench: Bench, count: int) -> Tensor:
        """Points that are between both ends of one to three edges, at the origin's end of the others."""
        generator = bench.generator(12)
        points = []
        for k in range(count):
            edges = torch.randperm(10, generator=generator)[: 1 + k % 3]
            place = 0.35 + 0.3 * torch.rand(len(edges), generator=generator, dtype=torch.float64)
            points.append(((place * self.low.lengths[edges])[:, None] * self.low.directions[edges]).sum(0))
        return torch.stack(points).reshape(-1, *SHAPE)

    def growth(self, images: Tensor, steps: int = 3) -> np.ndarray:
        """(B,) volume of all dimensions from `LOWEST` to `SWITCH`, nats, y-coordinates; DDIM is exact on straight "
        "lines."""
        frame = torch.eye(30, dtype=torch.float64).reshape(30, *SHAPE).expand(len(images), 30, *SHAPE)
        levels = log_levels(LOWEST, SWITCH, steps)
        grown = volume_growth(
            self.low, images, VESchedule(), levels, "ddim", tangents=frame, coordinates="y"
        ).log_volume
        return grown[:, -1].numpy()

    def log_density(self, images: Tensor) -> np.ndarray:
        """(B,) B: growth plus the log density of the blurred training points where the flow ends."""
        levels = log_levels(LOWEST, SWITCH, 3)
        far = encode(self.low, images, levels)
        return self.growth(images) + self.mixture.log_prob(far, levels[-1]).numpy()

    def log_basin_mass(self, images: Tensor) -> np.ndarray:
        """(B,) log P of corners."""
        rho, lengths = MARGIN * SWITCH, self.low.lengths
        start, corner = self.low.coordinates(self.low.points), self.low.coordinates(images)
        at_end = torch.special.ndtr((start - (lengths - rho)) / SWITCH)
        at_origin = torch.special.ndtr((rho - start) / SWITCH)
        high = (corner > lengths / 2)[:, None]
        log_shares = torch.where(high, at_end, at_origin).log().sum(2)
        return (log_shares + (self.weights / self.weights.sum()).log()).logsumexp(1).numpy()


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive is above a negative, ties half."""
    member = np.r_[np.ones(len(positive), bool), np.zeros(len(negative), bool)]
    return float(detect(np.r_[positive, negative], member, np.ones((1, len(member))))["auroc"][0])


def audit(bench: Bench) -> Section:
    """Growth, B and every score of the bench at training, virtual and manifold points."""
    lab = Laboratory(bench)
    scores = score_rows(lab, bench)
    exact = exact_rows(lab)
    basins, corners = basin_rows(lab)
    formula = max(abs(row["growth, mean"] - row["formula, mean"]) for row in exact if row["formula, mean"] is not None)
    return Section(
        name="audit",
        title="What the audit sees",
        setting="Ten orthogonal edges of length 2 to 3 in 30 dimensions, as images 1x5x6; training points with 1 to "
        "40 copies; margin 1 times the noise level. Min-norm up to level .6, the exact posterior mean of the "
        f"weighted training points above. {len(lab.groups['virtual'])} virtual points (sums of two to four), as many "
        "manifold points (one to three edges in between), as many random images. Exact volume: all 30 axes, levels "
        ".01 to .6, DDIM in 3 steps. Scores: as in the bench (docs/detection.md), raw.",
        tables=[
            table("exact", "Exact growth from level .01 to .6 and B, nats.", exact),
            table("basins", "Spearman correlation with log basin mass.", basins),
            table("scores", "AUROC of training points against each of the others, raw scores of the bench.", scores),
        ],
        charts=[seen_chart(lab, corners)],
        findings=[
            "Growth is the same at all corners, training or virtual, and lower at every manifold point; its formula "
            f"holds to {formula:.0e} nats.",
            f"B ranks the basin mass of training points at {basins[0]['B']:.3f} and of all {basins[1]['count']:,} "
            f"corners at {basins[1]['B']:.3f} (Spearman); growth, the same at all, not at all.",
            "Training against virtual points: preset standard and curvature, which look where the network "
            f"interpolates, are {_of(scores, 'standard', 'virtual'):.2f} and "
            f"{_of(scores, 'curvature', 'virtual'):.2f}; what reaches the levels where it averages tells them: the "
            f"volume {_of(scores, 'volume', 'virtual'):.2f}, the likelihood "
            f"{_of(scores, 'likelihood', 'virtual'):.2f}, PIA {_of(scores, 'pia', 'virtual'):.2f}.",
        ],
    )


def _of(rows: list[Row], name: str, group: str) -> float:
    return next(row[f"against {group}"] for row in rows if row["score"] == name)


def exact_rows(lab: Laboratory) -> list[Row]:
    """Growth and B of each group, with the formula where it has one."""
    rows: list[Row] = []
    for name, images in lab.groups.items():
        growth = lab.growth(images)
        said = formula_growth(lab, images) if name != "elsewhere" else None
        density = lab.log_density(images)
        rows.append(
            {
                "points": name,
                "count": len(images),
                "growth, mean": float(growth.mean()),
                "lowest": float(growth.min()),
                "highest": float(growth.max()),
                "formula, mean": None if said is None else float(said.mean()),
                "B, mean": float(density.mean()),
                "B, lowest": float(density.min()),
                "B, highest": float(density.max()),
            }
        )
    return rows


def formula_growth(lab: Laboratory, images: Tensor) -> np.ndarray:
    """The module's formula at points of the box."""
    t, lengths = lab.low.coordinates(images), lab.low.lengths
    on_ramp = (t > MARGIN * LOWEST) & (t < lengths - MARGIN * LOWEST)
    shrunk = ((lengths - 2 * MARGIN * SWITCH) / (lengths - 2 * MARGIN * LOWEST)).log() - np.log(SWITCH / LOWEST)
    return (30 * np.log(SWITCH / LOWEST) + (on_ramp * shrunk).sum(1)).numpy()


def basin_rows(lab: Laboratory) -> tuple[list[Row], dict[str, Points]]:
    """How B and growth rank basin mass, over training points and over all corners of the box; log masses and B."""
    every = torch.stack([lab.low.vertex(m) for size in range(11) for m in combinations(range(1, 11), size)])
    member = np.array([size < 2 for size in range(11) for _ in combinations(range(1, 11), size)])
    mass, density, growth = lab.log_basin_mass(every), lab.log_density(every), lab.growth(every).round(9)
    rows: list[Row] = []
    for name, chosen in (("training points", member), ("all corners", np.ones(len(every), bool))):
        rows.append(
            {
                "corners": name,
                "count": int(chosen.sum()),
                "B": float(spearmanr(density[chosen], mass[chosen]).statistic),
                "growth": None if np.ptp(growth[chosen]) == 0 else float(spearmanr(growth[chosen], mass[chosen])[0]),
                "share of samples": float(np.exp(mass[chosen]).sum()),
            }
        )
    return rows, {
        "virtual": Points(mass[~member], density[~member], "cool"),
        "training": Points(mass[member], density[member], "accent"),
    }


def score_rows(lab: Laboratory, bench: Bench) -> list[Row]:
    """AUROC of each score of the bench, training points against the other groups."""
    rows = []
    for score in SCORES:
        bench.say(f"score {score.name}")
        values = {name: evaluate(score, lab.denoiser, images, bench.seed) for name, images in lab.groups.items()}
        size = max(np.abs(value).max() for value in values.values())
        values = {name: (value / size).round(9) for name, value in values.items()}  # equal but for rounding is equal
        row: Row = {"score": score.name, "what": score.source}
        rows.append(row | {f"against {name}": auroc(values["training"], values[name]) for name in GROUPS[1:]})
    return rows


def seen_chart(lab: Laboratory, corners: dict[str, Points]) -> Chart:
    """Growth against B of the groups, and B against basin mass."""
    spread = {}
    for name, role in (("manifold", "bar"), ("virtual", "cool"), ("training", "accent")):
        images = lab.groups[name]
        aside = np.random.default_rng(0).uniform(-0.4, 0.4, len(images))
        spread[name] = Points(lab.growth(images) + aside, lab.log_density(images), role)
    return Chart(
        "seen",
        "Left: growth tells corners from points between them, but not training from virtual ones (dots are spread "
        "sideways by up to .4). Right: over all corners, B ranks how many samples end there.",
        "Scatter plots of B against growth for three groups of points, and of B against log basin mass of all corners.",
        lambda palette: scatters(
            palette, [("growth, nats", "B, nats", spread), ("log basin mass, nats", "B, nats", corners)]
        ),
    )


def mixtures(bench: Bench) -> Section:
    """Exact denoisers of points with copies: growth and B against basin mass."""
    measured = [mixture_case(bench, case) for case in range(3)]
    rows = [row for row, _ in measured]
    return Section(
        name="mixtures",
        title="Duplicates in the exact model of a finite set",
        setting="60 points in 20 dimensions, 40 of N(0, I) and 20 outliers of N(0, 16 I), with 1 to 50 copies, "
        f"log-uniform; three draws. Basin mass by {bench.count(30_000)} samples of the flow from N(0, 150² I), 60 "
        "steps; growth and log likelihood B as preset volume measures them, 60 levels from .0105 to 150, 4 probes; "
        "exact B by the mixture's density.",
        tables=[table("mixtures", "Spearman correlation over the 60 points.", rows)],
        charts=[mixture_chart(measured[0][1])],
        findings=[
            f"B ranks basin mass at {min(row['B, mass'] for row in rows):.3f} or better; growth at "
            f"{min(row['growth, mass'] for row in rows):+.2f} to {max(row['growth, mass'] for row in rows):+.2f}, and "
            f"the distance from the other points at {min(row['growth, distance'] for row in rows):.2f} or better.",
        ],
    )


def mixture_case(bench: Bench, case: int) -> tuple[Row, dict[str, np.ndarray]]:
    """One draw of points and copies, measured."""
    scale = torch.tensor([1.0] * 40 + [4.0] * 20, dtype=torch.float64)[:, None]
    points = scale * bench.randn(60, 20, purpose=20 + case)
    copies = (50 ** torch.rand(60, generator=bench.generator(30 + case), dtype=torch.float64)).round()
    denoiser, levels = EmpiricalDenoiser(points, copies), log_levels(0.0105, 150.0, 59)
    traced = trace_growth(denoiser, points, levels, 4, bench.generator(40 + case))
    exact = denoiser.log_prob(points, levels[0])
    samples = decode(denoiser, 150 * bench.randn(bench.count(30_000), 20, purpose=50 + case), levels)
    mass = torch.bincount(torch.cdist(samples, points).argmin(1), minlength=60) / len(samples)
    distance = torch.cdist(points, points).fill_diagonal_(np.inf).amin(1)
    growth, density = traced.log_volume.numpy(), traced.log_likelihood.numpy()

    def rank(left: np.ndarray, right: Tensor) -> float:
        return float(spearmanr(left, right.numpy()).statistic)

    row: Row = {
        "draw": case + 1,
        "mass, copies": rank(mass.numpy(), copies),
        "B, mass": rank(density, mass),
        "exact B, mass": rank(exact.numpy(), mass),
        "growth, mass": rank(growth, mass),
        "growth, distance": rank(growth, distance),
        "B less exact B, mean": float((traced.log_likelihood - exact).mean()),
    }
    outlier = scale[:, 0].numpy() > 1
    return row, {"growth": growth, "B": density, "mass": mass.numpy(), "outlier": outlier}


def mixture_chart(found: dict[str, np.ndarray]) -> Chart:
    """Growth and B against basin mass."""
    out = found["outlier"]

    def groups(name: str) -> dict[str, Points]:
        mass, value = 100 * found["mass"], found[name]
        return {"others": Points(value[~out], mass[~out], "cool"), "outliers": Points(value[out], mass[out], "accent")}

    return Chart(
        "mixtures",
        "Left: growth is high at outliers, often generated or not. Right: B tells how often a point is generated.",
        "Share of samples at each point against growth and against B.",
        lambda palette: scatters(
            palette,
            [("growth, nats", "samples there, %", groups("growth")), ("B, nats", "samples there, %", groups("B"))],
        ),
    )
