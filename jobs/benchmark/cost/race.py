"""A race on the same images, axes and times: the published algorithm as a plain loop, against `volume_growth`."""

import itertools
from math import exp, sqrt
from typing import Any

import torch
from torch import Tensor

from jobs.benchmark.cost.networks import TimedNetwork, random_denoiser, smooth_images
from jobs.benchmark.cost.roofline import least_seconds
from volgrowth.audit.scoring.derivatives import true_float32
from volgrowth.models import NetworkDenoiser
from volgrowth.numerics import volume_growth


def published_loop(denoiser: NetworkDenoiser, images: Tensor, frames: Tensor, times: list[float]) -> Tensor:
    """Return log volume growth (images,) by the published algorithm, image by image and point by point.

    VPSDE with beta 0.1 to 20, Euler steps of dx/dt = -beta/2 (x - eps / sigma), differences of length .05, Gram-Schmidt
    after every step (arXiv 2503.19429).

    Args:
        frames: orthonormal tangents, (images, axes, *image).
        times: the times of the steps, the first one included.
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
def race(
    network: TimedNetwork, device: torch.device, images: int, axes: int, steps: int, rounds: int = 3
) -> dict[str, Any]:
    """Time the same work in three ways: the loop, batches by differences, and batches by derivatives in bfloat16.

    Returns:
        A row of the page: seconds of each way, and how far the log volumes differ. Those of the batches are compared
        with the loop's, relative to their spread; those in bfloat16 with float64 ones, in nats an axis and step.
    """
    batch = network.batch[device.type == "cuda"]
    whole = smooth_images(network, images, device)
    draws = torch.randn(images, axes, *network.shape, generator=torch.Generator().manual_seed(1))
    frames = torch.linalg.qr(draws.flatten(2).mT).Q.mT.reshape(draws.shape).to(device)
    times = [(1 + k) / 1000 for k in range(steps + 1)]
    found: dict[str, Tensor] = {}

    def batches(name: str, denoiser: NetworkDenoiser, derivative: Any) -> None:
        grown = []
        for first in range(0, images, batch):
            some, given = (each[first : first + batch].to(denoiser.dtype) for each in (whole, frames))
            grid = torch.tensor(times, dtype=torch.float64)
            grown.append(volume_growth(denoiser, some, times=grid, derivative=derivative, tangents=given).log_volume)
        found[name] = torch.cat(grown)[:, -1].double().cpu()

    exact, low = (random_denoiser(network, dtype, device) for dtype in (torch.float32, torch.bfloat16))
    batches("exact", random_denoiser(network, torch.float64, device), "jvp")

    def loop() -> None:
        with true_float32():
            found["loop"] = published_loop(exact, whole, frames, times)

    def differences() -> None:
        with true_float32():
            batches("differences", exact, "difference")

    ways = [loop, differences, lambda: batches("low", low, "jvp")]
    looped, batched, derived = least_seconds(ways, device, rounds)
    spread = (found["loop"].max() - found["loop"].min()).item() or found["loop"].abs().max().item()
    return {
        "network": network.name,
        "images x axes x steps": f"{images} x {axes} x {steps}",
        "loop, s": looped,
        "batches, s": batched,
        "times as fast": looped / batched,
        "bfloat16, s": derived,
        "bfloat16: times as fast": looped / derived,
        "agreement": (found["differences"] - found["loop"]).abs().max().item() / spread,
        "bfloat16 deviates, nats": (found["low"] - found["exact"]).abs().max().item() / (axes * steps),
    }
