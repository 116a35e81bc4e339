"""Rows in, a table of scores out: everything an actor computes, without Ray.

Images are read and decoded in a thread while the device computes. Micro-batches have one fixed shape, the last one of
a shard padded to it, so that a score does not depend on which rows came along. A device that runs out of memory gets
half the micro-batch, and the whole one again after a while; the column `batch` says which one a row had.
"""

import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from volgrowth.audit.measures import Flow, Measurement, measure_images
from volgrowth.config import AuditConfig
from volgrowth.errors import EngineError
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition
from volgrowth.records import SCORES, Mark, Status
from volgrowth.sources import BadImage, Row, decode, features, to_unit

# micro-batches without trouble after which a halved size is doubled again
GROW_AFTER = 32
NONE: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True)
class Prepared:
    """A row as the model sees it: uint8 pixels (C, H, W), or why there are none."""

    row: int
    pixels: np.ndarray | None
    columns: dict[str, Any]
    condition: Condition = None


class Scorer:
    """Scores rows with one denoiser."""

    def __init__(self, denoiser: Denoiser, config: AuditConfig):
        self.denoiser, self.config = denoiser, config
        self.batch, self._calm = config.batch_size, 0
        self.decode_wait = self.device_wait = 0.0

    def score(self, rows: Iterable[Row], crashed: Mapping[int, str] = NONE) -> pa.Table:
        """One record per row, in the order of the rows, as `records.SCORES`.

        Afterwards `decode_wait` holds the seconds that the device waited for images, `device_wait` those that images
        waited for the device.

        Args:
            crashed: rows that are recorded as crashed, with the reason, and not looked at.
        """
        prepared = (self._prepare(row, crashed.get(row.row)) for row in rows)
        records: list[dict[str, Any]] = []
        ahead = Ahead(_groups(prepared, self.config.batch_size))
        with closing(ahead.items()) as groups:
            for group in groups:
                records += self._score_group(group)
        self.decode_wait, self.device_wait = ahead.starved, ahead.held_up
        return pa.Table.from_pylist(records, schema=SCORES)

    def _prepare(self, row: Row, crashed: str | None) -> Prepared:
        known = {"row": row.row, "image_id": row.image_id, "source": row.source}
        if crashed:
            return Prepared(row.row, None, {**known, "status": Status.CRASHED.value, "error": crashed})
        try:
            if row.data is None:
                raise BadImage(Status.UNDECODABLE, row.error or "no image")
            shape = self.denoiser.pixel_shape
            assert shape is not None
            pixels = decode(row.data, (shape[0], shape[1], shape[2]), self.config.max_pixels)
            if self.config.condition_column and (problem := self.denoiser.problem(row.condition)):
                raise BadImage(Status.WRONG_CONDITION, problem)
        except BadImage as problem:
            return Prepared(row.row, None, {**known, "status": problem.status.value, "error": problem.message})
        return Prepared(row.row, pixels, {**known, "status": Status.OK.value, **features(pixels)}, row.condition)

    def _score_group(self, group: list[Prepared]) -> list[dict[str, Any]]:
        scored = [item for item in group if item.pixels is not None]
        records = [dict(item.columns) for item in group]
        if scored:
            measured = iter(self._measure(scored))
            for record in records:
                if record["status"] == Status.OK:
                    record.update(next(measured))
        return records

    def _measure(self, items: list[Prepared]) -> list[dict[str, Any]]:
        """Columns of each item, measured in micro-batches of the size that fits."""
        columns: list[dict[str, Any]] = []
        captions = self.config.caption_column is not None
        cut = self.denoiser.overflow([item.condition for item in items]) if captions else [None] * len(items)
        start = 0
        while start < len(items):
            size, chunk = self.batch, items[start : start + self.batch]
            measurement = self._try(chunk, size)
            if measurement is None:
                self._halve()
                continue
            columns += [_columns(measurement, index, size, cut[start + index]) for index in range(len(chunk))]
            start += len(chunk)
            self._calm += 1
            if self._calm >= GROW_AFTER and self.batch < self.config.batch_size:
                self.batch, self._calm = min(self.batch * 2, self.config.batch_size), 0
        return columns

    def _try(self, chunk: list[Prepared], size: int) -> Measurement | None:
        """Measure one padded micro-batch; None when the device has no memory for it."""
        padded = chunk + [chunk[-1]] * (size - len(chunk))
        pixels = np.stack([item.pixels for item in padded if item.pixels is not None])
        rows = [item.row for item in padded]
        try:
            images = torch.from_numpy(to_unit(pixels)).to(self.denoiser.device, self.denoiser.dtype)
            flow = self._flow([item.condition for item in padded])
            return measure_images(flow, self.denoiser.embed(images), rows, self.config.measure, self.config.seed)
        except RuntimeError as error:
            # leave the block before anything is freed or retried: the traceback holds the tensors
            if not _out_of_memory(error):
                raise
        return None

    def _flow(self, conditions: list[Condition]) -> Flow:
        """The model's own flow, or the one under the images' conditions beside it."""
        if not self.config.condition_column:
            return Flow(self.denoiser)
        null = self.denoiser if self.denoiser.has_null else None
        return Flow(self.denoiser.given(conditions), null, self.config.guidance)

    def _halve(self) -> None:
        if self.batch == 1:
            raise EngineError(
                "one image does not fit into the device's memory: use a device with more, or a smaller dtype"
            )
        self.batch, self._calm = self.batch // 2, 0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _columns(measurement: Measurement, index: int, batch: int, tokens_cut: int | None) -> dict[str, Any]:
    if not measurement.finite[index]:
        broken = [name for name, column in measurement.columns.items() if not np.isfinite(column[index]).all()]
        error = f"not finite: {', '.join(broken)}"
        return {"status": Status.NON_FINITE.value, "error": error, "nfe": measurement.nfe, "batch": batch}
    flags = {
        Mark.ABOVE_CEILING: measurement.above_ceiling[index],
        Mark.SIGN_FLIP: measurement.sign_flip[index],
        Mark.CAPTION_CUT: bool(tokens_cut),
    }
    return {
        **{name: column[index].tolist() for name, column in measurement.columns.items()},
        "tokens_cut": tokens_cut,
        "marks": [mark.value for mark, flagged in flags.items() if flagged],
        "nfe": measurement.nfe,
        "batch": batch,
    }


