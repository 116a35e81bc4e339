"""Shallow networks that were trained: which sums of training points they keep, and where their flows end."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch

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
LOW, HIGH = log_levels(0.03, 0.2, 5), log_levels(0.2, 5.0, 400)[1:]


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
            "their training steps": _shorter(TRAINING, lab).steps,
            "training steps for end points": _shorter(FLOW_TRAINING, lab).steps,
            "samples": lab.count(2000),
        },
        figures={
            "ends": stacked_bars([str(row["N"]) for row in ends], shares, "training points N", "share of samples")
        },
    )


def _shorter(training: Training, lab: Laboratory) -> Training:
    if not lab.quick:
        return training
    return replace(training, steps=training.steps // 10, updates=training.updates // 5)


def _trained_sums(lab: Laboratory, level: float = 0.1) -> list[dict[str, Any]]:
    """Return the shares of sums of up to 4 edges that trained networks keep."""
    points = simplex([1.0] * (POINTS - 1), dimension=DIMENSION)
    networks = []
    for seed in range(1 if lab.quick else 3):
        say(f"network {seed + 1} for stable sums")
        training, generator = _shorter(TRAINING, lab), lab.generator(500 + seed)
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
    generator, samples = lab.generator(6), lab.count(2000)
    say(f"networks for {number} points")
    networks = train(points, LOW, _shorter(FLOW_TRAINING, lab), generator)
    denoiser = HybridDenoiser(networks, EmpiricalDenoiser(points), switch=LOW[-1].item() * 1.001)
    chosen = torch.randint(number, (samples,), generator=generator)
    start = points[chosen] + HIGH[-1] * lab.randn(samples, DIMENSION, purpose=7)
    drawn = decode(denoiser, start.float(), torch.cat([LOW, HIGH]))
    ends = Counter(end.kind for end in classify(MinNormDenoiser(points, 1.0), drawn, TOLERANCE))
    return {"N": number, **{kind: ends[kind] / samples for kind in KINDS}}
