"""What the experiments of the theory share: their size, their data, and arrays of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from jobs.sections import Say
from volgrowth.theory import EndPoint


@dataclass(frozen=True)
class Bench:
    """How much is run, and what is said on the way.

    Attributes:
        quick: fewer samples and shorter training, for a look.
    """

    quick: bool
    say: Say
    seed: int = 1

    def count(self, full: int) -> int:
        """Of samples: a tenth of them when quick."""
        return max(1, full // 10) if self.quick else full

    def generator(self, purpose: int) -> torch.Generator:
        """A generator of its own for each purpose."""
        return torch.Generator().manual_seed(1000 * self.seed + purpose)

    def randn(self, *shape: int, purpose: int = 0) -> Tensor:
        """Standard normal, float64."""
        return torch.randn(*shape, generator=self.generator(purpose), dtype=torch.float64)


def simplex(lengths: Sequence[float], cosine: float = 0.0, dimension: int | None = None) -> Tensor:
    """(N + 1, D): the origin and edges of these lengths, with the same cosine between any two; along axes if it is "
    "0."""
    count = len(lengths)
    gram = torch.full((count, count), cosine, dtype=torch.float64).fill_diagonal_(1)
    edges = torch.tensor(lengths, dtype=torch.float64)[:, None] * torch.linalg.cholesky(gram)
    points = torch.zeros(count + 1, dimension or count, dtype=torch.float64)
    points[1:, :count] = edges
    return points


def log_levels(low: float, high: float, steps: int) -> Tensor:
    """steps + 1 noise levels, uniform in their logarithm."""
    return torch.linspace(log(low), log(high), steps + 1, dtype=torch.float64).exp()


def share(ends: Sequence[EndPoint], *kinds: str) -> float:
    """Of the end points, those of these kinds."""
    return sum(end.kind in kinds for end in ends) / len(ends)


def scalar(value: float) -> Tensor:
    """As a noise level."""
    return torch.tensor(value, dtype=torch.float64)
