"""A few images with noise on them, and a denoiser asked about them as an audit asks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from volgrowth.numerics.denoisers import Condition, Denoiser

COUNT = 4
# of a model that does not say what it was trained on, and where images are neither clear nor gone
NOISE_LEVELS = 0.01, 80.0
MIDDLE = 0.1, 0.3, 1.0

# relative, between two evaluations of the same thing in different batches
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Bench:
    """States with one noise for each, and the denoiser under their conditions.

    Attributes:
        images, given: what states are made of, and whether they are the user's.
        conditions: one for each image, or None.
        clean, e: (B, *state).
        low, high, middle: the noise levels that the model was trained on, and those between them.
        precision: the coarsest of all numbers behind a result.
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
        images = smooth_images(denoiser.pixel_shape or image_shape) if images is None else images
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
        """Images become states, which all that follows is about."""
        with torch.no_grad():
            self.clean = self.denoiser.embed(self.images)
        self.e = self.draw(self.clean)

    def draw(self, like: Tensor) -> Tensor:
        """Standard normal numbers, the same on every device."""
        return torch.randn(like.shape, generator=self.generator, dtype=torch.float64).to(like)

    def bound(self, rows: Sequence[int] | None = None) -> Denoiser:
        """The denoiser under the conditions of some rows, by default of all."""
        if self.conditions is None:
            return self.denoiser
        return self.denoiser.given([self.conditions[row] for row in (range(len(self.clean)) if rows is None else rows)])

    def noisy(self, level: float) -> Tensor:
        """The states at a noise level."""
        return self.clean + level * self.e

    def noise(self, y: Tensor, level: float, rows: Sequence[int] | None = None) -> Tensor:
        """The noise expected at y, which are those rows."""
        with torch.no_grad():
            return self.bound(rows).noise(y, scalar(level))

    def denoised(self, y: Tensor, level: float) -> Tensor:
        """The clean states expected at y."""
        with torch.no_grad():
            return self.bound()(y, scalar(level))


def smooth_images(shape: tuple[int, ...] | None) -> Tensor:
    """Random images in [-1, 1] of a few blobs."""
    if shape is None:
        raise ValueError("the denoiser has no image_shape: expected one, or the argument image_shape=(3, 32, 32)")
    generator = torch.Generator().manual_seed(20_250_320)
    if len(shape) != 3:
        return torch.randn(COUNT, *shape, generator=generator, dtype=torch.float64).tanh()
    coarse = torch.randn(COUNT, shape[0], 4, 4, generator=generator, dtype=torch.float64)
    return interpolate(coarse, size=shape[1:], mode="bilinear", align_corners=True).tanh()


def scalar(level: float) -> Tensor:
    """A noise level as an audit gives it: float64, without axes, on the CPU."""
    return torch.tensor(level, dtype=torch.float64)


def rms(x: Tensor) -> float:
    """Root mean square of all numbers."""
    return x.double().square().mean().sqrt().item()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) inner products."""
    return (a.double() * b.double()).flatten(1).sum(1)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two whole batches; 0 where one of them is 0."""
    return (a.double() * b.double()).mean().item() / max(rms(a) * rms(b), 1e-300)


def apart(a: Tensor, b: Tensor) -> float:
    """Largest distance of two rows that are to be the same, relative to their size."""
    distance, size = (x.double().flatten(1).norm(dim=1) for x in (a - b, torch.maximum(a.abs(), b.abs())))
    return (distance / size.clamp(min=1e-300)).max().item()


def name(x: Tensor) -> str:
    """Type and place."""
    return f"{str(x.dtype).removeprefix('torch.')} on {x.device}"
