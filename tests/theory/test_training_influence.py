"""Gradient alignment over checkpoints."""

import inspect
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import volgrowth as vg
from tests.support.simplexes import randn
from volgrowth.demo.cases import digit_images, to_tensor
from volgrowth.demo.training import Recipe, train_model
from volgrowth.models import load_model
from volgrowth.numerics.flow import decode
from volgrowth.theory.training_influence import Checkpoint, CountSketch, Influence, influence

LEVELS = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)


class Linear(vg.Denoiser):
    """noise(y) = scale * W y, whatever the level; W (5, 5)."""

    condition = "class"

    def __init__(self, network: nn.Module, scale: float = 1.0, uses: nn.Module | None = None):
        self.network, self.scale = uses or network, scale

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        return self.scale * self.network(y)

    def given(self, values: Any) -> "Linear":
        (value,) = values
        return Linear(self.network, self.scale * value)


def weights(seed: int) -> nn.Linear:
    network = nn.Linear(5, 5, bias=False, dtype=torch.float64).requires_grad_(False)
    network.weight.copy_(randn(5, 5, seed=seed))
    return network


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def checkpoint(seed: int = 1, rate: float = 1.0) -> Checkpoint:
    network = weights(seed)
    return Checkpoint(Linear(network), network, rate)


def linear_gradients(checkpoint: Checkpoint, images: Tensor, noises: Tensor) -> Tensor:
    """(levels, n, 25) in closed form: of |W y - e|^2 / 5 it is 2/5 (W y - e) y^T."""
    y = images[:, None, None] + LEVELS[:, None, None] * noises
    residual = y @ checkpoint.network.weight.T - noises  # type: ignore[operator]
    gradient = 2 / 5 * torch.einsum("nlmi,nlmj->lnmij", residual, y)
    return gradient.mean(2).flatten(2)


def test_a_linear_model_in_closed_form() -> None:
    images, queries = randn(7, 5, seed=3), randn(2, 5, seed=4)
    checkpoints = [checkpoint(1, 0.3), checkpoint(2, 2.0)]
    draws, raw, normalised = generator(), torch.zeros(2, 7).double(), torch.zeros(2, 7).double()
    for each in checkpoints:
        noises = torch.randn(3, 4, 5, generator=draws, dtype=torch.float64)
        of_images, of_queries = (linear_gradients(each, points, noises) for points in (images, queries))
        raw += each.rate * of_queries.mean(0) @ of_images.mean(0).T
        unit = [(rows / rows.norm(dim=2, keepdim=True)).mean(0) for rows in (of_queries, of_images)]
        normalised += each.rate * unit[0] @ unit[1].T
    found = influence(checkpoints, images, queries, LEVELS, 4, generator=generator())
    assert_close(found.raw, raw, atol=1e-12, rtol=1e-12)
    assert_close(found.normalised, normalised, atol=1e-12, rtol=1e-12)


def test_a_step_on_an_image_lowers_the_loss_at_a_query_by_its_influence() -> None:
    images, queries, eta = randn(6, 5, seed=3), randn(1, 5, seed=4), 1e-6
    at = checkpoint()
    found = influence([at], images, queries, LEVELS, 4, generator=generator()).raw[0]
    noises = torch.randn(3, 4, 5, generator=generator(), dtype=torch.float64)

    def loss(weight: Tensor) -> Tensor:
        y = queries[0] + LEVELS[:, None, None] * noises
        return (y @ weight.T - noises).square().mean()

    weight = weights(1).weight
    for image, of_image in zip(linear_gradients(at, images, noises).mean(0), found, strict=True):
        fall = loss(weight) - loss(weight - eta * image.reshape(5, 5))
        assert fall.item() / eta == pytest.approx(of_image.item(), rel=1e-4)


def test_normalised_does_not_depend_on_the_scale_of_an_images_loss() -> None:
    """Under a condition c the model's output is c W y; far from the noise the gradient grows with c."""
    images, queries = 1e4 * randn(4, 5, seed=3), randn(1, 5, seed=4)

    def under(condition: int) -> Influence:
        conditions = [1, condition, 1, 1]
        given: dict[str, Any] = {"conditions": conditions, "query_conditions": [1], "generator": generator()}
        return influence([checkpoint()], images, queries, LEVELS, **given)

    plain, scaled = under(1), under(10)
    assert_close(scaled.normalised, plain.normalised, atol=1e-3, rtol=0)
    assert scaled.raw[0, 1] / plain.raw[0, 1] == pytest.approx(100, rel=1e-2)
    assert torch.equal(scaled.raw[:, [0, 2, 3]], plain.raw[:, [0, 2, 3]])


