"""The Ray actor: one model replica, and the life cycle around a `Scorer`."""

import platform
import time
from dataclasses import dataclass

import ray
import torch

from volgrowth.audit.fragments import publish
from volgrowth.audit.manifest import SCORES_FOLDER, Manifest, Shard
from volgrowth.audit.scorer import Scorer
from volgrowth.audit.store import Store
from volgrowth.config import AuditConfig
from volgrowth.errors import DataError, ModelError
from volgrowth.models import inspect_model, load_model
from volgrowth.records import Status
from volgrowth.sources import Source, open_source


@dataclass(frozen=True)
class ShardReport:
    """What the driver hears of a published shard."""

    shard: Shard
    failed: int


@ray.remote
class ScoringActor:
    """Scores shards and publishes their fragments. Construction is cheap; `prepare` does the work that can fail."""

    def __init__(self, config: AuditConfig, manifest: Manifest):
        self.config, self.manifest = config, manifest
        self.sources: dict[str, Source] = {}

    def prepare(self) -> str:
        """Load the model; the device it is on. An answer means that this worker can take shards.

        Raises:
            ModelError, OutputError: as the loaders do; the model here is not the one in the manifest.
        """
        device = "cuda" if ray.get_runtime_context().get_accelerator_ids().get("GPU") else "cpu"
        # one thread each, on every machine: the bits of a sum depend on how it is split
        torch.set_num_threads(1)
        name = (self.config.model, self.config.revision, self.config.subfolder)
        if inspect_model(*name).hash != self.manifest.model.hash:
            raise ModelError(
                f"model {self.config.model} has other weights on {platform.node()} than where the audit was started: "
                f"expected {self.manifest.model.hash}; put the same model on every node"
            )
        denoiser = load_model(*name, self.config.dtype, device)
        self.scorer, self.store = Scorer(denoiser, self.config), Store(self.config.output)
        self.device = device
        return device

    def score(self, shard: Shard, attempt: int) -> ShardReport:
        """Score a shard and publish it.

        Raises:
            DataError: the data set is no longer the one in the manifest.
        """
        began = time.monotonic()
        table = self.scorer.score(self._source(shard.folder).read(shard.start, shard.stop))
        seconds, worker = time.monotonic() - began, ray.get_runtime_context().get_actor_id() or ""
        publish(
            self.store, self.manifest, shard, table, attempt=attempt, seconds=seconds, worker=worker, device=self.device
        )
        failed = sum(status != Status.OK for status in table.column("status").to_pylist())
        return ShardReport(shard, failed)

    def _source(self, folder: str) -> Source:
        """The audited or the held-out set, opened once and checked against the manifest."""
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
