"""What samples prove, on constructed ones and on samples of a distribution that is known."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from volgrowth.errors import ModelError
from volgrowth.numerics import DDPMSchedule, EmpiricalDenoiser, GaussianDenoiser
from volgrowth.verification import FALSE_SHARE, MIN_HITS, MIN_SHARE, draw_samples, find_reproduced


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scattered(count: int, seed: int) -> Tensor:
    """Images in 64 dimensions: all distances are alike, so that only copies are near."""
    return randn(count, 1, 8, 8, seed=seed)


def dense_line(count: int, start: float = 0.0) -> Tensor:
    """Flat images, equally far from one grey to the next."""
    return (start + torch.arange(count) / count)[:, None, None, None].expand(count, 1, 8, 8)


NOTHING = torch.zeros(0, 1, 8, 8)


def test_copies_of_training_images_are_hits() -> None:
    images, holdout = scattered(80, 1), scattered(60, 2)
    samples = torch.cat(
        [images[[3]].repeat(4, 1, 1, 1), images[[5]].repeat(2, 1, 1, 1), images[[9]], scattered(200, 3)]
    )
    found = find_reproduced(samples, images, holdout)
    assert found.min_hits == MIN_HITS == 2
    assert np.flatnonzero(found.hits).tolist() == [3, 5, 9]
    assert found.hits[[3, 5, 9]].tolist() == [4, 2, 1]
    assert found.holdout_hits.tolist() == [0] * 60
    assert np.flatnonzero(found.images).tolist() == [3, 5]


def test_copies_need_not_be_exact() -> None:
    """Two independent images lie about sqrt(2 * 64) apart: noise of a quarter of it hits, of half of it does not."""
    images, holdout = scattered(80, 1), scattered(60, 2)
    between = math.sqrt(2 * 64)
    for share, hits in ((0.25, 10), (0.5, 0)):
        noise = randn(10, 1, 8, 8, seed=4)
        noise *= share * between / noise.flatten(1).norm(dim=1)[:, None, None, None]
        assert find_reproduced(images[:1] + noise, images, holdout).hits.sum() == hits


def test_the_nearest_is_compared_with_its_fifty_nearest() -> None:
    """Points at 0, 1, .. 99 on a line and a sample d before them: the mean distance to the nearest 50 is 24.5 + d."""
    images = torch.arange(100, dtype=torch.float64)[:, None, None, None]
    holdout = torch.zeros(0, 1, 1, 1, dtype=torch.float64)
    for distance, hits in ((16.0, 1), (16.6, 0)):  # d / (24.5 + d) passes .4 at 16.33
        found = find_reproduced(torch.tensor([[[[-distance]]]], dtype=torch.float64), images, holdout)
        assert found.hits.sum() == hits


def test_a_dense_family_is_not_reproduced() -> None:
    """Between flat images of every grey a sample is always near to one of them, trained on or held out."""
    images, holdout = dense_line(200), dense_line(200, start=1 / 400)
    samples = dense_line(1000, start=1 / 3000)
    found = find_reproduced(samples, images, holdout)
    assert found.hits.sum() > 300
    assert found.holdout_hits.sum() > 300
    assert not found.images.any()


def test_an_image_among_a_dense_family_is_still_found() -> None:
    images, holdout = torch.cat([dense_line(200), scattered(60, 1)]), dense_line(200, start=1 / 400)
    samples = torch.cat([dense_line(1000, start=1 / 3000), images[[250]].repeat(40, 1, 1, 1)])
    found = find_reproduced(samples, images, holdout)
    assert np.flatnonzero(found.images).tolist() == [250]
    assert found.min_hits > MIN_HITS


def repeated(images: Tensor, counts: list[int]) -> Tensor:
    return images[: len(counts)].repeat_interleave(torch.tensor(counts), 0)


def test_the_number_of_hits_rises_until_held_out_images_have_few() -> None:
    """30 training images with 3 hits or more, two held-out ones with 3 and 4: from 5 on chance is excluded."""
    images, holdout = scattered(100, 1), scattered(100, 2)
    samples = torch.cat([repeated(images, [6] * 10 + [3] * 20), repeated(holdout, [3, 4])])
    found = find_reproduced(samples, images, holdout)
    # at 2 and 3 hits: 2 > .05 * 30, at 4: 1 > .05 * 10, at 5: 0
    assert found.min_hits == 5
    assert found.images.sum() == 10
    assert found.holdout_hits[:2].tolist() == [3, 4]
    assert "5 hits make an image reproduced, since so many held-out images have: 0" in found.rule


def test_a_few_chance_hits_are_allowed() -> None:
    """One held-out image with 2 hits against 20 training images: 1 <= .05 * 20; against 19 it is not."""
    assert FALSE_SHARE == 0.05
    images, holdout = scattered(100, 1), scattered(100, 2)
    for trained, min_hits in ((20, 2), (19, 3)):
        samples = torch.cat([repeated(images, [3] * trained), repeated(holdout, [2])])
        assert find_reproduced(samples, images, holdout).min_hits == min_hits


def test_held_out_hits_are_scaled_to_the_size_of_the_training_set() -> None:
    """Half as many held-out images stand for twice their hits."""
    images, holdout = scattered(100, 1), scattered(100, 2)
    samples = torch.cat([repeated(images, [3] * 20), repeated(holdout, [2])])
    assert find_reproduced(samples, images, holdout).min_hits == 2
    assert find_reproduced(samples, images, holdout[:50]).min_hits == 3


def test_many_samples_ask_for_more_hits() -> None:
    """2 of 1000 samples are a share of .002, of 3000 it takes 6."""
    assert MIN_SHARE == 0.002
    images, holdout = scattered(60, 1), scattered(60, 2)
    for count, min_hits in ((500, 2), (1000, 2), (1001, 3), (3000, 6)):
        assert find_reproduced(scattered(count, 3), images, holdout).min_hits == min_hits


def test_without_held_out_images_two_hits_are_enough() -> None:
    images = scattered(100, 1)
    found = find_reproduced(repeated(images, [3, 2, 1]), images, NOTHING)
    assert found.images[:4].tolist() == [True, True, False, False]
    assert found.holdout_hits.shape == (0,)
    assert found.min_hits == 2


def test_without_samples_nothing_is_reproduced() -> None:
    found = find_reproduced(NOTHING, scattered(60, 1), scattered(60, 2))
    assert not found.hits.any()
    assert not found.images.any()


def test_fewer_images_than_neighbours() -> None:
    images = scattered(3, 1)
    assert find_reproduced(images[[0, 0]], images, NOTHING).images.tolist() == [True, False, False]


MEAN = torch.linspace(-0.3, 0.3, 4, dtype=torch.float64).reshape(1, 2, 2)
VARIANCE = torch.tensor([0.0, 0.005, 0.01, 0.02], dtype=torch.float64).reshape(1, 2, 2)


def gaussian() -> GaussianDenoiser:
    denoiser = GaussianDenoiser(MEAN, VARIANCE)
    denoiser.schedule = DDPMSchedule((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))
    denoiser.image_shape = (1, 2, 2)
    denoiser.dtype = torch.float64
    return denoiser


def test_samples_of_a_gaussian() -> None:
    """With 999 steps; narrow enough that clamping to [-1, 1] touches nothing."""
    samples = draw_samples(gaussian(), 4000, seed=0, steps=999, batch=4000)
    assert samples.shape == (4000, 1, 2, 2)
    error = (VARIANCE / 4000).sqrt()
    assert ((samples.mean(0) - MEAN).abs() <= 4 * error + 1e-3).all()
    assert_close(samples.var(0), VARIANCE, rtol=0.15, atol=1e-6)


def test_more_steps_come_nearer_to_the_variance() -> None:
    """The same noises, so that what is left is the error of the discrete flow: first order."""
    wide = {steps: draw_samples(gaussian(), 500, 0, steps, batch=500).std(0)[0, 1, 1].item() for steps in (25, 50, 999)}
    errors = [abs(wide[steps] - wide[999]) for steps in (25, 50)]
    assert errors[0] > 1.5 * errors[1] > 0


def test_samples_of_two_images_are_those_images() -> None:
    points = torch.stack([torch.full((1, 2, 2), -0.5), torch.full((1, 2, 2), 0.5)])
    denoiser = EmpiricalDenoiser(points)
    denoiser.schedule = gaussian().schedule
    samples = draw_samples(denoiser, 200, seed=1)
    distance, which = torch.cdist(samples.flatten(1), points.flatten(1)).min(1)
    assert distance.max() < 1e-3
    assert 60 < which.sum() < 140


def test_samples_stay_in_range() -> None:
    denoiser = gaussian()
    denoiser.mean, denoiser.variance = torch.tensor(0.9).double(), torch.tensor(0.5).double()
    samples = draw_samples(denoiser, 200, seed=0, steps=10)
    assert samples.max() == 1
    assert samples.min() >= -1


def test_samples_are_their_seeds() -> None:
    first, again, other = (draw_samples(gaussian(), 10, seed, steps=5) for seed in (1, 1, 2))
    assert first.equal(again)
    assert (first - other).abs().max() > 1e-3


def test_batches_are_different_draws() -> None:
    samples = draw_samples(gaussian(), 25, seed=0, steps=5, batch=10)
    assert samples.shape == (25, 1, 2, 2)
    assert len(samples[:, 0, 1, 1].unique()) == 25


def test_whole_batches_do_not_depend_on_how_many_follow() -> None:
    few, more = (draw_samples(gaussian(), count, seed=0, steps=5, batch=10) for count in (10, 30))
    assert more[:10].equal(few)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    assert_close(
        draw_samples(gaussian(), 10, 1, 5, batch=3), draw_samples(gaussian(), 10, 1, 5), rtol=1e-12, atol=1e-12
    )


def test_a_model_without_a_schedule_cannot_be_sampled() -> None:
    with pytest.raises(ModelError, match="no DDPM schedule"):
        draw_samples(GaussianDenoiser(MEAN, VARIANCE), 1, seed=0)