def test_it_is_the_same_in_any_batch_and_from_a_stream() -> None:
    images, queries = randn(7, 5, seed=3), randn(2, 5, seed=4)
    whole = influence([checkpoint()], images, queries, LEVELS, generator=generator(), width=64)
    one = influence([checkpoint()], list(images), queries, LEVELS, generator=generator(), width=64, batch_size=1)
    three = influence([checkpoint()], iter(images), queries, LEVELS, generator=generator(), width=64, batch_size=3)
    for other in (one, three):
        assert_close(other.raw, whole.raw, atol=1e-12, rtol=0)
        assert_close(other.normalised, whole.normalised, atol=1e-12, rtol=0)


@pytest.mark.parametrize("width", [64, 1024])
def test_a_sketch_keeps_inner_products(width: int) -> None:
    """Unbiased, with the variance of the formula, and far from it no more often than Chebyshev allows."""
    g, h = randn(3000, seed=1), randn(3000, seed=2)
    h = h + g
    g[:5] *= 30  # a few parameters that count for most
    exact = (g @ h).item()
    variance = ((g @ g) * (h @ h) + exact**2 - 2 * (g**2 @ h**2)).item() / width
    assert variance <= 2 * (g @ g).item() * (h @ h).item() / width
    draws = []
    for seed in range(2000):
        a, b = CountSketch(3000, width, generator(seed))([torch.stack([g, h])])
        draws.append((a @ b).item())
    error = np.array(draws) - exact
    assert abs(error.mean()) < 4 * sqrt(variance / 2000)
    assert error.var() == pytest.approx(variance, rel=0.25)
    assert (np.abs(error) > 3 * sqrt(variance)).mean() < 1 / 9


def test_a_sketch_does_not_depend_on_the_pieces() -> None:
    vectors, sketch = randn(3, 100), CountSketch(100, 16, generator())
    assert_close(sketch(list(vectors.split([30, 1, 69], dim=1))), sketch([vectors]), atol=1e-14, rtol=0)
    assert sketch([vectors]).shape == (3, 16)


def test_a_wide_sketch_is_near_the_exact_influence() -> None:
    images, queries, width = randn(7, 5, seed=3), randn(2, 5, seed=4), 4096
    exact = influence([checkpoint()], images, queries, LEVELS, generator=generator())
    near = influence([checkpoint()], images, queries, LEVELS, generator=generator(), width=width)
    # |r| <= 1, so that this is four standard errors at least
    assert_close(near.normalised, exact.normalised, atol=4 * sqrt(2 / width), rtol=0)


