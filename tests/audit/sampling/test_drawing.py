"""Drawn images: of distributions that are known, by their seeds, and as files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.audit.output.test_manifest import manifest
from volgrowth.audit.sampling import rating
from volgrowth.audit.sampling.drawing import (
    Drawing,
    Start,
    draw_samples,
    drawings,
    is_drawn,
    read_images,
    to_pixels,
    write_images,
)
from volgrowth.audit.sampling.rating import Rated, RatingWorker
from volgrowth.audit.sampling.sample_files import AT_ONCE, DECODED, SAMPLE
from volgrowth.audit.workers.fitting import BatchSize, NoMemoryError
from volgrowth.config import AuditConfig
from volgrowth.errors import ModelError
from volgrowth.models import load_model
from volgrowth.numerics import DDPMSchedule, EmpiricalDenoiser, GaussianDenoiser
from volgrowth.storage.store import Store

MEAN = torch.linspace(-0.3, 0.3, 4, dtype=torch.float64).reshape(1, 2, 2)
VARIANCE = torch.tensor([0.0, 0.005, 0.01, 0.02], dtype=torch.float64).reshape(1, 2, 2)


def gaussian() -> GaussianDenoiser:
    denoiser = GaussianDenoiser(MEAN, VARIANCE)
    denoiser.schedule = DDPMSchedule((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
    denoiser.image_shape = (1, 2, 2)
    denoiser.dtype = torch.float64
    return denoiser


def unit(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels / 127.5 - 1)


def two_points() -> tuple[torch.Tensor, EmpiricalDenoiser]:
    points = torch.stack([torch.full((1, 2, 2), -0.5), torch.full((1, 2, 2), 0.5)])
    denoiser = EmpiricalDenoiser(points)
    denoiser.schedule, denoiser.image_shape = gaussian().schedule, (1, 2, 2)
    return points, denoiser


def test_samples_of_a_gaussian() -> None:
    """With 999 steps; narrow enough that clamping to [-1, 1] touches nothing; pixels are 1/127.5 apart."""
    samples = unit(draw_samples(gaussian(), range(4000), seed=0, steps=999))
    assert samples.shape == (4000, 1, 2, 2)
    error = (VARIANCE / 4000).sqrt()
    assert ((samples.mean(0) - MEAN).abs() <= 4 * error + 5e-3).all()
    assert ((samples.var(0) - VARIANCE).abs() <= 0.15 * VARIANCE + 1e-5).all()


def test_samples_of_two_images_are_those_images() -> None:
    points, denoiser = two_points()
    samples = draw_samples(denoiser, range(200), seed=1)
    which = (samples == to_pixels(points[1])).all((1, 2, 3))
    assert (which | (samples == to_pixels(points[0])).all((1, 2, 3))).all()
    assert 60 < which.sum() < 140


def test_samples_stay_in_range() -> None:
    denoiser = gaussian()
    denoiser.mean, denoiser.variance = torch.tensor(0.9).double(), torch.tensor(0.5).double()
    samples = draw_samples(denoiser, range(200), seed=0, steps=10)
    assert samples.dtype == np.uint8
    assert (samples == 255).mean() > 0.3


def test_samples_are_their_seeds_and_numbers() -> None:
    first, again, other = (draw_samples(gaussian(), range(10), seed, steps=5) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert (draw_samples(gaussian(), [7, 3], 1, steps=5) == first[[7, 3]]).all()


def test_files_are_different_draws() -> None:
    samples = draw_samples(gaussian(), range(AT_ONCE + 22), seed=0, steps=5)
    assert samples.shape == (AT_ONCE + 22, 1, 2, 2)
    assert len(np.unique(samples.reshape(len(samples), 4), axis=0)) > AT_ONCE


def test_a_model_without_a_schedule_cannot_be_sampled() -> None:
    with pytest.raises(ModelError, match="no DDPM schedule"):
        draw_samples(GaussianDenoiser(MEAN, VARIANCE), range(1), seed=0)


def test_images_return_from_low_levels_and_not_from_high_ones() -> None:
    """Two points one apart in each of 4 pixels: from level .1 both return always, from level 50 half of the draws."""
    points, denoiser = two_points()
    starts = tuple(Start(draw, row, level) for row in (5, 9) for level in (0.1, 50.0) for draw in range(100))
    clean = {5: to_pixels(points[0]), 9: to_pixels(points[1])}
    drawn = Drawing("x", starts).images(denoiser, 0, clean)
    back = np.array([(image == clean[start.row or 0]).all() for image, start in zip(drawn, starts, strict=True)])
    back = back.reshape(2, 2, 100).mean(2)
    assert (back[:, 0] == 1).all()
    assert (np.abs(back[:, 1] - 0.5) < 0.2).all()


def test_draws_of_a_level_are_their_own() -> None:
    starts = tuple(Start(draw, 3, level) for level in (1.0, 2.0) for draw in range(3))
    drawn = Drawing("x", starts).images(gaussian(), 0, {3: np.full((1, 2, 2), 128, np.uint8)})
    assert len(np.unique(drawn.reshape(6, 4), axis=0)) == 6


def test_files_hold_what_was_drawn_and_tell_when_it_was_something_else(tmp_path: Path) -> None:
    store, frozen = Store(str(tmp_path)), manifest(25, shard_size=10)
    (first, second) = drawings(SAMPLE, [Start(number) for number in range(AT_ONCE + 5)])
    assert [len(first.starts), len(second.starts)] == [AT_ONCE, 5]
    assert not is_drawn(store, frozen, second)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6)).astype(np.uint8)
    write_images(store, frozen, second, images)
    assert is_drawn(store, frozen, second)
    assert (read_images(store, second.name, (3, 4, 6)) == images).all()
    longer = drawings(SAMPLE, [Start(number) for number in range(AT_ONCE + 6)])[1]
    assert longer.name == second.name
    assert not is_drawn(store, frozen, longer)
    assert drawings(DECODED, [Start(0, 1, 0.5)])[0].name != first.name
    (tmp_path / second.name).write_bytes(b"damaged")
    assert not is_drawn(store, frozen, second)


class Small(GaussianDenoiser):
    """A device on which only so many images fit."""

    def __init__(self, fits: int):
        super().__init__(MEAN, VARIANCE)
        self.fits, self.seen = fits, list[int]()
        self.schedule, self.image_shape, self.dtype = gaussian().schedule, (1, 2, 2), torch.float64

    def noise(self, y: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(y))
        if len(y) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().noise(y, noise_level)


def test_a_device_without_memory_left_gets_fewer_images_and_draws_the_same() -> None:
    starts = (*(Start(number) for number in range(9)), *(Start(draw, 3, 1.0) for draw in range(5)))
    clean = {3: np.full((1, 2, 2), 100, np.uint8)}
    batch, small = BatchSize(8), Small(3)
    drawn = Drawing("x", starts).images(small, 0, clean, batch=batch)
    assert batch.size == 2
    assert max(small.seen) == 8
    whole = Drawing("x", starts).images(Small(99), 0, clean)
    assert (drawn == whole).all()
    with pytest.raises(NoMemoryError, match="one image does not fit"):
        Drawing("x", starts).images(Small(0), 0, clean, batch=BatchSize(8))


def test_rates_are_measured_with_fewer_states_on_a_device_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()

    def tight(model: object, image: torch.Tensor, *rest: object, batch_size: int, **more: object) -> str:
        seen.append(batch_size)
        if batch_size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "the rate"

    monkeypatch.setattr(rating, "generation_rate", tight)
    monkeypatch.setattr(RatingWorker, "scored_pixels", lambda *row: np.full((1, 2, 2), 100, np.uint8))
    monkeypatch.setattr(RatingWorker, "scored_row", lambda *row: None)
    config = AuditConfig.build(model="m", data="d", output="o", batch_size=8)
    worker, fits = RatingWorker(config, manifest(), "cpu"), 2
    worker.denoiser = gaussian()
    assert worker.rate(Rated(0, (0,), (), ())) == "the rate"
    assert seen == [8, 4, 2]
    fits = 0
    with pytest.raises(NoMemoryError, match="one image does not fit"):
        worker.rate(Rated(0, (0,), (), ()))


def test_other_errors_are_not_taken_for_memory() -> None:
    class Wrong(Small):
        def noise(self, y: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Drawing("x", (Start(0),)).images(Wrong(9), 0, {}, batch=BatchSize(8))


def test_a_network_draws_the_same_images_at_every_batch_size(tiny_model: Path) -> None:
    """Every image has its own seed; what a convolution rounds at another batch size is at most one grey level."""
    network, starts = load_model(str(tiny_model)), tuple(Start(number) for number in range(10))
    whole, *others = (Drawing("x", starts).images(network, 0, {}, batch=BatchSize(size)) for size in (10, 4, 1))
    for other in others:
        assert np.abs(whole.astype(int) - other.astype(int)).max() <= 1
