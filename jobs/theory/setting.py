"""The setting of the theory's experiments: their size, their random numbers and their data."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor


@dataclass(frozen=True)
class Laboratory:
    """The setting that every experiment of the theory takes.

    Attributes:
        quick: fewer samples and shorter training, for a look.
    """

    quick: bool
    seed: int = 1

    def count(self, full: int) -> int:
        """Return the number of samples to draw: `full`, or a tenth of it if quick."""
        return max(1, full // 10) if self.quick else full

    def generator(self, purpose: int) -> torch.Generator:
        """Return a generator of its own for each purpose."""
        return torch.Generator().manual_seed(1000 * self.seed + purpose)

    def randn(self, *shape: int, purpose: int) -> Tensor:
        """Return standard normal numbers, float64."""
        return torch.randn(*shape, generator=self.generator(purpose), dtype=torch.float64)


def simplex(lengths: Sequence[float], cosine: float = 0.0, dimension: int | None = None) -> Tensor:
    """Return (N + 1, D) points: the origin and edges of these lengths with the same cosine between any two.

    With cosine 0 the edges lie along axes.
    """
    count = len(lengths)
    gram = torch.full((count, count), cosine, dtype=torch.float64).fill_diagonal_(1)
    points = torch.zeros(count + 1, dimension or count, dtype=torch.float64)
    points[1:, :count] = torch.tensor(lengths, dtype=torch.float64)[:, None] * torch.linalg.cholesky(gram)
    return points


def log_levels(low: float, high: float, steps: int) -> Tensor:
    """Return steps + 1 noise levels, uniform in their logarithm, float64."""
    return torch.linspace(log(low), log(high), steps + 1, dtype=torch.float64).exp()
