r"""Audits of models of which everything is known.

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
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from jobs.benchmark.detection.compared_scores import SCORES, evaluate
from jobs.charts import Dots, scatters
from jobs.experiments import Outcome, say
from jobs.theory.setting import Laboratory, log_levels, simplex
from volgrowth.analysis.ranking import auroc
from volgrowth.numerics import EmpiricalDenoiser, VESchedule, trace_growth, volume_growth
from volgrowth.numerics.flow import decode, encode
from volgrowth.report.charts.figures import ACCENT, BAR, COOL
from volgrowth.theory import HybridDenoiser, MinNormDenoiser

Row = dict[str, Any]

SHAPE, MARGIN, SWITCH, LOWEST = (1, 5, 6), 1.0, 0.6, 0.01
GROUPS = ("training", "virtual", "manifold", "elsewhere")


class KnownModel:
    """Ten orthogonal edges of length 2 to 3 in 30 dimensions, points with 1 to 40 copies, min-norm below level .6.

    Attributes:
        weights: (11,) copies of each point.
        low, denoiser: the min-norm denoiser, and the one with the posterior mean above the level `SWITCH`.
        groups: images of each of `GROUPS`.
    """

    def __init__(self, lab: Laboratory):
        points = simplex(torch.linspace(2.0, 3.0, 10).tolist(), dimension=30).reshape(-1, *SHAPE)
        order = torch.randperm(11, generator=lab.generator(10))
        self.weights = torch.logspace(0, np.log10(40), 11, dtype=torch.float64)[order].round()
        self.low = MinNormDenoiser(points, MARGIN)
        self.mixture = EmpiricalDenoiser(points, self.weights)
        self.denoiser = HybridDenoiser(self.low, self.mixture, SWITCH)
        count = lab.count(100)
        self.groups = {
            "training": points,
            "virtual": self._sums(lab, count),
            "manifold": self._between(lab, count),
            "elsewhere": 0.6 * lab.randn(count, *SHAPE, purpose=13),
        }

    def _sums(self, lab: Laboratory, count: int) -> Tensor:
        """Return sums of two to four edges, chosen at random."""
        every = [m for size in (2, 3, 4) for m in combinations(range(1, 11), size)]
        order = torch.randperm(len(every), generator=lab.generator(11))[:count]
        return torch.stack([self.low.vertex(every[k]) for k in order.tolist()])

    def _between(self, lab: Laboratory, count: int) -> Tensor:
        """Return points between both ends of one to three edges, at the origin's end of the others."""
        generator, points = lab.generator(12), []
        for k in range(count):
            edges = torch.randperm(10, generator=generator)[: 1 + k % 3]
            place = 0.35 + 0.3 * torch.rand(len(edges), generator=generator, dtype=torch.float64)
            points.append(((place * self.low.lengths[edges])[:, None] * self.low.directions[edges]).sum(0))
        return torch.stack(points).reshape(-1, *SHAPE)

    def growth(self, images: Tensor, steps: int = 3) -> np.ndarray:
        """Return (B,) volume of all dimensions from `LOWEST` to `SWITCH`, nats, y-coordinates.

        DDIM is exact on straight lines, so that few steps do.
        """
        frame = torch.eye(30, dtype=torch.float64).reshape(30, *SHAPE).expand(len(images), 30, *SHAPE)
        levels = log_levels(LOWEST, SWITCH, steps)
        grown = volume_growth(self.low, images, VESchedule(), levels, "ddim", tangents=frame, coordinates="y")
        return grown.log_volume[:, -1].numpy()

    def formula_growth(self, images: Tensor) -> np.ndarray:
        """Return (B,) the growth that the module's formula gives points of the box."""
        t, lengths = self.low.coordinates(images), self.low.lengths
        on_ramp = (t > MARGIN * LOWEST) & (t < lengths - MARGIN * LOWEST)
        shrunk = ((lengths - 2 * MARGIN * SWITCH) / (lengths - 2 * MARGIN * LOWEST)).log() - np.log(SWITCH / LOWEST)
        return (30 * np.log(SWITCH / LOWEST) + (on_ramp * shrunk).sum(1)).numpy()

    def log_density(self, images: Tensor) -> np.ndarray:
        """Return (B,) B: growth plus the log density of the blurred training points where the flow ends."""
        levels = log_levels(LOWEST, SWITCH, 3)
        return self.growth(images) + self.mixture.log_prob(encode(self.low, images, levels), levels[-1]).numpy()

    def log_basin_mass(self, images: Tensor) -> np.ndarray:
        """Return (B,) log P of corners."""
        rho, lengths = MARGIN * SWITCH, self.low.lengths
        start, corner = self.low.coordinates(self.low.points), self.low.coordinates(images)
        at_end = torch.special.ndtr((start - (lengths - rho)) / SWITCH)
        at_origin = torch.special.ndtr((rho - start) / SWITCH)
        high = (corner > lengths / 2)[:, None]
        log_shares = torch.where(high, at_end, at_origin).log().sum(2)
        return (log_shares + (self.weights / self.weights.sum()).log()).logsumexp(1).numpy()


