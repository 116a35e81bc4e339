"""Data of which min-norm denoisers are known."""

from collections.abc import Sequence
from math import cos, radians

import torch
from torch import Tensor

from volgrowth.theory import MinNormDenoiser


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def rotation(dimension: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(dimension, dimension, seed=seed))[0]


def simplex(lengths: Sequence[float], angle: float = 90.0, dimension: int | None = None, seed: int = 0) -> Tensor:
    """(N + 1, D) a random origin, and edges of these lengths with the same angle between any two, rotated at random."""
    count = len(lengths)
    gram = torch.full((count, count), cos(radians(angle)), dtype=torch.float64).fill_diagonal_(1)
    edges = torch.tensor(lengths, dtype=torch.float64)[:, None] * torch.linalg.cholesky(gram)
    flat = edges @ rotation(dimension or count, seed)[:count]
    origin = randn(1, flat.shape[1], seed=seed + 1)
    return torch.cat([origin, origin + flat])


def orthogonal(margin: float = 0.8, lengths: Sequence[float] = (1.0, 1.5, 2.0), dimension: int = 5) -> MinNormDenoiser:
    return MinNormDenoiser(simplex(lengths, dimension=dimension), margin)
