"""The rule of proof on constructed samples."""

import math

import numpy as np
import torch
from torch import Tensor

from volgrowth.analysis.verification.proof import FALSE_SHARE, MIN_HITS, MIN_SHARE, Reproduced
from volgrowth.demo import truth


def find_reproduced(samples: Tensor, images: Tensor, holdout: Tensor) -> Reproduced:
    return truth.find_reproduced(samples.numpy(), images.numpy(), holdout.numpy())


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


def test_a_family_is_hit_in_any_of_its_forms() -> None:
    """Two samples near the second form of image 0: alone neither form has its fifty neighbours' distance to itself."""
    images, holdout = scattered(80, 1), scattered(60, 2)
    forms = torch.cat([images, images[:1] + 0.05 * scattered(1, 7)])
    samples = torch.cat([forms[-1:], forms[-1:], scattered(20, 3)])
    family = np.arange(81)
    family[80] = 0
    found = truth.find_reproduced(samples.numpy(), forms.numpy(), holdout.numpy(), family)
    assert found.hits.tolist() == [2] + [0] * 79
