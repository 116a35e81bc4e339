"""Images drawn from a model: samples from pure noise, and images of the data set noised and decoded again.

Each has a seed of its own, by what it is for, so that more of them can be drawn later. They are published in files of
`AT_ONCE` as PNG, in the columns that `datasets` shows as pictures.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.workers.seeding import seeded
from volgrowth.errors import ModelError, OutputError
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition, GuidedDenoiser
from volgrowth.numerics.flow import decode
from volgrowth.sources import decode_image, encode_png, to_unit
from volgrowth.storage.store import Store
from volgrowth.theory.inertia import stopped

STEPS = 50
AT_ONCE = 128
SAMPLER = f"DDIM, {STEPS} steps"
FOLDER = "verification"

SAMPLE = "sample"
STOPPED = "stopped"
DECODED = "decoded"


@dataclass(frozen=True)
class Start:
    """Where an image comes from: row None and a sample's number, or a row, the level it is noised to, a draw.

    `condition_row` is the row whose condition it is drawn under, None for no condition. A sampler with `stop` takes its
    last step from that noise level (`theory.inertia`).
    """

    number: int
    row: int | None = None
    noise_level: float | None = None
    condition_row: int | None = None
    stop: float | None = None


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
    def condition_rows(self) -> list[int]:
        """Rows whose conditions are needed."""
        return sorted({start.condition_row for start in self.starts if start.condition_row is not None})

    @property
    def digest(self) -> str:
        """Of what is drawn and how: a file with another one is drawn again."""
        return hashlib.sha256(repr((SAMPLER, self.starts)).encode()).hexdigest()

    def images(
        self,
        denoiser: Denoiser,
        seed: int,
        clean: Mapping[int, np.ndarray],
        conditions: Mapping[int, Condition] = MappingProxyType({}),
        guidance: float | None = None,
        batch: int = AT_ONCE,
    ) -> np.ndarray:
        """(starts, C, H, W) uint8, from the clean images (C, H, W) uint8 of `rows`, conditions of `condition_rows`.

        Args:
            batch: images that the network sees at a time.
        """
        drawn = np.empty((len(self.starts), *(denoiser.pixel_shape or ())), np.uint8)
        for level, which in self._batches(batch):
            starts = [self.starts[index] for index in which]
            given = [conditions[start.condition_row] for start in starts if start.condition_row is not None]
            model = guided(denoiser, given, guidance) if given else denoiser
            if level is None:
                drawn[which] = draw_samples(model, [start.number for start in starts], seed, stop=starts[0].stop)
            else:
                images = np.stack([clean[start.row or 0] for start in starts])
                drawn[which] = decode_noised(model, images, level, starts, seed)
        return drawn

    def _batches(self, batch: int) -> Iterator[tuple[float | None, list[int]]]:
        """Indices of starts with the noise level they share, so many at a time."""
        for level in dict.fromkeys(start.noise_level for start in self.starts):
            which = [index for index, start in enumerate(self.starts) if start.noise_level == level]
            for first in range(0, len(which), batch):
                yield level, which[first : first + batch]


def drawings(kind: str, starts: Sequence[Start]) -> list[Drawing]:
    """Files of `AT_ONCE` images each."""
    return [
        Drawing(f"{FOLDER}/{kind}-{first // AT_ONCE:05d}.parquet", tuple(starts[first : first + AT_ONCE]))
        for first in range(0, len(starts), AT_ONCE)
    ]


def draw_samples(
    denoiser: Denoiser, numbers: Iterable[int], seed: int, steps: int = STEPS, stop: float | None = None
) -> np.ndarray:
    """Samples of the given numbers by DDIM with `steps` steps: (numbers, C, H, W) uint8.

    Args:
        stop: noise level from which the last step goes to the image; the sampler's first by default.

    Raises:
        ModelError: the denoiser has no schedule to sample with, or `stop` is not within it.
    """
    levels, wanted, drawn = _levels(denoiser, steps, stop), list(numbers), []
    shape = denoiser.image_shape
    assert shape is not None
    for first in range(0, len(wanted), AT_ONCE):
        noise = [torch.randn(shape, generator=seeded(seed, SAMPLE, n)) for n in wanted[first : first + AT_ONCE]]
        # as wide as noised data of unit variance: x = noise where the schedule preserves variance
        y = torch.stack(noise).to(denoiser.device, denoiser.dtype) * (1 + levels[-1].item() ** 2) ** 0.5
        drawn.append(to_pixels(denoiser.render(decode(denoiser, y, levels))))
    return np.concatenate(drawn) if drawn else np.empty((0, *(denoiser.pixel_shape or ())), np.uint8)


def decode_noised(
    denoiser: Denoiser, images: np.ndarray, noise_level: float, starts: Sequence[Start], seed: int
) -> np.ndarray:
    """Images (B, C, H, W) uint8, noised to a level and decoded by the rest of the sampler's steps: the same shape."""
    levels = _levels(denoiser, STEPS)
    levels = torch.cat([levels[levels < noise_level], torch.tensor([noise_level], dtype=levels.dtype)])
    clean = denoiser.embed(torch.from_numpy(to_unit(images)).to(denoiser.device, denoiser.dtype))
    noise = [
        torch.randn(clean.shape[1:], generator=seeded(seed, DECODED, start.row or 0, noise_level, start.number))
        for start in starts
    ]
    y = clean + noise_level * torch.stack(noise).to(clean)
    return to_pixels(denoiser.render(decode(denoiser, y, levels)))


def guided(denoiser: Denoiser, conditions: Sequence[Condition], guidance: float | None) -> Denoiser:
    """The model under conditions, one for each image of a batch, with guidance if any is asked for."""
    conditional = denoiser.given(conditions)
    return conditional if guidance is None else GuidedDenoiser(conditional, denoiser, guidance)


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


def _levels(denoiser: Denoiser, steps: int, stop: float | None = None) -> Tensor:
    try:
        levels = denoiser.sampling_levels(steps)
        return levels if stop is None else stopped(levels, stop)
    except ValueError as error:
        raise ModelError(f"no samples can be drawn: {error}") from None
