"""What a worker measures for `volgrowth plan`, and for an audit that is to find its batch size: batch sizes, rows."""

import resource
import sys
import time
from dataclasses import dataclass

import torch

from volgrowth.audit.output.fragments import publish_fragment
from volgrowth.audit.output.manifest import Shard
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.audit.scoring.worker import ScoringWorker
from volgrowth.errors import EngineError

LARGEST_BATCH = 1024
# a smaller batch is taken when it has this much of the best throughput
NEARLY = 0.95
# of a GPU's memory: the rest is for what other images need more of, and for other libraries
BUDGET = 0.9


@dataclass(frozen=True)
class Piece:
    """A stretch of rows: seconds to score it and to publish it, and the most memory so far in bytes."""

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
        """The smallest of 1, 2, 4, ... whose throughput is nearly the best, among those that fit."""
        speeds: dict[int, float] = {}
        size = 1
        while size <= min(LARGEST_BATCH, shard.rows):
            speed = self._speed(shard, size)
            if speed is None or (size > 8 and speed < NEARLY * max(speeds.values())):
                break
            speeds[size] = speed
            size *= 2
        if not speeds:
            raise EngineError("one image does not fit into the device's memory: use a device with more")
        return min(size for size, speed in speeds.items() if speed >= NEARLY * max(speeds.values()))

    def pilot(self, stretch: Shard, batch: int) -> Piece:
        """Score a stretch as an audit would."""
        scorer = self._scorer(batch)
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

    def _speed(self, shard: Shard, size: int) -> float | None:
        """Images a second of one micro-batch, the second of two; None where it does not fit."""
        # not compiled, which would take minutes for every size
        scorer = Scorer(self.denoiser, self.config.model_copy(update={"batch_size": size}))
        try:
            self._score(scorer, shard, size)
            began = time.monotonic()
            self._score(scorer, shard, size)
        except EngineError:
            return None
        speed = size / (time.monotonic() - began)
        return speed if scorer.batch == size and self._within_budget() else None

    def _within_budget(self) -> bool:
        if self.device != "cuda":
            return True
        return torch.cuda.max_memory_reserved() <= BUDGET * torch.cuda.get_device_properties(0).total_memory

    def _score(self, scorer: Scorer, shard: Shard, rows: int) -> None:
        self._measure(scorer, self.source(shard.folder).read(shard.start, shard.start + rows), {})

    def _scorer(self, batch: int) -> Scorer:
        return self.new_scorer(self.config.model_copy(update={"batch_size": batch}))

    def _peak_memory(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024  # the kernels disagree
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