def seen(lab: Laboratory) -> Outcome:
    """Growth, B and every score of the bench at training, virtual and manifold points."""
    model = KnownModel(lab)
    scores, exact = _score_auroc(model, lab), _exact_rows(model)
    basins, corners = _basin_rows(model)
    formula = max(abs(row["growth, mean"] - row["formula, mean"]) for row in exact if row["formula, mean"] is not None)
    virtual = {row["score"]: row["against virtual"] for row in scores}
    return Outcome(
        sentences=[
            f"Growth is the same at all corners, training or virtual, and lower at every manifold point; its formula "
            f"holds to {formula:.0e} nats.",
            f"B ranks the basin mass of training points at {basins[0]['B']:.3f} and of all {basins[1]['count']:,} "
            f"corners at {basins[1]['B']:.3f} (Spearman); growth, the same at all, not at all.",
            "Training against virtual points: traces and curvature, which look where the network "
            f"interpolates, are {virtual['traces']:.2f} and {virtual['curvature']:.2f}; scores that reach the levels "
            f"where it averages tell them apart: the volume {virtual['volume']:.2f}, the likelihood "
            f"{virtual['likelihood']:.2f}, PIA {virtual['pia']:.2f}.",
        ],
        tables={"exact": exact, "basins": basins, "scores": scores},
        settings={name: len(images) for name, images in model.groups.items()},
        figures={"seen": _chart(model, corners)},
    )


def _exact_rows(model: KnownModel) -> list[Row]:
    """Return growth and B of each group, with the formula for the groups that it covers."""
    columns = (
        "points",
        "count",
        "growth, mean",
        "lowest",
        "highest",
        "formula, mean",
        "B, mean",
        "B, lowest",
        "B, highest",
    )
    rows = []
    for name, images in model.groups.items():
        growth, density = model.growth(images), model.log_density(images)
        formula = None if name == "elsewhere" else model.formula_growth(images).mean()
        ends = [(values.mean(), values.min(), values.max()) for values in (growth, density)]
        rows.append(dict(zip(columns, (name, len(images), *ends[0], formula, *ends[1]), strict=True)))
    return rows


def _basin_rows(model: KnownModel) -> tuple[list[Row], dict[str, Dots]]:
    """Return how B and growth rank basin mass, over training points and all corners, and both for the chart."""
    members = [m for size in range(11) for m in combinations(range(1, 11), size)]
    every, training = torch.stack([model.low.vertex(m) for m in members]), np.array([len(m) < 2 for m in members])
    mass, density, growth = model.log_basin_mass(every), model.log_density(every), model.growth(every).round(9)
    rows: list[Row] = []
    for name, chosen in (("training points", training), ("all corners", np.ones(len(every), bool))):
        rows.append(
            {
                "corners": name,
                "count": int(chosen.sum()),
                "B": spearmanr(density[chosen], mass[chosen]).statistic,
                "growth": None if np.ptp(growth[chosen]) == 0 else spearmanr(growth[chosen], mass[chosen]).statistic,
                "share of samples": np.exp(mass[chosen]).sum(),
            }
        )
    return rows, {
        "virtual": Dots(mass[~training], density[~training], COOL),
        "training": Dots(mass[training], density[training], ACCENT),
    }