def _out_of_memory(error: RuntimeError) -> bool:
    said = ("can't allocate memory", "ALLOC_FAILED")  # the CPU's allocator; cuBLAS and cuDNN
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def _groups(items: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Runs of items that hold `size` images each, the last one fewer."""
    group: list[Prepared] = []
    images = 0
    for item in items:
        group.append(item)
        images += item.pixels is not None
        if images == size:
            yield group
            group, images = [], 0
    if group:
        yield group


class Ahead:
    """Items made by a thread that stays at most `depth` ahead of who takes them; its exceptions are raised there.

    Attributes:
        starved: seconds that the taker waited.
        held_up: seconds that the thread waited for room.
    """

    def __init__(self, source: Iterable[Any], depth: int = 2):
        self.source, self.starved, self.held_up = source, 0.0, 0.0
        self._ready: queue.Queue[tuple[Any, BaseException | None, bool]] = queue.Queue(depth)
        self._stopped = threading.Event()

    def items(self) -> Generator[Any, None, None]:
        """The items; closing the generator ends the thread."""
        thread = threading.Thread(target=self._produce, name="volgrowth-decode", daemon=True)
        thread.start()
        try:
            while True:
                began = time.monotonic()
                item, error, last = self._ready.get()
                self.starved += time.monotonic() - began
                if error is not None:
                    raise error
                if last:
                    return
                yield item
        finally:
            self._stopped.set()
            thread.join()

    def _produce(self) -> None:
        try:
            for item in self.source:
                self._put((item, None, False))
                if self._stopped.is_set():
                    return
            self._put((None, None, True))
        except BaseException as error:
            self._put((None, error, True))

    def _put(self, entry: tuple[Any, BaseException | None, bool]) -> None:
        began = time.monotonic()
        while not self._stopped.is_set():
            try:
                self._ready.put(entry, timeout=0.1)
                break
            except queue.Full:
                continue
        self.held_up += time.monotonic() - began
