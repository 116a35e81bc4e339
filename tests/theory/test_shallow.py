"""Trained shallow networks, small enough to be trained here."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.support.simplexes import scalar
from volgrowth.theory import MinNormDenoiser
from volgrowth.theory.shallow import ShallowDenoiser, Training, stays, train

LEVELS = torch.tensor([0.05, 0.1], dtype=torch.float64)
POINTS = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()


@pytest.fixture(scope="module")
def trained() -> ShallowDenoiser:
    training = Training(neurons=24, copies=60, steps=2000, updates=20, learning_rate=1e-2)
    return train(POINTS, LEVELS, training, torch.Generator().manual_seed(0))


def noisy(level: float) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return POINTS.repeat(50, 1) + level * torch.randn(200, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("level", LEVELS.tolist())
def test_fresh_noisy_copies_go_back_to_their_point(trained: ShallowDenoiser, level: float) -> None:
    error = trained(noisy(level).float(), scalar(level)) - POINTS.repeat(50, 1)
    assert error.norm(dim=1).mean() < 0.3 * level


def test_training_points_are_stable_and_most_sums_of_two(trained: ShallowDenoiser) -> None:
    pairs = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=torch.float32)
    middle = torch.tensor([[0.5, 0, 0]])
    assert stays(trained, POINTS.float(), 0.1, 0.2).all()
    assert stays(trained, pairs, 0.1, 0.2).sum() >= 2
    assert not stays(trained, middle, 0.1, 0.2).any()


def test_the_cost_is_not_far_from_the_closed_form(trained: ShallowDenoiser) -> None:
    """Two units of slope l / (l - 2 rho) an edge, of which each costs its slope; rho as the copies happen to need."""
    cost = trained.cost()[1].item()
    low, high = (3 * 2 / (1 - 2 * rho) for rho in (0.1, 0.4))
    assert low < cost < high
    exact = MinNormDenoiser(POINTS, 2.0)
    y = noisy(0.1)
    assert (trained(y.float(), scalar(0.1)) - exact(y, scalar(0.1))).abs().mean() < 0.05


def test_multipliers_fit_better_than_weight_decay_alone() -> None:
    def residual(updates: int) -> float:
        training = Training(neurons=24, copies=30, decay=3e-3, steps=600, updates=updates, learning_rate=1e-2)
        denoiser = train(POINTS, LEVELS[1:], training, torch.Generator().manual_seed(0))
        return (denoiser(noisy(0.1).float(), scalar(0.1)) - POINTS.repeat(50, 1)).norm(dim=1).mean().item()

    assert residual(20) < 0.7 * residual(0)


def test_each_level_has_its_network(trained: ShallowDenoiser) -> None:
    y = noisy(0.1)[:4].float()
    levels = torch.tensor([0.01, 0.05, 0.2, 0.069], dtype=torch.float64)  # .0707 is halfway
    alone = torch.cat([trained(y[k : k + 1], levels[k]) for k in range(4)])
    assert_close(trained(y, levels), alone, atol=1e-6, rtol=0)
    both = trained.all_levels(y.expand(2, -1, -1))
    assert_close(both[0, 0], alone[0], atol=1e-5, rtol=0)
    assert_close(both[1, 2], alone[2], atol=1e-5, rtol=0)
    assert_close(both[0, 3], alone[3], atol=1e-5, rtol=0)


def test_training_repeats() -> None:
    training = Training(neurons=4, copies=5, steps=10, updates=2)
    first, second = (train(POINTS, LEVELS, training, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.w, second.w)
    assert first.image_shape == (3,)
    assert not first.w.requires_grad