def test_nothing_is_left_behind() -> None:
    linear, dropout = weights(1).requires_grad_(True), nn.Dropout(0.5).eval()
    network = nn.Sequential(linear, dropout)
    state, before = torch.get_rng_state(), linear.weight.clone()
    at = Checkpoint(Linear(network), network)
    influence([at], randn(3, 5), randn(1, 5), LEVELS, generator=generator(), width=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert (network.training, linear.training, dropout.training) == (True, True, False)
    assert linear.weight.requires_grad
    assert linear.weight.grad is None
    assert torch.equal(linear.weight, before)


OTHER = weights(9)
CASES: list[tuple[dict[str, Any], str]] = [
    ({"checkpoints": []}, "there are no checkpoints: expected one or more"),
    ({"images": []}, "there are no images: expected one or more"),
    ({"images": randn(3, 4)}, r"an image has shape \(4,\): expected that of the queries, \(5,\)"),
    ({"queries": randn(1, 5)[:0]}, "there are no queries: expected one or more"),
    ({"noise_levels": -LEVELS}, r"noise_levels are \[-0\.5, .*\]: expected one or more above 0"),
    ({"num_noises": 0}, "num_noises is 0: expected 1 or more"),
    ({"width": 0}, "width is 0: expected 1 or more"),
    ({"checkpoints": [Checkpoint(Linear(OTHER), nn.ReLU())]}, "the ReLU has no parameters: expected a network"),
    ({"checkpoints": [Checkpoint(Linear(OTHER), weights(1))]}, "the denoiser does not use the network's parameters"),
]


@pytest.mark.parametrize(("changed", "said"), CASES)
def test_what_does_not_fit_is_said(changed: dict[str, Any], said: str) -> None:
    right = {"checkpoints": [checkpoint()], "images": randn(3, 5), "queries": randn(1, 5), "noise_levels": LEVELS}
    with pytest.raises(ValueError, match=said):
        influence(**{**right, "generator": generator(), **changed})


PLANTED, DISTINCT, COPIES = 17, 30, 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Checkpoint], Tensor]:
    """Train a UNet to two checkpoints on 30 digits and 29 more copies of one of them, which are the last rows."""
    digits = digit_images()[:DISTINCT]
    images = np.concatenate([digits, np.repeat(digits[[PLANTED]], COPIES - 1, axis=0)])
    checkpoints = []
    for steps in (100, 200):
        folder = tmp_path_factory.mktemp("model") / str(steps)
        train_model(images, folder, 0, Recipe(channels=(16, 16), steps=steps, batch=16, learning_rate=4e-3))
        denoiser: Any = load_model(str(folder))
        network = inspect.getclosurevars(denoiser.network).nonlocals["network"]
        checkpoints.append(Checkpoint(denoiser, network, 0.5))
    return checkpoints, to_tensor(images)


@pytest.fixture(scope="module")
def sample(trained: tuple[list[Checkpoint], Tensor]) -> Tensor:
    """Draw samples and return the one nearest to the planted image."""
    checkpoints, images = trained
    denoiser = checkpoints[-1].denoiser
    levels = denoiser.sampling_levels(20)
    drawn = decode(denoiser, levels[-1].item() * torch.randn(32, 1, 8, 8, generator=generator()), levels)
    distances = (drawn - images[PLANTED]).flatten(1).norm(dim=1)
    others = (drawn[distances.argmin()] - images[:DISTINCT]).flatten(1).norm(dim=1)
    assert others.argmin() == PLANTED
    assert others[PLANTED] < others.sort().values[1] / 3
    return drawn[distances.argmin()]


def first(row: Tensor, count: int) -> set[int]:
    return set(row.argsort(descending=True)[:count].tolist())


@pytest.mark.parametrize("width", [None, 2048])
def test_the_copies_of_a_reproduced_image_rank_first(
    trained: tuple[list[Checkpoint], Tensor], sample: Tensor, width: int | None
) -> None:
    checkpoints, images = trained
    queries = torch.stack([sample, images[PLANTED], images[5]])
    levels = checkpoints[0].denoiser.sampling_levels(3)
    found = influence(checkpoints, images, queries, levels, generator=generator(), width=width)
    copies = {PLANTED, *range(DISTINCT, DISTINCT + COPIES - 1)}
    for table in (found.raw, found.normalised):
        assert first(table[0], COPIES) == copies
        assert first(table[1], COPIES) == copies
        assert first(table[2], 1) == {5}  # an image that is there once leads its own list
        same = table[:, sorted(copies)]
        assert_close(same, same[:, :1].expand_as(same), atol=1e-4, rtol=1e-3)
    for each in checkpoints:
        assert not any(parameter.requires_grad for parameter in each.network.parameters())


def test_attention_and_group_norm_in_batches(tiny_model: Any) -> None:
    """A UNet of diffusers with both: images together or one by one."""
    denoiser: Any = load_model(str(tiny_model), dtype="float64")
    at = Checkpoint(denoiser, inspect.getclosurevars(denoiser.network).nonlocals["network"])
    images, queries = randn(5, 1, 8, 8, seed=1), randn(2, 1, 8, 8, seed=2)
    together, single = (
        influence([at], images, queries, LEVELS, 2, generator=generator(), batch_size=size) for size in (5, 1)
    )
    assert_close(together.raw, single.raw, atol=1e-10, rtol=1e-8)
    assert_close(together.normalised, single.normalised, atol=1e-10, rtol=1e-8)
