"""The worker that measures speed: for `volgrowth plan`, and for an audit that is to find its batch size."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import inf

import torch

from volgrowth.audit.output.fragments import publish_fragment
from volgrowth.audit.output.manifest import Shard
from volgrowth.audit.scoring.scorer import Prepared, Scorer
from volgrowth.audit.scoring.worker import ScoringWorker
from volgrowth.audit.workers.fitting import NoMemoryError
from volgrowth.numerics import Denoiser

LARGEST_BATCH = 1024
# micro-batches that are timed for each size
ROUNDS = 3
# the smallest batch with this share of the best throughput is taken
NEARLY = 0.95
# the share of a GPU's memory that may be used: the rest is for images that need more, and for other libraries
BUDGET = 0.9


@dataclass(frozen=True)
class Piece:
    """The cost of a stretch of rows: seconds to score it and to publish it, and the peak memory so far in bytes."""

    rows: int
    failed: int
    seconds: float
    publishing: float
    peak_memory: int


class PilotWorker(ScoringWorker):
    """A scoring worker that looks at the clock."""

    def prepare(self) -> None:
        super().prepare()
        self.warm: set[int] = set()

    def choose_batch(self, shard: Shard) -> int:
        """Return the smallest of the sizes 1, 2, 4, ... that fit whose throughput is nearly the best.

        Launches are timed on images that are decoded already; what a backward pass keeps is in the memory that they
        take. Without any image that can be decoded the usual size is returned.

        Raises:
            NoMemoryError: one image does not fit.
        """
        speeds: dict[int, float] = {}
        size = 1
        rows = self.source(shard.folder).read(shard.start, min(shard.stop, shard.start + LARGEST_BATCH))
        items = [item for item in self.scorer.prepare(list(rows)) if item.pixels is not None]
        if not items:
            return self.config.images_at_once
        precise = cache(lambda: self.load("float32"))
        while size <= min(LARGEST_BATCH, shard.rows):
            speed = self._speed([items[k % len(items)] for k in range(size)], precise)
            if speed is None or (size > 8 and speed < NEARLY * max(speeds.values())):
                break
            speeds[size] = speed
            size *= 2
        if not speeds:
            raise NoMemoryError("one image does not fit into the device's memory: use a device with more")
        return min(size for size, speed in speeds.items() if speed >= NEARLY * max(speeds.values()))

    def pilot(self, stretch: Shard, batch: int) -> Piece:
        """Score and publish a stretch of rows as an audit would, with a batch size."""
        scorer = self.new_scorer(self.fast, self.config.model_copy(update={"batch_size": batch}))
        if batch not in self.warm:
            self._score(scorer, stretch, min(batch, stretch.rows))
            self.warm.add(batch)
        began = time.monotonic()
        table, tally = self._measure(scorer, self._rows(stretch), {})
        if self.device == "cuda":
            torch.cuda.synchronize()
        scored = time.monotonic()
        publish_fragment(self.store, self.manifest, stretch, table, self.attempt)
        published = time.monotonic()
        return Piece(stretch.rows, tally.failed, scored - began, published - scored, self._peak_memory())

    def _speed(self, items: list[Prepared], precise: Callable[[], Denoiser]) -> float | None:
        """Return images per second of micro-batches of these images, the best of some rounds; None if they do not fit.

        The first micro-batch is not counted.
        """
        size = len(items)
        # not compiled, which would take minutes for every size
        scorer = Scorer(self.denoiser, self.config.model_copy(update={"batch_size": size}), precise)
        took = inf
        try:
            scorer.run(items)
            for _ in range(ROUNDS):
                began = time.monotonic()
                scorer.run(items)
                took = min(took, time.monotonic() - began)
        except NoMemoryError:
            return None
        return size / took if scorer.batch.size == size and self._within_budget() else None

    def _within_budget(self) -> bool:
        if self.device != "cuda":
            return True
        return torch.cuda.max_memory_reserved() <= BUDGET * torch.cuda.get_device_properties(0).total_memory

    def _score(self, scorer: Scorer, shard: Shard, rows: int) -> None:
        self._measure(scorer, self.source(shard.folder).read(shard.start, shard.start + rows), {})

    def _peak_memory(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024  # the kernels disagree
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
