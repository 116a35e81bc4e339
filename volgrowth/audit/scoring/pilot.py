"""The worker that measures speed: for `volgrowth plan`, and for an audit that is to find what is fastest on its device.

That is the layout of the network's weights in memory, and the number of images in a micro-batch. Both change the last
digits of scores, so they are found once for an audit and kept.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import inf

import torch

from volgrowth.audit.output.fragments import publish_fragment
from volgrowth.audit.output.manifest import Shard
from volgrowth.audit.scoring.captured import largest_difference
from volgrowth.audit.scoring.scorer import Prepared, Scorer
from volgrowth.audit.scoring.worker import ScoringWorker
from volgrowth.audit.workers.fitting import NoMemoryError
from volgrowth.audit.workers.layout import Layout, convolution_weights, judge_layout, put_channels
from volgrowth.config import LOW_PRECISION
from volgrowth.numerics.memory import held_by_others, out_of_memory

LARGEST_BATCH = 1024
# images that layouts are compared on, if the settings give no batch size
LAYOUT_IMAGES = 16
# micro-batches that are timed for each size and layout
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


@dataclass(frozen=True)
class Tuned:
    """What was found to be fastest.

    Attributes:
        batch_size: images in a micro-batch.
        device: name of the device that it was found on; None if that is not known.
        channels_last: whether the network's channels are last in memory; None for as they were loaded.
        layout: what was measured about that, for people; None if nothing was.
    """

    batch_size: int
    device: str | None = None
    channels_last: bool | None = None
    layout: str | None = None


class PilotWorker(ScoringWorker):
    """A scoring worker that looks at the clock."""

    def prepare(self) -> None:
        super().prepare()
        self.warm: set[int] = set()
        self.precise = cache(lambda: self.load("float32"))

    def tune(self, shard: Shard, batch_size: int | None, lay_out: bool) -> Tuned:
        """Find what is fastest on this device, on the first rows of a shard.

        Args:
            shard: the rows.
            batch_size: images in a micro-batch; None to search.
            lay_out: whether to choose the layout of the weights, or to leave it.

        Raises:
            NoMemoryError: one image does not fit.
        """
        layout = self.choose_layout(shard, batch_size or LAYOUT_IMAGES) if lay_out else Layout()
        return Tuned(batch_size or self.choose_batch(shard), self.device_name, layout.last, layout.said)

    def choose_layout(self, shard: Shard, images: int) -> Layout:
        """Choose the layout of the network's weights, and put them so; see `judge_layout`."""
        items = self._items(shard, images)
        if not items or not convolution_weights(self.denoiser):
            return Layout()
        scorer = self._scorer(len(items))
        scorer.run(items)  # finds out how many fit, and whether the network has derivatives
        if scorer.differenced:
            return Layout()
        items = items[: scorer.batch.size]
        seconds, found = [inf, inf], [scorer.ready(items)().fetch()] * 2
        for last in (True, False):
            put_channels(self.denoiser, last)
            launch = self._scorer(len(items)).ready(items)  # a recorded launch is of one layout
            found[last] = launch().fetch()
            seconds[last] = seconds_of(launch, self.denoiser.device)
        expected, low = found[False], self.config.dtype in LOW_PRECISION
        if low:
            exact = Scorer(self.precise(), self.config.model_copy(update={"batch_size": len(items)}))
            expected = exact.ready(items)().fetch()
        layout = judge_layout(seconds[False], seconds[True], largest_difference(expected, found[True]), low)
        put_channels(self.denoiser, bool(layout.last))
        return layout

    def choose_batch(self, shard: Shard) -> int:
        """Return the smallest of the sizes 1, 2, 4, ... that fit whose throughput is nearly the best.

        Launches are timed with pixels and conditions on the device already. What a size takes of a GPU's memory, with
        what its backward passes keep, says whether twice as many images would fit. Without any image that can be
        decoded the usual size is returned.

        Raises:
            NoMemoryError: one image does not fit.
        """
        speeds, taken = dict[int, float](), dict[int, int]()
        size, limit = 1, self._memory_limit()
        items = self._items(shard, LARGEST_BATCH)
        if not items:
            return self.config.images_at_once
        while size <= min(LARGEST_BATCH, shard.rows) and expected_bytes(taken, size) <= limit:
            speed = self._speed([items[k % len(items)] for k in range(size)])
            if speed is None or (size > 8 and speed < NEARLY * max(speeds.values())):
                break
            taken[size] = self._memory_taken()
            if size > 1 and taken[size] > limit:
                break
            speeds[size] = speed
            size *= 2
        if not speeds:
            raise NoMemoryError(
                f"one image does not fit into the device's memory{held_by_others()}: use a device with more"
            )
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

    def _items(self, shard: Shard, most: int) -> list[Prepared]:
        """Return so many of the first rows of a shard that have an image."""
        rows = self.source(shard.folder).read(shard.start, min(shard.stop, shard.start + most))
        return [item for item in self.scorer.prepare(list(rows)) if item.pixels is not None]

    def _scorer(self, size: int) -> Scorer:
        """Return a scorer with a size of micro-batches. Its network is not compiled: that would take minutes a size."""
        return Scorer(self.denoiser, self.config.model_copy(update={"batch_size": size}), self.precise)

    def _speed(self, items: list[Prepared]) -> float | None:
        """Return images per second of micro-batches of these images, the best of some rounds; None if they do not fit.

        The first micro-batch is not counted.
        """
        size = len(items)
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        scorer = self._scorer(size)
        try:
            scorer.run(items)
            if scorer.batch.size < size:
                return None
            return size / seconds_of(scorer.ready(items), self.denoiser.device)
        except (RuntimeError, MemoryError, NoMemoryError) as error:
            if not isinstance(error, NoMemoryError) and not out_of_memory(error):
                raise
        return None

    def _memory_taken(self) -> int:
        """Return the most bytes of a GPU that the last size took; 0 on a CPU, which is not asked."""
        return torch.cuda.max_memory_reserved() if self.device == "cuda" else 0

    def _memory_limit(self) -> float:
        if self.device != "cuda":
            return inf
        return BUDGET * self.gpu_share * torch.cuda.get_device_properties(0).total_memory

    def _score(self, scorer: Scorer, shard: Shard, rows: int) -> None:
        self._measure(scorer, self.source(shard.folder).read(shard.start, shard.start + rows), {})

    def _peak_memory(self) -> int:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024  # the kernels disagree
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def expected_bytes(taken: Mapping[int, int], size: int) -> float:
    """Return what micro-batches of twice the largest size will take, on a line through the two largest sizes so far.

    Args:
        taken: bytes by size, 1, 2, 4 and so on.
        size: the next one.
    """
    half, quarter = taken.get(size // 2, 0), taken.get(size // 4)
    return half if quarter is None else half + 2 * (half - quarter)


def seconds_of(launch: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """Return the least time of some launches in seconds: between events of the device on a GPU, else by the clock."""
    took = inf
    for _ in range(rounds):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            launch()
            end.record()
            end.synchronize()
            took = min(took, begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            launch()
            took = min(took, time.perf_counter() - began)
    return took
