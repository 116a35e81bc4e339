"""Images drawn from a model: samples from pure noise, and images of the data set that are noised and decoded again.

Each image has a seed of its own, made from what it is for and its number, so that more of them can be drawn later. They
are published as PNG in files of `AT_ONCE`, in the columns that `datasets` shows as pictures.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest
from volgrowth.audit.output.mending import tell_user
from volgrowth.audit.sampling.sample_files import AT_ONCE, DECODED, FOLDER, SAMPLE
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.audit.workers.loading import ModelWorker
from volgrowth.audit.workers.seeding import seeded
from volgrowth.errors import DamagedError, ModelError
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition, GuidedDenoiser
from volgrowth.numerics.flow import decode
from volgrowth.numerics.precision import in_float64
from volgrowth.sources import decode_image, encode_png, to_unit
from volgrowth.storage.store import Store
from volgrowth.theory.inertia import stopped

STEPS = 50
SAMPLER = f"DDIM, {STEPS} steps"


@dataclass(frozen=True)
class Start:
    """The noise that an image is drawn from.

    Attributes:
        number: the number of the sample, or of the draw from one row and noise level.
        row: the row that is noised and decoded; None for a sample from pure noise.
        noise_level: the level that the row is noised to.
        condition_row: the row whose condition the image is drawn under; None for no condition.
        stop: the noise level from which the sampler takes its last step (`theory.inertia`); None for the usual one.
    """

    number: int
    row: int | None = None
    noise_level: float | None = None
    condition_row: int | None = None
    stop: float | None = None


@dataclass(frozen=True)
class Drawing:
    """One file of images to draw: all of them samples, or all of them decoded rows."""

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
        """sha256 of the starts and the sampler: a file with another one is drawn again."""
        return hashlib.sha256(repr((SAMPLER, self.starts)).encode()).hexdigest()

    def images(
        self,
        denoiser: Denoiser,
        seed: int,
        clean: Mapping[int, np.ndarray],
        conditions: Mapping[int, Condition] = MappingProxyType({}),
        guidance: float | None = None,
        batch: BatchSize | None = None,
    ) -> np.ndarray:
        """Draw the images.

        Args:
            denoiser: the model.
            seed: the audit's seed.
            clean: images (C, H, W) uint8 of `rows`.
            conditions: conditions of `condition_rows`.
            guidance: scale of the guidance; None for none.
            batch: the number of images that the network sees at a time, halved when memory runs out; all by default.

        Returns:
            (starts, C, H, W) uint8. Every image has its own seed, so the batch changes at most a rounding.

        Raises:
            NoMemoryError: one image does not fit into the device's memory.
        """
        drawn = np.empty((len(self.starts), *(denoiser.pixel_shape or ())), np.uint8)

        def draw(which: Sequence[int]) -> None:
            starts = [self.starts[index] for index in which]
            given = [conditions[start.condition_row] for start in starts if start.condition_row is not None]
            model = guided(denoiser, given, guidance) if given else denoiser
            level = starts[0].noise_level
            if level is None:
                drawn[which] = draw_samples(model, [start.number for start in starts], seed, stop=starts[0].stop)
            else:
                images = np.stack([clean[start.row or 0] for start in starts])
                drawn[which] = decode_noised(model, images, level, starts, seed)

        batch = batch or BatchSize(len(self.starts))
        for which in self._by_level().values():
            batch.each(which, draw)
        return drawn

    def _by_level(self) -> dict[float | None, list[int]]:
        """Return the indices of the starts by the noise level they share."""
        found: dict[float | None, list[int]] = {}
        for index, start in enumerate(self.starts):
            found.setdefault(start.noise_level, []).append(index)
        return found


class DrawingWorker(ModelWorker):
    """Draws images from the model and publishes them."""

    def prepare(self) -> None:
        super().prepare()
        self.batch = BatchSize(self.config.images_at_once)

    def draw(self, drawing: Drawing) -> int:
        """Draw the images of a file, publish them, and return how many they are."""
        clean = {row: self.scored_pixels(SCORES_FOLDER, row) for row in drawing.rows}
        conditions = {row: self.scored_row(SCORES_FOLDER, row).condition for row in drawing.condition_rows}
        images = drawing.images(self.denoiser, self.config.seed, clean, conditions, self.config.guidance, self.batch)
        write_images(self.store, self.manifest, drawing, images)
        return len(images)


def drawings(kind: str, starts: Sequence[Start]) -> list[Drawing]:
    """Return the files, of `AT_ONCE` images each, that hold the images of some starts."""
    return [
        Drawing(f"{FOLDER}/{kind}-{first // AT_ONCE:05d}.parquet", tuple(starts[first : first + AT_ONCE]))
        for first in range(0, len(starts), AT_ONCE)
    ]


def draw_samples(
    denoiser: Denoiser, numbers: Iterable[int], seed: int, steps: int = STEPS, stop: float | None = None
) -> np.ndarray:
    """Draw the samples of the given numbers by DDIM.

    Args:
        denoiser: a model with a schedule.
        numbers: each gives its sample a seed of its own.
        seed: the audit's seed.
        steps: steps of the sampler.
        stop: noise level from which the last step goes to the image; the sampler's lowest by default.

    Returns:
        (numbers, C, H, W) uint8.

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
    """Noise images (B, C, H, W) uint8 to a level and decode them by the rest of the sampler's steps.

    Args:
        denoiser: a model with a schedule.
        images: one for each start.
        noise_level: the level that they are noised to.
        starts: row and number of each give its noise a seed of its own.
        seed: the audit's seed.

    Returns:
        (B, C, H, W) uint8.
    """
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
    """Return the model under conditions, one for each image of a batch, with guidance if any is asked for."""
    conditional = denoiser.given(conditions)
    return conditional if guidance is None else GuidedDenoiser(conditional, denoiser, guidance)


def to_pixels(images: Tensor) -> np.ndarray:
    """Return the uint8 pixels of images in [-1, 1]."""
    return ((in_float64(images).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def write_images(store: Store, manifest: Manifest, drawing: Drawing, images: np.ndarray) -> None:
    """Publish the images of a drawing beside their numbers, rows and noise levels."""
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
    """Say whether a drawing has been published whole, for this audit and from these starts.

    Raises:
        OutputError: the store could not say.
    """
    if not store.exists(drawing.name):
        return False
    try:
        table = store.read_table(drawing.name)
    except DamagedError as error:
        tell_user(f"{error.path} is damaged ({error.why}): its images are drawn again")
        return False
    footer = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return len(table) == len(drawing.starts) and _identity(manifest, drawing).items() <= footer.items()


def read_images(store: Store, name: str, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Read the images of a published drawing: (images, C, H, W) uint8."""
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
