"""Images drawn from a model: samples from pure noise, and images of the data set noised and decoded again.

Each has a seed of its own, by what it is for, so that more of them can be drawn later. They are published in files of
`AT_ONCE` as PNG, in the columns that `datasets` shows as pictures.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from volgrowth.audit.manifest import Manifest
from volgrowth.audit.measures import seeded
from volgrowth.audit.store import Store
from volgrowth.errors import ModelError, OutputError
from volgrowth.numerics import DDPMSchedule, Denoiser
from volgrowth.numerics.sampling import ddim_sample, decode
from volgrowth.sources import decode as decode_image
from volgrowth.sources import encode_png, to_unit

STEPS = 50
AT_ONCE = 128
SAMPLER = f"DDIM, {STEPS} steps"
FOLDER = "verification"

SAMPLE = "sample"
DECODED = "decoded"


@dataclass(frozen=True)
class Start:
    """Where an image comes from: row None and a sample's number, or a row, the level it is noised to, a draw."""

    number: int
    row: int | None = None
    noise_level: float | None = None


@dataclass(frozen=True)
class Drawing:
    """One file of images to draw: all samples, or all decoded."""

    name: str
    starts: tuple[Start, ...]

    @property
    def rows(self) -> list[int]:
        """Rows whose images are needed."""
        return sorted({start.row for start in self.starts if start.row is not None})

    @property
    def digest(self) -> str:
        """Of what is drawn and how: a file with another one is drawn again."""
        return hashlib.sha256(repr((SAMPLER, self.starts)).encode()).hexdigest()

    def images(self, denoiser: Denoiser, seed: int, clean: Mapping[int, np.ndarray]) -> np.ndarray:
        """(starts, C, H, W) uint8, from the clean images (C, H, W) uint8 of `rows`."""
        if not self.rows:
            return draw_samples(denoiser, [start.number for start in self.starts], seed)
        drawn = np.empty((len(self.starts), *(denoiser.image_shape or ())), np.uint8)
        for level in sorted({start.noise_level or 0.0 for start in self.starts}):
            which = [index for index, start in enumerate(self.starts) if start.noise_level == level]
            images = np.stack([clean[self.starts[index].row or 0] for index in which])
            drawn[which] = decode_noised(denoiser, images, level, [self.starts[index] for index in which], seed)
        return drawn


def drawings(kind: str, starts: Sequence[Start]) -> list[Drawing]:
    """Files of `AT_ONCE` images each."""
    return [
        Drawing(f"{FOLDER}/{kind}-{first // AT_ONCE:05d}.parquet", tuple(starts[first : first + AT_ONCE]))
        for first in range(0, len(starts), AT_ONCE)
    ]


def draw_samples(denoiser: Denoiser, numbers: Iterable[int], seed: int, steps: int = STEPS) -> np.ndarray:
    """Samples of the given numbers by DDIM with `steps` steps: (numbers, C, H, W) uint8.

    Raises:
        ModelError: the denoiser has no schedule to sample with.
    """
    times, wanted, drawn = _times(denoiser, steps), list(numbers), []
    shape = denoiser.image_shape
    assert shape is not None
    for first in range(0, len(wanted), AT_ONCE):
        noise = [torch.randn(shape, generator=seeded(seed, SAMPLE, n)) for n in wanted[first : first + AT_ONCE]]
        x = torch.stack(noise).to(denoiser.device, denoiser.dtype)
        drawn.append(to_pixels(ddim_sample(denoiser, x, times)))
    return np.concatenate(drawn) if drawn else np.empty((0, *shape), np.uint8)


def decode_noised(
    denoiser: Denoiser, images: np.ndarray, noise_level: float, starts: Sequence[Start], seed: int
) -> np.ndarray:
    """Images (B, C, H, W) uint8, noised to a level and decoded by the rest of the sampler's steps: the same shape."""
    times = _times(denoiser, STEPS)
    alpha, sigma = denoiser.schedule(times)  # type: ignore[misc]  # _times has seen to it
    levels = sigma / alpha
    levels = torch.cat([levels[levels < noise_level], torch.tensor([noise_level], dtype=levels.dtype)])
    noise = [
        torch.randn(images.shape[1:], generator=seeded(seed, DECODED, start.row or 0, noise_level, start.number))
        for start in starts
    ]
    y = torch.from_numpy(to_unit(images)) + noise_level * torch.stack(noise)
    return to_pixels(decode(denoiser, y.to(denoiser.device, denoiser.dtype), levels))


def to_pixels(images: Tensor) -> np.ndarray:
    """uint8 pixels of images in [-1, 1]."""
    return ((images.double().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def write_images(store: Store, manifest: Manifest, drawing: Drawing, images: np.ndarray) -> None:
    """Publish a drawing's images with where they come from."""
    columns = {
        "number": pa.array([start.number for start in drawing.starts], pa.int64()),
        "row": pa.array([start.row for start in drawing.starts], pa.int64()),
        "noise_level": pa.array([start.noise_level for start in drawing.starts], pa.float64()),
        "image": pa.array(
            [{"bytes": encode_png(image), "path": None} for image in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
    }
    store.write_table(drawing.name, pa.table(columns), _identity(manifest, drawing))


def is_drawn(store: Store, manifest: Manifest, drawing: Drawing) -> bool:
    """Whether a drawing has been published whole, for this audit and from these starts."""
    if not store.exists(drawing.name):
        return False
    try:
        rows, footer = store.read_footer(drawing.name)
    except OutputError:
        return False
    return rows == len(drawing.starts) and _identity(manifest, drawing).items() <= footer.items()


def read_images(store: Store, name: str, image_shape: tuple[int, int, int]) -> np.ndarray:
    """(images, C, H, W) uint8 of a published drawing."""
    pictures = store.read_table(name).column("image").to_pylist()
    return np.stack([decode_image(picture["bytes"], image_shape, prod(image_shape)) for picture in pictures])


def _identity(manifest: Manifest, drawing: Drawing) -> dict[str, str]:
    return {"plan_digest": manifest.digest, "drawing": drawing.digest}


def _times(denoiser: Denoiser, steps: int) -> Tensor:
    if not isinstance(denoiser.schedule, DDPMSchedule) or denoiser.image_shape is None:
        raise ModelError("the model has no DDPM schedule: expected one, since samples are drawn along it")
    return torch.linspace(0, len(denoiser.schedule) - 1, steps + 1, dtype=torch.float64).round()
