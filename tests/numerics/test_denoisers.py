import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests.support.networks import randn
from volgrowth.numerics import Denoiser, volume_growth
from volgrowth.numerics.denoisers import per_image


class Halving(Denoiser):
    def __call__(self, y: Tensor, noise_level: Tensor) -> Tensor:
        return y / 2


def test_noise_follows_from_the_posterior_mean() -> None:
    y = randn(3, 2, 2)
    levels = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    assert_close(Halving().noise(y, levels), torch.stack([y[0], y[1] / 2, y[2] / 8]))
    assert_close(Halving().noise(y, levels[2]), y / 8)


def test_a_denoiser_must_be_written() -> None:
    with pytest.raises(NotImplementedError, match="Denoiser has no __call__"):
        Denoiser()(randn(1, 2), torch.tensor(1.0))
    with pytest.raises(NotImplementedError, match="Denoiser has no __call__"):
        volume_growth(Denoiser(), randn(1, 2))


def test_scalars_broadcast_over_images_in_their_precision() -> None:
    images = randn(3, 4, 5).float()
    levels = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert per_image(levels, images).shape == (3, 1, 1)
    assert per_image(levels[0], images).shape == ()  # and nothing to copy to a device
    assert per_image(levels, images).dtype == torch.float32
    assert_close(per_image(levels, images) * torch.ones_like(images), levels.float()[:, None, None].expand(3, 4, 5))
