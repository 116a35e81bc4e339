"""The published algorithm, as one would write it, and ours, on the same work."""

import itertools
from dataclasses import dataclass
from math import exp, sqrt
from typing import Any

import torch
from torch import Tensor

from jobs.benchmark.cost.roofline import seconds_each
from jobs.benchmark.cost.subjects import Subject, denoiser_of, images_of
from volgrowth.audit.scoring.derivatives import true_float32
from volgrowth.models import NetworkDenoiser
from volgrowth.numerics import volume_growth


@dataclass(frozen=True)
class Race:
    """The published loop over images and points, and ours, on the same work: seconds, and how far the numbers differ.

    Attributes:
        naive, batched, low: seconds of the loop, of batches in float32 by differences, and in bfloat16 by derivatives.
        difference: largest deviation of the batches' log volumes from the loop's, relative to their spread.
        low_difference: largest deviation of bfloat16 derivatives' log volumes from float64 ones, nats an axis and step.
    """

    network: str
    images: int
    axes: int
    steps: int
    naive: float
    batched: float
    low: float
    difference: float
    low_difference: float


def published_loop(denoiser: NetworkDenoiser, images: Tensor, frames: Tensor, times: list[float]) -> Tensor:
    """(images,) log volume growth, as one would write the published algorithm: image by image and point by point.

    VPSDE with beta 0.1 to 20, Euler steps of dx/dt = -beta/2 (x - eps / sigma), differences of length .05, Gram-Schmidt
    after every step (arXiv 2503.19429).
    """
    radius = 0.05

    def step(x: Tensor, t: float, dt: float) -> Tensor:
        decay = -0.5 * t * t * 19.9 - 0.1 * t
        alpha, sigma = exp(decay / 2), sqrt(1 - exp(decay))
        level = torch.tensor(sigma / alpha, dtype=torch.float64)
        return x - dt * (0.1 + 19.9 * t) / 2 * (x - denoiser.noise(x[None] / alpha, level)[0] / sigma)

    grown = []
    for x, frame in zip(images, frames, strict=True):
        tangents, volume = list(frame), 0.0
        for t, s in itertools.pairwise(times):
            after = step(x, t, s - t)
            moved, tangents = [step(x + radius * u, t, s - t) - after for u in tangents], []
            for v in moved:
                for u in tangents:
                    v = v - (v * u).sum() * u
                volume += (v.norm() / radius).log().item()
                tangents.append(v / v.norm())
            x = after
        grown.append(volume)
    return torch.tensor(grown, dtype=torch.float64)


@torch.no_grad()
def race(subject: Subject, device: torch.device, images: int, axes: int, steps: int, rounds: int = 3) -> Race:
    """The same images, axes and times in three ways."""
    batch = subject.batch[device.type == "cuda"]
    whole = images_of(subject, images, device)
    draws = torch.randn(images, axes, *subject.shape, generator=torch.Generator().manual_seed(1))
    frames = torch.linalg.qr(draws.flatten(2).mT).Q.mT.reshape(draws.shape).to(device)
    times = [(1 + k) / 1000 for k in range(steps + 1)]

    def ours(denoiser: NetworkDenoiser, derivative: Any) -> Tensor:
        grown = []
        for first in range(0, images, batch):
            some, given = (each[first : first + batch].to(denoiser.dtype) for each in (whole, frames))
            grid = torch.tensor(times, dtype=torch.float64)
            grown.append(volume_growth(denoiser, some, times=grid, derivative=derivative, tangents=given).log_volume)
        return torch.cat(grown)[:, -1].double().cpu()

    exact, low = denoiser_of(subject, torch.float32, device), denoiser_of(subject, torch.bfloat16, device)
    double = ours(denoiser_of(subject, torch.float64, device), "jvp")
    found: dict[str, Tensor] = {}

    def loop() -> None:
        with true_float32():
            found["loop"] = published_loop(exact, whole, frames, times)

    def batches() -> None:
        with true_float32():
            found["batches"] = ours(exact, "difference")

    def derivatives() -> None:
        found["low"] = ours(low, "jvp")

    naive, batched, derived = seconds_each([loop, batches, derivatives], device, rounds)
    spread = (found["loop"].max() - found["loop"].min()).item() or found["loop"].abs().max().item()
    return Race(
        network=subject.name,
        images=images,
        axes=axes,
        steps=steps,
        naive=naive,
        batched=batched,
        low=derived,
        difference=(found["batches"] - found["loop"]).abs().max().item() / spread,
        low_difference=(found["low"] - double).abs().max().item() / (axes * steps),
    )
