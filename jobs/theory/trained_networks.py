"""Shallow networks that were trained: which sums of training points they keep, and where their flows end."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.charts import stacked_bars
from jobs.experiments import Outcome, say
from jobs.theory.setting import Laboratory, log_levels, simplex
from volgrowth.numerics import EmpiricalDenoiser
from volgrowth.numerics.flow import decode
from volgrowth.theory import HybridDenoiser, MinNormDenoiser, classify
from volgrowth.theory.end_points import KINDS
from volgrowth.theory.shallow import Training, stays, train

PUBLISHED_STABLE = {2: 0.986, 3: 0.835, 4: 0.254}

# in the source's largest-coordinate norm, for points one apart
TOLERANCE = 0.2
DIMENSION, POINTS = 30, 31
TRAINING = Training(neurons=100, copies=100, steps=6000, updates=40, learning_rate=1e-2)
FLOW_TRAINING = Training(neurons=80, copies=60, steps=2500, updates=25, learning_rate=1e-2)
LOW = log_levels(0.03, 0.2, 5)


def trained_networks(lab: Laboratory) -> Outcome:
    """Stable sums of trained shallow networks, and end points by the number of points."""
    sums = _trained_sums(lab)
    ends = [ends_of(lab, number) for number in ((2, 8, 31) if lab.quick else (2, 4, 8, 16, 31))]
    shares: dict[str, np.ndarray] = {kind: np.array([row[kind] for row in ends]) for kind in KINDS}
    return Outcome(
        sentences=[
            "Stable sums of "
            + ", ".join(
                f"{row['points in the sum']}: {row['stable, mean']:.1%} ({row['lowest']:.1%} to {row['highest']:.1%}; "
                f"published {row['published']:.1%})"
                for row in sums
                if row["published"] is not None
            )
            + ". In the closed form all are stable.",
            "Samples that end at a training point: "
            + ", ".join(f"{row['origin'] + row['training']:.0%} with {row['N']}" for row in ends)
            + " points.",
        ],
        tables={"stable": sums, "ends": ends},
        settings={
            "networks for stable sums": 1 if lab.quick else 3,
            "their training steps": shorter(TRAINING, lab).steps,
            "training steps for end points": shorter(FLOW_TRAINING, lab).steps,
            "samples": lab.count(2000),
        },
        figures={
            "ends": stacked_bars([str(row["N"]) for row in ends], shares, "training points N", "share of samples")
        },
    )


def shorter(training: Training, lab: Laboratory) -> Training:
    """Return the settings, with a tenth of the steps and a fifth of the updates if the run is quick."""
    if not lab.quick:
        return training
    return replace(training, steps=training.steps // 10, updates=training.updates // 5)


def _trained_sums(lab: Laboratory, level: float = 0.1) -> list[dict[str, Any]]:
    """Return the shares of sums of up to 4 edges that trained networks keep."""
    points = simplex([1.0] * (POINTS - 1), dimension=DIMENSION)
    networks = []
    for seed in range(1 if lab.quick else 3):
        say(f"network {seed + 1} for stable sums")
        training, generator = shorter(TRAINING, lab), lab.generator(500 + seed)
        networks.append(train(points, torch.tensor([level]), training, generator, say))
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


def ends_of(lab: Laboratory, number: int) -> dict[str, Any]:
    """Return the shares of each kind of end point for samples of networks trained on so many points."""
    points = simplex([1.0] * (number - 1), dimension=DIMENSION)
    return {"N": number, **end_shares(points, draw_ends(lab, points, FLOW_TRAINING, LOW), TOLERANCE)}


def draw_ends(lab: Laboratory, points: Tensor, training: Training, low: Tensor) -> Tensor:
    """Train networks on points (N, D), one for each level of `low` (levels,), and return where samples end, (n, D).

    Above the networks' levels the flow follows the exact posterior mean of the points.
    """
    generator, samples = lab.generator(6), lab.count(2000)
    say(f"networks for {len(points)} points in {points.shape[1]} dimensions")
    networks = train(points, low, shorter(training, lab), generator)
    denoiser = HybridDenoiser(networks, EmpiricalDenoiser(points), switch=low[-1].item() * 1.001)
    high = log_levels(low[-1].item(), 5.0, 400)[1:]
    chosen = torch.randint(len(points), (samples,), generator=generator)
    start = points[chosen] + high[-1] * lab.randn(samples, points.shape[1], purpose=7)
    return decode(denoiser, start.float(), torch.cat([low, high]))


def end_shares(points: Tensor, drawn: Tensor, tolerance: float) -> dict[str, float]:
    """Return the share of each kind of end point among samples (n, D) that are drawn by networks of these points."""
    ends = Counter(end.kind for end in classify(MinNormDenoiser(points, 1.0), drawn, tolerance))
    return {kind: ends[kind] / len(drawn) for kind in KINDS}
