"""A few noisy images, and the denoiser under test evaluated on them the way an audit evaluates it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from volgrowth.numerics.denoisers import Condition, Denoiser
from volgrowth.numerics.precision import in_float64

COUNT = 4
# the range for a denoiser that does not give its own, and levels at which images are neither clear nor gone
NOISE_LEVELS = 0.01, 80.0
MIDDLE = 0.1, 0.3, 1.0

# largest relative difference of two evaluations of the same point in different batches
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class DenoiserProbe:
    """States with one fixed noise each, and the denoiser under their conditions.

    Attributes:
        images: (B, *image), the images that states are made of.
        given: True if the user gave the images, False if they are made up.
        conditions: one per image, or None.
        clean, e: (B, *state), states and their standard normal noise; equal to `images` until `embed` is called.
        low, high, middle: the ends of the noise levels that the model was trained on, and levels between them.
        precision: the coarsest dtype behind a result, which decides `tolerance`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        image_shape: tuple[int, ...] | None,
        images: Tensor | None,
        conditions: Sequence[Condition] | None,
    ):
        self.denoiser, self.given = denoiser, images is not None
        self.generator = torch.Generator().manual_seed(20_250_319)
        images = _smooth_images(denoiser.pixel_shape or image_shape) if images is None else images
        if len(images) < 2:
            raise ValueError(f"{len(images)} images: expected two or more, to be put into one batch")
        if conditions is None and denoiser.condition and not denoiser.has_null:
            raise ValueError(f"the denoiser always needs a {denoiser.condition}: expected some as conditions=[...]")
        self.images = images.to(denoiser.device, denoiser.dtype)
        self.conditions = [conditions[i % len(conditions)] for i in range(len(images))] if conditions else None
        self.low, self.high = denoiser.noise_levels or NOISE_LEVELS
        self.middle = sorted({min(max(level, self.low), self.high) for level in MIDDLE})
        self.precision = denoiser.precision or denoiser.dtype
        self.tolerance = TOLERANCE[self.precision]
        self.clean = self.e = self.images

    def embed(self) -> None:
        """Turn the images into states, on which all later checks work."""
        with torch.no_grad():
            self.clean = self.denoiser.embed(self.images)
        self.e = self.draw(self.clean)

    def draw(self, like: Tensor) -> Tensor:
        """Return standard normal numbers of the shape of `like`, the same on every device."""
        return torch.randn(like.shape, generator=self.generator, dtype=torch.float64).to(like)

    def bound(self, rows: Sequence[int] | None = None) -> Denoiser:
        """Return the denoiser under the conditions of `rows`, by default of all rows."""
        if self.conditions is None:
            return self.denoiser
        return self.denoiser.given([self.conditions[row] for row in (range(len(self.clean)) if rows is None else rows)])

    def noisy(self, level: float) -> Tensor:
        """Return the states at a noise level, (B, *state)."""
        return self.clean + level * self.e

    def noise(self, y: Tensor, level: float, rows: Sequence[int] | None = None) -> Tensor:
        """Return the noise that the denoiser expects in y, whose rows have the conditions of `rows`."""
        with torch.no_grad():
            return self.bound(rows).noise(y, level_tensor(level))

    def denoised(self, y: Tensor, level: float) -> Tensor:
        """Return the clean states that the denoiser expects behind y."""
        with torch.no_grad():
            return self.bound()(y, level_tensor(level))


def _smooth_images(shape: tuple[int, ...] | None) -> Tensor:
    """Return random images in [-1, 1] that consist of a few blobs."""
    if shape is None:
        raise ValueError("the denoiser has no image_shape: expected one, or the argument image_shape=(3, 32, 32)")
    generator = torch.Generator().manual_seed(20_250_320)
    if len(shape) != 3:
        return torch.randn(COUNT, *shape, generator=generator, dtype=torch.float64).tanh()
    coarse = torch.randn(COUNT, shape[0], 4, 4, generator=generator, dtype=torch.float64)
    return interpolate(coarse, size=shape[1:], mode="bilinear", align_corners=True).tanh()


def level_tensor(level: float) -> Tensor:
    """Return a noise level as an audit passes it: a float64 scalar on the CPU."""
    return torch.tensor(level, dtype=torch.float64)


def rms(x: Tensor) -> float:
    """Return the root mean square of all numbers in x."""
    return in_float64(x).square().mean().sqrt().item()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each row of a with the same row of b, (B,) float64."""
    return (in_float64(a) * in_float64(b)).flatten(1).sum(1)


def relative_distance(a: Tensor, b: Tensor) -> float:
    """Return the largest distance of a row of a from the same row of b, relative to the size of the two."""
    distance, size = (in_float64(x).flatten(1).norm(dim=1) for x in (a - b, torch.maximum(a.abs(), b.abs())))
    return (distance / size.clamp(min=1e-300)).max().item()


def dtype_and_device(x: Tensor) -> str:
    """Return the dtype and the device of x as text."""
    return f"{str(x.dtype).removeprefix('torch.')} on {x.device}"
