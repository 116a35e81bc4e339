"""What the tests of the numerics measure: small networks, a second implementation of the flow, and grids."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from diffusers import UNet2DModel
from torch import Tensor

from volgrowth.numerics import Denoiser, Schedule, VPSchedule

SolverName = Literal["euler", "ddim", "heun", "multistep"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def log_levels(low: float, high: float, steps: int) -> Tensor:
    """Noise levels, uniform in their logarithm; they are the times of a VESchedule."""
    return torch.linspace(math.log(low), math.log(high), steps + 1, dtype=torch.float64).exp()


class Smooth(Denoiser):
    """A small random network without any structure: its Jacobian is neither symmetric nor bounded by 1 / level."""

    def __init__(self, dimension: int, seed: int = 0, width: int = 8):
        scale = 1 / math.sqrt(dimension)
        self.inner, self.outer = (
            randn(width, dimension, seed=seed) * scale,
            randn(dimension, width, seed=seed + 1) * scale,
        )
        self.bias = randn(width, seed=seed + 2)

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        level = noise_level.to(y).reshape(-1, 1)
        flat = y.flatten(1) / (1 + level**2).sqrt()
        hidden = torch.tanh(flat @ self.inner.to(y).T + self.bias.to(y) * level.log())
        return (flat + hidden @ self.outer.to(y).T).reshape(y.shape)

    def __call__(self, y: Tensor, noise_level: Tensor) -> Tensor:
        return y - noise_level.to(y).reshape(-1, *[1] * (y.ndim - 1)) * self.noise(y, noise_level)


class Scaled(Denoiser):
    """noise = factor y / level: a point mass at 0 for factor 1, impossible for more."""

    def __init__(self, factor: float):
        self.factor = factor

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        return self.factor * y / noise_level.to(y)


class Counting(Denoiser):
    """Counts the images that another denoiser sees."""

    def __init__(self, inner: Denoiser):
        self.inner, self.rows, self.calls = inner, 0, 0

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        self.rows, self.calls = self.rows + len(y), self.calls + 1
        return self.inner.noise(y, noise_level)


class UNet(Denoiser):
    """An untrained diffusers UNet with group norm and attention, labelled t * 999 as in arXiv 2503.19429."""

    schedule = VPSchedule(beta_min=0.1, beta_max=20.0)

    def __init__(self, channels: int = 1, seed: int = 0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = UNet2DModel(
                sample_size=8,
                in_channels=channels,
                out_channels=channels,
                layers_per_block=1,
                block_out_channels=(8, 16),
                norm_num_groups=4,
                attention_head_dim=8,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            )
        self.network = network.double().eval()
        self.image_shape = (channels, 8, 8)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t * 999).sample

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        t = self.schedule.time(noise_level)
        return self.eps(self.schedule(t)[0].to(y) * y, t)


def encode(denoiser: Denoiser, x: Tensor, schedule: Schedule, times: Tensor, solver: str) -> Tensor:
    """The discrete map from x at times[0] to x at times[-1], written in x and for points only."""
    alphas, sigmas = schedule(times)
    previous: tuple[Tensor, Tensor] | None = None
    for i in range(len(times) - 1):
        alpha, sigma, alpha_s, sigma_s = alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1]
        level, level_s = sigma / alpha, sigma_s / alpha_s
        e = denoiser.noise(x / alpha, level)
        if solver == "euler":
            x = x + (times[i + 1] - times[i]) * velocity(schedule, times[i], x, e)
        elif solver == "ddim":
            x = alpha_s * (x - sigma * e) / alpha + sigma_s * e
        elif solver == "heun":
            guess = alpha_s * (x - sigma * e) / alpha + sigma_s * e
            e = (e + denoiser.noise(guess / alpha_s, level_s)) / 2
            x = alpha_s * (x - sigma * e) / alpha + sigma_s * e
        else:  # DPM-Solver++(2M), arXiv 2211.01095, algorithm 2, with lambda = -log level
            clean = (x - sigma * e) / alpha
            h = (level / level_s).log()
            mixed = clean
            if previous is not None:
                r = (previous[1] / level).log() / h
                mixed = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * previous[0]
            previous = clean, level
            x = sigma_s / sigma * x - alpha_s * ((-h).exp() - 1) * mixed
    return x


def velocity(schedule: Schedule, t: Tensor, x: Tensor, e: Tensor) -> Tensor:
    """dx/dt for a VPSchedule as Song et al. write it: -beta/2 (x + score), score = -e / sigma."""
    assert isinstance(schedule, VPSchedule)
    beta = schedule.beta_min + t * (schedule.beta_max - schedule.beta_min)
    return -beta / 2 * (x - e / schedule(t)[1])


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(B, D, D), image by image."""
    rows = [torch.func.jacrev(lambda x: function(x[None])[0])(x_i) for x_i in x]
    return torch.stack(rows).reshape(len(x), x[0].numel(), x[0].numel())
