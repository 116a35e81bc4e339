"""Workers that measure how often the model makes an image (`numerics.generation_rate`).

A draw is a copy by the rule of `hits`, in pixels: it is much nearer to the image than to the others around it.
The others are the `RIVALS` images nearest to the image itself, which are those around every draw that
is near to it; to compare each draw with the whole data set would cost more than to draw it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.output.manifest import HOLDOUT_FOLDER, SCORES_FOLDER
from volgrowth.audit.sampling.drawing import STEPS, guided, to_pixels
from volgrowth.audit.sampling.hits import NEIGHBOURS, hit_groups
from volgrowth.audit.sampling.neighbours import Neighbours
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.audit.workers.loading import ModelWorker
from volgrowth.audit.workers.seeding import seeded
from volgrowth.errors import ModelError
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition, Images
from volgrowth.numerics.generation_rate import GenerationRate, generation_rate
from volgrowth.numerics.memory import out_of_memory
from volgrowth.sources import to_unit

RIVALS = 4 * NEIGHBOURS
"""Images around the image that a draw is compared with: more than the rule looks at, since a draw is not the image."""


@dataclass(frozen=True)
class Rated:
    """An image whose rate is measured.

    Attributes:
        row: the row that stands for the image.
        members: rows of its cluster with different pixels, `row` among them: a copy of any of them counts.
        rivals: audited rows of other clusters nearest to it.
        held_rivals: held-out rows nearest to it.
    """

    row: int
    members: tuple[int, ...]
    rivals: tuple[int, ...]
    held_rivals: tuple[int, ...]


class RatingWorker(ModelWorker):
    """Measures how often the model makes an image."""

    def rate(self, rated: Rated) -> GenerationRate:
        """Measure the rate of an image; in a conditional audit under the image's own condition.

        Raises:
            DataError: the image can no longer be read.
            ModelError: the model has no schedule to sample with.
            NoMemoryError: one image does not fit into the device's memory.
        """
        members = [self.scored_pixels(SCORES_FOLDER, row) for row in rated.members]
        rivals = [self.scored_pixels(SCORES_FOLDER, row) for row in rated.rivals]
        rivals += [self.scored_pixels(HOLDOUT_FOLDER, row) for row in rated.held_rivals]
        around = Around(np.stack(members), np.array(rivals).reshape(-1, *members[0].shape), np.arange(len(rivals)))
        row = self.scored_row(SCORES_FOLDER, rated.row)
        pixels = self.scored_pixels(SCORES_FOLDER, rated.row)
        model = self.denoiser
        if self.config.condition_column is not None:
            model = _Conditioned(self.denoiser, row.condition, self.config.guidance)
        clean = self.denoiser.embed(torch.from_numpy(to_unit(pixels[None])).to(model.device, model.dtype))[0]
        try:
            levels = self.denoiser.sampling_levels(STEPS)
        except ValueError as error:
            raise ModelError(f"no rates can be measured: {error}") from None
        spread = (1 + levels[-1].item() ** 2) ** 0.5  # that of `draw_samples`

        def returns(states: Images) -> Tensor:
            return torch.from_numpy(around.made(to_pixels(self.denoiser.render(states))))

        size = BatchSize(self.config.images_at_once)
        while True:
            generator = seeded(self.config.seed, "rate", rated.row)
            try:
                return generation_rate(model, clean, returns, levels, spread, generator=generator, batch_size=size.size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            size.halve()  # outside the block: the traceback holds the tensors


class Around:
    """An image, in all of its forms, and the images around it, which decide together whether a draw is a copy.

    Args:
        members: forms of the image, (M, C, H, W) uint8.
        rivals: images around it, (R, C, H, W) uint8.
        groups: number of the image that each rival is a form of, (R,), from 0.
    """

    def __init__(self, members: np.ndarray, rivals: np.ndarray, groups: np.ndarray):
        self.images = np.concatenate([members, rivals])
        self.groups = np.concatenate([np.zeros(len(members), int), 1 + groups])

    def made(self, draws: np.ndarray) -> np.ndarray:
        """Return a mask of the draws (B, C, H, W) uint8 that are copies, (B,)."""
        found = Neighbours(draws, min(NEIGHBOURS, int(self.groups.max()) + 1))
        found.add(self.images, self.groups)
        return hit_groups(np.sqrt(found.squared), found.group) == 0


class _Conditioned(Denoiser):
    """A model under one condition, whatever the size of the batch."""

    def __init__(self, model: Denoiser, condition: Condition, guidance: float | None):
        self._model, self._condition, self._guidance = model, condition, guidance
        self._by_size: dict[int, Denoiser] = {}
        self.device, self.dtype = model.device, model.dtype

    def __call__(self, y: Images, noise_level: Tensor) -> Images:
        return self._of(len(y))(y, noise_level)

    def noise(self, y: Images, noise_level: Tensor) -> Images:
        return self._of(len(y)).noise(y, noise_level)

    def _of(self, size: int) -> Denoiser:
        if size not in self._by_size:
            self._by_size[size] = guided(self._model, [self._condition] * size, self._guidance)
        return self._by_size[size]