def _score_auroc(model: KnownModel, lab: Laboratory) -> list[Row]:
    """Return the AUROC of each score of the bench, training points against the other groups."""
    rows = []
    for score in SCORES:
        say(f"score {score.name}")
        values = {name: evaluate(score, model.denoiser, images, lab.seed) for name, images in model.groups.items()}
        size = max(np.abs(value).max() for value in values.values())
        ours, *others = ((values[name] / size).round(9) for name in GROUPS)  # equal but for rounding is equal
        against = {
            f"against {name}": auroc(np.r_[ours, other], np.arange(len(ours) + len(other)) < len(ours))
            for name, other in zip(GROUPS[1:], others, strict=True)
        }
        rows.append({"score": score.name, "what": score.source, **against})
    return rows


def _chart(model: KnownModel, corners: dict[str, Dots]) -> Figure:
    """Draw B against growth for the groups, and B against basin mass."""
    spread = {}
    for name, colour in (("manifold", BAR), ("virtual", COOL), ("training", ACCENT)):
        images = model.groups[name]
        aside = np.random.default_rng(0).uniform(-0.4, 0.4, len(images))
        spread[name] = Dots(model.growth(images) + aside, model.log_density(images), colour)
    return scatters([("growth, nats", "B, nats", spread), ("log basin mass, nats", "B, nats", corners)])


def mixtures(lab: Laboratory) -> Outcome:
    """Growth and B against basin mass, in exact denoisers of points with copies."""
    measured = [_mixture_case(lab, case) for case in range(3)]
    rows, panels = [row for row, _ in measured], measured[0][1]
    return Outcome(
        sentences=[
            f"B ranks basin mass at {min(row['B, mass'] for row in rows):.3f} or better; growth at "
            f"{min(row['growth, mass'] for row in rows):+.2f} to {max(row['growth, mass'] for row in rows):+.2f}, and "
            f"the distance from the other points at {min(row['growth, distance'] for row in rows):.2f} or better.",
        ],
        tables={"table": rows},
        settings={"draws": len(rows), "samples of the flow": lab.count(30_000)},
        figures={"mixtures": scatters([(f"{name}, nats", "samples there, %", dots) for name, dots in panels.items()])},
    )


def _mixture_case(lab: Laboratory, case: int) -> tuple[Row, dict[str, dict[str, Dots]]]:
    """Return the rank correlations of one draw of points and copies, and its points for the chart."""
    scale = torch.tensor([1.0] * 40 + [4.0] * 20, dtype=torch.float64)[:, None]
    points = scale * lab.randn(60, 20, purpose=20 + case)
    copies = (50 ** torch.rand(60, generator=lab.generator(30 + case), dtype=torch.float64)).round()
    denoiser, levels = EmpiricalDenoiser(points, copies), log_levels(0.0105, 150.0, 59)
    traced = trace_growth(denoiser, points, levels, 4, lab.generator(40 + case))
    exact = denoiser.log_prob(points, levels[0])
    samples = decode(denoiser, 150 * lab.randn(lab.count(30_000), 20, purpose=50 + case), levels)
    mass = (torch.bincount(torch.cdist(samples, points).argmin(1), minlength=60) / len(samples)).numpy()
    distance = torch.cdist(points, points).fill_diagonal_(np.inf).amin(1).numpy()
    growth, density = traced.log_volume.numpy(), traced.log_likelihood.numpy()
    outlier = scale[:, 0].numpy() > 1
    row = {
        "draw": case + 1,
        "mass, copies": spearmanr(mass, copies.numpy()).statistic,
        "B, mass": spearmanr(density, mass).statistic,
        "exact B, mass": spearmanr(exact.numpy(), mass).statistic,
        "growth, mass": spearmanr(growth, mass).statistic,
        "growth, distance": spearmanr(growth, distance).statistic,
        "B less exact B, mean": float((traced.log_likelihood - exact).mean()),
    }
    groups = (("others", ~outlier, COOL), ("outliers", outlier, ACCENT))
    return row, {
        label: {name: Dots(values[rows], 100 * mass[rows], colour) for name, rows, colour in groups}
        for label, values in (("growth", growth), ("B", density))
    }
