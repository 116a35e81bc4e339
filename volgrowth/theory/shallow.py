r"""Trained shallow ReLU denoisers, to be compared with the closed form in `min_norm`.

For each noise level s one network

    h(y) = sum_k a_k [w_k . y + b_k]_+ + V y + c

is trained on M noisy copies y = x_n + s e of every training point. Among all networks that map each copy to its point,
training looks for the one with the least cost C = 1/2 sum_k |a_k|^2 + |w_k|^2. Weight decay alone trades some of the
fit for a lower cost. The augmented Lagrangian

    decay C + mean over copies of (q . r + |r|^2 / 2)        with r = h(y) - x_n

does not: after every few hundred steps the multipliers q grow by r, until r is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images, NoiseLevel


@dataclass(frozen=True)
class Training:
    """Settings of training.

    Attributes:
        neurons: K.
        copies: M, drawn once.
        decay: weight of the cost against the mean squared residual.
        steps: steps of Adam, each on all copies.
        updates: updates of the multipliers, evenly spaced over the steps; 0 for plain weight decay.
        learning_rate: of Adam; from the middle of training on it falls linearly to 0.
    """

    neurons: int = 100
    copies: int = 100
    decay: float = 1e-4
    steps: int = 6000
    updates: int = 40
    learning_rate: float = 3e-3


class ShallowDenoiser(Denoiser):
    """Networks for L noise levels; other levels use the network that is nearest in log noise level.

    Args:
        dimension: D of the points.
        noise_levels: (L,) rising.
        neurons: K.
        generator: draws the initial weights.

    Attributes:
        w, b, a, v, c: weights (L, K, D), (L, K), (L, D, K), (L, D, D), (L, D), float32.
    """

    kind = "shallow"

    def __init__(self, dimension: int, noise_levels: Float[Tensor, "levels"], neurons: int, generator: torch.Generator):
        count = len(noise_levels)
        self.image_shape = (dimension,)
        self.log_levels = noise_levels.double().log()

        def draw(*shape: int, scale: float) -> Tensor:
            return scale * torch.randn(count, *shape, generator=generator)

        self.w = draw(neurons, dimension, scale=1 / sqrt(dimension))
        self.b = torch.zeros(count, neurons)
        self.a = draw(dimension, neurons, scale=1 / sqrt(neurons))
        self.v = torch.zeros(count, dimension, dimension)
        self.c = torch.zeros(count, dimension)

    @property
    def weights(self) -> list[Tensor]:
        """The trained tensors."""
        return [self.w, self.b, self.a, self.v, self.c]

    def all_levels(self, y: Float[Tensor, "levels copies D"]) -> Float[Tensor, "levels copies D"]:
        """Evaluate each network on images of its own."""
        hidden = torch.relu(torch.baddbmm(self.b[:, None], y, self.w.mT))
        return torch.baddbmm(torch.baddbmm(self.c[:, None], y, self.v.mT), hidden, self.a.mT)

    def cost(self) -> Float[Tensor, "levels"]:
        """Return C of each network."""
        return (self.w.square().sum((1, 2)) + self.a.square().sum((1, 2))) / 2

    def __call__(self, y: Images, noise_level: NoiseLevel) -> Images:
        level = torch.as_tensor(noise_level, dtype=torch.float64).log().reshape(-1, 1)
        nearest = (level - self.log_levels).abs().argmin(1).expand(len(y))
        out = torch.empty_like(y)
        for k in nearest.unique().tolist():
            w, b, a, v, c = (each[k].to(y) for each in self.weights)
            some = y[nearest == k]
            out[nearest == k] = torch.relu(some @ w.T + b) @ a.T + some @ v.T + c
        return out


def train(
    points: Float[Tensor, "points D"],
    noise_levels: Float[Tensor, "levels"],
    training: Training,
    generator: torch.Generator,
    say: Callable[[str], None] = lambda line: None,
) -> ShallowDenoiser:
    """Train one network per noise level.

    Args:
        points: (N, D) training points.
        noise_levels: (L,) rising.
        training: settings.
        generator: draws initial weights and noisy copies.
        say: called with a line of progress, five times.
    """
    points = points.float()
    count, dimension = len(noise_levels), points.shape[1]
    denoiser = ShallowDenoiser(dimension, noise_levels, training.neurons, generator)
    target = points.repeat_interleave(training.copies, 0).expand(count, -1, -1)
    noisy = target + noise_levels.float()[:, None, None] * torch.randn(target.shape, generator=generator)
    multipliers = torch.zeros_like(target)
    for weight in denoiser.weights:
        weight.requires_grad_()
    adam = torch.optim.Adam(denoiser.weights, lr=training.learning_rate)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, 2 * (1 - step / training.steps)))
    between = training.steps // max(1, training.updates)
    for step in range(1, training.steps + 1):
        residual = denoiser.all_levels(noisy) - target
        fit = ((multipliers + residual / 2) * residual).sum(2).mean(1)
        adam.zero_grad()
        (training.decay * denoiser.cost() + fit).sum().backward()
        adam.step()
        falling.step()
        if training.updates and step % between == 0:
            with torch.no_grad():
                multipliers += denoiser.all_levels(noisy) - target
        if step % max(1, training.steps // 5) == 0:
            say(f"step {step}: residual {residual.detach().square().sum(2).mean().sqrt():.3g}")
    for weight in denoiser.weights:
        weight.requires_grad_(False)
    return denoiser


@torch.no_grad()
def stays(
    denoiser: Denoiser, points: Float[Tensor, "points D"], noise_level: float, tolerance: float, iterations: int = 300
) -> Float[Tensor, "points"]:
    """Check which points stay in place when the denoiser is applied to them again and again.

    Args:
        denoiser: the network.
        points: (N, D).
        noise_level: the level that the denoiser is called with.
        tolerance: largest change of a coordinate that counts as staying.
        iterations: how often the denoiser is applied.

    Returns:
        (N,) 1 for a point that stays, 0 for one that does not.
    """
    y, level = points, torch.tensor(noise_level, dtype=torch.float64)
    for _ in range(iterations):
        y = denoiser(y, level)
    return ((y - points).abs().amax(1) <= tolerance).to(points)
