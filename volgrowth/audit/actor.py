"""The Ray actors: one model replica each, and the life cycle around plain functions."""

import platform
import time
from collections.abc import Sequence
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import ray
import torch

from volgrowth.audit.fragments import publish
from volgrowth.audit.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.neighbours import IMAGES_AT_ONCE, Neighbours
from volgrowth.audit.sampling import Drawing, read_images, write_images
from volgrowth.audit.scorer import Scorer
from volgrowth.audit.store import Store
from volgrowth.config import AuditConfig
from volgrowth.errors import DataError, ModelError
from volgrowth.models import inspect_model, load_model
from volgrowth.records import Status
from volgrowth.sources import BadImage, Row, Source, decode, open_source


class ModelActor:
    """Holds a model replica and opens the audit's data sets. Construction is cheap; `prepare` does what can fail."""

    def __init__(self, config: AuditConfig, manifest: Manifest):
        self.config, self.manifest = config, manifest
        self.sources: dict[str, Source] = {}
        channels, height, width = manifest.model.image_shape
        self.image_shape = channels, height, width

    def prepare(self) -> None:
        """Load the model. An answer means that this worker can take tasks.

        Raises:
            ModelError, OutputError: as the loaders do; the model here is not the one in the manifest.
        """
        self.device = "cuda" if ray.get_runtime_context().get_accelerator_ids().get("GPU") else "cpu"
        # one thread each, on every machine: the bits of a sum depend on how it is split
        torch.set_num_threads(1)
        name = (self.config.model, self.config.revision, self.config.subfolder)
        if inspect_model(*name).hash != self.manifest.model.hash:
            raise ModelError(
                f"model {self.config.model} has other weights on {platform.node()} than where the audit was started: "
                f"expected {self.manifest.model.hash}; put the same model on every node"
            )
        self.denoiser = load_model(*name, self.config.dtype, self.device)
        self.store = Store(self.config.output)

    def source(self, folder: str) -> Source:
        """The audited or the held-out set, opened once and checked against the manifest.

        Raises:
            DataError: the data set is no longer the one in the manifest.
        """
        if folder not in self.sources:
            config, audited = self.config, folder == SCORES_FOLDER
            data = self.manifest.data if audited else self.manifest.holdout
            assert data is not None
            source = open_source(data.name, data.split, config.image_column, config.id_column if audited else None)
            if source.fingerprint != data.fingerprint:
                raise DataError(
                    f"data set {data.name} changed while it was audited: run the audit again into a new output"
                )
            self.sources[folder] = source
        return self.sources[folder]

    def pixels(self, row: Row) -> np.ndarray | None:
        """(C, H, W) uint8 as the model sees it, None where there is no image."""
        try:
            return decode(row.data or b"", self.image_shape, self.config.max_pixels)
        except BadImage:
            return None


@ray.remote
class ScoringActor(ModelActor):
    """Scores shards and publishes their fragments."""

    def prepare(self) -> None:
        super().prepare()
        self.scorer = Scorer(self.denoiser, self.config)

    def score(self, shard: Shard, attempt: int) -> int:
        """Score a shard and publish it; how many of its rows failed."""
        began = time.monotonic()
        table = self.scorer.score(self.source(shard.folder).read(shard.start, shard.stop))
        self._publish(shard, table, attempt, time.monotonic() - began)
        return sum(status != Status.OK for status in table.column("status").to_pylist())

    def refine(self, shard: Shard, rows: Sequence[int], num_probes: int, attempt: int) -> int:
        """Measure some rows of a published shard with more probes, and publish it again; 0 failed."""
        began = time.monotonic()
        before, footer = self.store.read_table(shard.name), self.store.read_footer(shard.name)[1]
        measure = self.config.measure.model_copy(update={"num_probes": num_probes})
        scorer = Scorer(self.denoiser, self.config.model_copy(update={"measure": measure}))
        source = self.source(shard.folder)
        better = scorer.score(chain.from_iterable(source.read(row, row + 1) for row in rows))
        spent = pa.array(np.full(len(rows), self.config.measure.evaluations + measure.evaluations, np.int32))
        better = better.set_column(better.schema.get_field_index("nfe"), better.field("nfe"), spent)
        others = before.filter(pa.array(~np.isin(before["row"].to_numpy(), rows)))
        table = pa.concat_tables([others, better.cast(before.schema)]).sort_by("row")
        seconds = float(footer["seconds"]) + time.monotonic() - began
        self._publish(shard, table, attempt, seconds, refined=str(num_probes))
        return 0

    def _publish(self, shard: Shard, table: pa.Table, attempt: int, seconds: float, **extra: str) -> None:
        run = {
            "attempt": str(attempt),
            "seconds": f"{seconds:.3f}",
            "worker": ray.get_runtime_context().get_actor_id() or "",
            "device": self.device,
        }
        publish(self.store, self.manifest, shard, table, {**run, **extra})


@ray.remote
class VerifyingActor(ModelActor):
    """Draws images from the model, and finds what in a data set is near to them."""

    def prepare(self) -> None:
        super().prepare()
        self.queries: tuple[list[str], np.ndarray] | None = None

    def draw(self, drawing: Drawing) -> int:
        """Draw images and publish them; how many."""
        source = self.source(SCORES_FOLDER)
        clean = {}
        for row in drawing.rows:
            pixels = self.pixels(next(iter(source.read(row, row + 1))))
            if pixels is None:
                raise DataError(f"row {row} of {self.manifest.data.name} was scored and can no longer be read")
            clean[row] = pixels
        images = drawing.images(self.denoiser, self.config.seed, clean)
        write_images(self.store, self.manifest, drawing, images)
        return len(images)

    def nearest(self, names: list[str], shard: Shard, groups: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances and groups (S, k) of the images nearest to all drawn ones, among a range of rows.

        Args:
            names: files with the drawn images.
            groups: (rows of the range,) group of each row; negative ones are passed over.
        """
        if self.queries is None or self.queries[0] != names:
            self.queries = names, np.concatenate([read_images(self.store, name, self.image_shape) for name in names])
        found = Neighbours(self.queries[1], k, self.device)
        rows = zip(self.source(shard.folder).read(shard.start, shard.stop), groups.tolist(), strict=True)
        wanted = ((self.pixels(row), group) for row, group in rows if group >= 0)
        while some := list(islice(wanted, IMAGES_AT_ONCE)):
            there = [(pixels, group) for pixels, group in some if pixels is not None]
            if there:
                found.add(np.stack([pixels for pixels, _ in there]), np.array([group for _, group in there]))
        return found.squared, found.group
