"""Workers that hold the data sets and the model of an audit; those that score, draw or search are built on them."""

import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from volgrowth.audit.output.listings import open_frozen_data
from volgrowth.audit.output.manifest import SCORES_FOLDER, Manifest
from volgrowth.audit.workers.layout import put_channels
from volgrowth.config import AuditConfig
from volgrowth.errors import DataError, ModelError
from volgrowth.models import inspect_model, load_model
from volgrowth.models.factories import inspect_factory
from volgrowth.models.load import DType
from volgrowth.models.locating import FACTORY, files_digest
from volgrowth.numerics import Denoiser
from volgrowth.records import ModelInfo
from volgrowth.sources import BadImage, Row, Source, decode_image
from volgrowth.storage.store import Store


class _OwnOfThread(threading.local):
    """What each thread of a worker has of its own: readers keep their place, and attempts are counted by task."""

    def __init__(self) -> None:
        self.attempt = 1
        self.measured = 0
        self.sources: dict[str, Source] = {}


def use_one_thread() -> None:
    """Have torch compute in one thread, on every machine: the bits of a sum depend on how it is split.

    Some builds of torch keep the number for each thread that calls, so each of them sets it.
    """
    torch.set_num_threads(1)


class DataWorker:
    """Opens the audit's data sets and its output. It is cheap to construct; `prepare` does what can fail.

    Attributes:
        workers_here: how many workers share this machine's cores, set by the engine before `prepare`.
        cores_here: how many cores of this machine the engine may use; None for all that this process may run on.
        gpu_share: the share of its GPU's memory that this worker may use, set by the engine too.
        turn: held by the thread that uses the device. Beside a GPU the engine calls `score` from two threads, which
            take turns by themselves; it takes the turn for all other methods.
        measured: rows that are measured in tasks which are not answered yet.
        moved: called when further rows are measured; an engine in the same process sets it.
    """

    workers_here = 1
    cores_here: int | None = None
    gpu_share = 1.0
    moved: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, config: AuditConfig, manifest: Manifest, device: str):
        self.config, self.manifest, self.device = config, manifest, device
        self.turn = threading.RLock()
        self._own = _OwnOfThread()
        self.measured = 0

    @property
    def attempt(self) -> int:
        """The number of the attempt at the task that this thread does, set by the engine."""
        return self._own.attempt

    @attempt.setter
    def attempt(self, number: int) -> None:
        self._own.attempt = number

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the rows of one task, and forget them when it ends: from then on its answer counts."""
        self._own.measured = 0
        try:
            yield
        finally:
            self.measured -= self._own.measured

    def count(self, rows: int) -> None:
        """Count rows that were measured in the task of this thread."""
        self._own.measured += rows
        self.measured += rows
        self.moved()

    def prepare(self) -> None:
        """Get ready for tasks.

        Raises:
            OutputError: the output cannot be opened.
        """
        use_one_thread()
        self.store = Store(self.config.output)

    @property
    def device_name(self) -> str:
        """Name of the GPU, or the kind of this machine's processor with the instructions that torch uses on it."""
        if torch.device(self.device).type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if torch.device(self.device).type == "mps":
            return f"Apple GPU (MPS) of {platform.machine()}"
        return f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}"

    def source(self, folder: str) -> Source:
        """Return the audited or the held-out data set, which is opened once, by its frozen listing.

        Raises:
            DataError: the data set is no longer the one that was listed.
        """
        sources = self._own.sources
        if folder not in sources:
            sources[folder] = open_frozen_data(self.store, self.manifest, folder)
        return sources[folder]

    def pixels(self, row: Row) -> np.ndarray | None:
        """Return the image as the model sees it, (C, H, W) uint8, or None if the row has no readable image."""
        try:
            return decode_image(row.data or b"", self.manifest.image_shape, self.config.max_pixels)
        except BadImage:
            return None

    def scored_row(self, folder: str, row: int) -> Row:
        """Return a row of a data set."""
        return next(iter(self.source(folder).read(row, row + 1)))

    def scored_pixels(self, folder: str, row: int) -> np.ndarray:
        """Return the image of a row that has a score, (C, H, W) uint8.

        Raises:
            DataError: it can no longer be read.
        """
        pixels = self.pixels(self.scored_row(folder, row))
        if pixels is None:
            data = self.manifest.data if folder == SCORES_FOLDER else self.manifest.holdout
            raise DataError(f"row {row} of {data and data.name} was scored and can no longer be read")
        return pixels


class ModelWorker(DataWorker):
    """A worker that holds a model replica too.

    Attributes:
        denoiser: the replica, in the precision of the settings.
        earlier: the replica of an earlier worker of the same session in this process, which this one takes over; None
            to load one. The engine sets it before `prepare`.
    """

    earlier: Denoiser | None = None

    def prepare(self) -> None:
        """Load the model.

        Raises:
            ModelError: as `load_model`; or the model here is not the one in the manifest.
        """
        super().prepare()
        if self.earlier is None:
            self.denoiser = self._checked_model()
        else:
            self.denoiser = self._laid_out(self.earlier)

    def _checked_model(self) -> Denoiser:
        """Load the model, or raise a ModelError if it is not the one in the manifest."""
        name, recorded = self.config.model_arguments, self.manifest.model
        if self.config.model.startswith(FACTORY) and (self.config.dtype, self.device) == ("float32", "cpu"):
            denoiser = self.load(self.config.dtype)  # the one that a digest is of: a factory may take long
            self._check(inspect_factory(self.config.model, denoiser))
            return denoiser
        if recorded.files is None or files_digest(**name) != recorded.files:
            self._check(inspect_model(**name))
        return self.load(self.config.dtype)

    def _check(self, here: ModelInfo) -> None:
        """Raise a ModelError unless the model here is the one in the manifest."""
        if not here.is_model_of(self.manifest.model):
            fix = "put the same model on every node"
            if here.source_hash:
                fix = "have the factory give the same weights each time it is called, and put its files on every node"
            raise ModelError(
                f"model {self.config.model} has other weights on {platform.node()} than where the audit was started: "
                f"expected {self.manifest.model.hash} and got {here.hash}; {fix}"
            )

    def load(self, dtype: DType) -> Denoiser:
        """Load another replica of the model in a given precision."""
        return self._laid_out(load_model(**self.config.model_arguments, dtype=dtype, device=self.device))

    def _laid_out(self, denoiser: Denoiser) -> Denoiser:
        """Put the channels of a network as the settings say, or leave them as they were loaded."""
        if isinstance(self.config.channels_last, bool):
            put_channels(denoiser, self.config.channels_last)
        return denoiser
