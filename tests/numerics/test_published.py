"""The published algorithm (Hasegawa & Yasuda, arXiv 2503.19429), restated naively, is what `difference` computes."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.support.networks import UNet, randn
from volgrowth.numerics import volume_growth


def published(network: UNet, image: Tensor, tangents: Tensor, times: list[float]) -> tuple[list[float], list[float]]:
    """Cumulative (log volume, log edges) of one image, x-coordinates, one network call for each point.

    VPSDE with beta 0.1 .. 20; Euler steps of dx/dt = -beta/2 (x + score), score = -eps / sigma_t, network label
    t * 999; tangents are differences of length .05, made orthogonal again by Gram-Schmidt after every step.
    """

    def step(x: Tensor, t: float, dt: float) -> Tensor:
        beta = 0.1 + t * (20.0 - 0.1)
        sigma = math.sqrt(1 - math.exp(-0.5 * t * t * (20.0 - 0.1) - t * 0.1))
        with torch.no_grad():
            eps = network.eps(x[None], torch.tensor([t], dtype=torch.float64))[0]
        return x - dt * beta / 2 * (x - eps / sigma)

    radius, x, frame = 0.05, image, list(tangents)
    volume, edges = 0.0, 0.0
    volumes, edge_sums = [], []
    for t, s in zip(times, times[1:], strict=False):  # noqa: RUF007  (as one would write it)
        after = step(x, t, s - t)
        moved = [step(x + radius * u, t, s - t) - after for u in frame]
        edges += sum(math.log(v.norm().item() / radius) for v in moved)
        frame = []
        for v in moved:
            for u in frame:
                v = v - (v * u).sum() * u
            volume += math.log(v.norm().item() / radius)
            frame.append(v / v.norm())
        x = after
        volumes.append(volume)
        edge_sums.append(edges)
    return volumes, edge_sums


EARLY = torch.linspace(1e-3, 1.001, 1001, dtype=torch.float64)[:6]
LATE = torch.linspace(1e-3, 1.001, 1001, dtype=torch.float64)[-4:]
WHOLE = torch.linspace(1e-3, 1.0, 11, dtype=torch.float64)


@pytest.mark.parametrize("times", [EARLY, LATE, WHOLE], ids=["early", "late", "whole"])
@pytest.mark.parametrize("k", [1, 3])
def test_difference_is_the_published_algorithm(times: Tensor, k: int) -> None:
    network, images = UNet(), randn(2, 1, 8, 8).clamp(-1, 1)
    frames = torch.linalg.qr(randn(2, 64, k, seed=3)).Q.mT.reshape(2, k, 1, 8, 8)
    growth = volume_growth(network, images, times=times, derivative="difference", tangents=frames)
    for i in range(2):
        volumes, edges = published(network, images[i], frames[i], times.tolist())
        assert abs(volumes[-1]) > 1e-4
        assert_close(growth.log_volume[i], torch.tensor(volumes, dtype=torch.float64), rtol=0, atol=1e-6)
        assert_close(growth.log_edges[i], torch.tensor(edges, dtype=torch.float64), rtol=0, atol=1e-6)
    if k > 1 and times is WHOLE:  # the two columns are told apart
        assert (growth.log_edges - growth.log_volume)[:, -1].min() > 1e-4


def test_derivatives_are_the_limit_of_differences() -> None:
    network, images = UNet(), randn(2, 1, 8, 8).clamp(-1, 1)
    exact = volume_growth(network, images, times=WHOLE, num_tangents=2, generator=torch.Generator().manual_seed(1))
    errors = []
    for radius in (1e-2, 1e-7):
        near = volume_growth(
            network,
            images,
            times=WHOLE,
            num_tangents=2,
            derivative="difference",
            radius=radius,
            generator=torch.Generator().manual_seed(1),
        )
        errors.append((near.log_volume - exact.log_volume).abs().max().item())
    assert errors[0] > 1e-6
    assert errors[1] < 1e-6
