"""Rows in, a table of scores out, without Ray.

Threads read and decode images while the device computes (`scoring.prefetch`), beside a GPU in processes of their own
(`scoring.decoders`). Two shards may be scored at a time, from two threads with a scorer and a `turn` in common: the
second is read and decoded while the first is at the device, and the first becomes a table and is published while the
second is there. Micro-batches have one fixed shape, and
the last one of a shard is padded to it, so that a score does not depend on which rows came along. While a device
computes one micro-batch, the next is stacked, copied and queued behind it; then the results of the first are fetched,
whose one copy was queued before the next micro-batch. A device that runs out of memory gets half the micro-batch, and
the whole one again after a while (`workers.fitting`); the column `batch` says which size a row had. If one image does
not fit with its backward pass, networks of diffusers compute activations twice in place of keeping them. A network
without the derivative that the measure takes is measured by central differences in float32.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import chain, islice
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from volgrowth.audit.scoring.captured import AXES, PIXELS, CudaGraph, Inputs, Launcher
from volgrowth.audit.scoring.derivatives import Differenced, by_torch, has_derivative
from volgrowth.audit.scoring.measures import Flow, Launched, Measurement, Sent, launch_images, published_axes
from volgrowth.audit.scoring.prefetch import Ahead, decoding_threads
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.config import LOW_PRECISION, AuditConfig, Measure, PaperMeasure, VolumeMeasure
from volgrowth.errors import EngineError, kind_and_line
from volgrowth.models.network import NetworkDenoiser
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition
from volgrowth.numerics.forward import say_once
from volgrowth.numerics.memory import out_of_memory
from volgrowth.records import SCORES, Failure, Mark, Status
from volgrowth.sources import PNG_METHOD, Row, to_unit
from volgrowth.sources.pixels.described import Described, describe_rows

# groups of rows that the device has been given and whose results have not been fetched
IN_FLIGHT = 1
NONE: Mapping[int, Failure] = MappingProxyType({})
NO_TURN: AbstractContextManager[Any] = nullcontext()


@dataclass(frozen=True)
class Prepared:
    """A row as the model sees it: uint8 pixels (C, H, W), or None with the reason in `columns`."""

    row: int
    pixels: np.ndarray | None
    columns: dict[str, Any]
    condition: Condition = None


class Trouble(Enum):
    """A reason why a micro-batch was not measured that the scorer can do something about."""

    MEMORY = "the device has no memory for it"
    DERIVATIVE = "the network has no derivative"


@dataclass(frozen=True)
class Chunk:
    """Images that the device was given in one micro-batch of `size`, the caption tokens cut off, and the results."""

    items: list[Prepared]
    size: int
    cut: list[int | None]
    sent: Sent


class Scorer:
    """Scores rows with one denoiser.

    Args:
        denoiser: the model.
        config: the audit's settings.
        precise: loads the same denoiser in float32, which differences need of a network in lower precision.
        threads: how many threads, or processes, decode; by default as many as suit the device.
        png_method: how `png_bytes` is measured: see `volgrowth.sources.pixels.features`.
        describe: decodes rows, as `describe_rows` does, perhaps elsewhere.
        turn: is held while the device is used, so that threads use it one after the other.

    Attributes:
        measured: called with the number of rows of each group that is measured.
        screened: whether the rows have been screened by a cascade, and only the rest is measured.
        differenced: why derivatives are taken by central differences; None if they are not.
        launcher: gives micro-batches to the device, as a CUDA graph where that works.
    """

    screened = False
    measured: Callable[[int], None] = staticmethod(lambda rows: None)

    def __init__(
        self,
        denoiser: Denoiser,
        config: AuditConfig,
        precise: Callable[[], Denoiser] | None = None,
        threads: int | None = None,
        png_method: int = PNG_METHOD,
        describe: Callable[..., list[Described]] = describe_rows,
        turn: AbstractContextManager[Any] = NO_TURN,
    ):
        self.denoiser, self.config, self.precise = denoiser, config, precise
        self.measure: Measure = config.measure
        self.batch = BatchSize(config.images_at_once)
        self._threads = threads or decoding_threads(denoiser.device)
        self.png_method, self.describe, self.turn = png_method, describe, turn
        self.differenced: str | None = None
        graphs = denoiser.device.type == "cuda" and not isinstance(self.measure, VolumeMeasure)
        self.launcher = Launcher(CudaGraph if graphs else None)
        self._units = torch.from_numpy(to_unit(np.arange(256, dtype=np.uint8))).to(denoiser.device, denoiser.dtype)

    def score(self, rows: Iterable[Row], failures: Mapping[int, Failure] = NONE) -> pa.Table:
        """Score rows; see `score_and_wait`, whose table this returns."""
        return self.score_and_wait(rows, failures)[0]

    def score_and_wait(
        self, rows: Iterable[Row], failures: Mapping[int, Failure] = NONE
    ) -> tuple[pa.Table, float, float]:
        """Score rows.

        Args:
            rows: the rows, as a data set gives them.
            failures: rows that are recorded with the failure, and not looked at.

        Returns:
            One record per row, in the order of the rows, as `records.SCORES`; the seconds that the device waited for
            images, and those that images waited for the device.

        Raises:
            NoMemoryError: one image does not fit into the device's memory.
            EngineError: the network has no derivative, and none can be replaced by differences.
            DecoderDiedError: a process that decodes rows ended.
        """
        records: list[dict[str, Any]] = []
        told = 0
        flying: deque[tuple[list[Prepared], list[Chunk]]] = deque()
        ahead = Ahead(
            rows,
            lambda some: self.prepare(some, failures),
            self._threads,
            2 * self.config.images_at_once,
            weigh=lambda row: len(row.data or b""),
        )
        with closing(ahead.items()) as prepared:
            groups = _groups(prepared, self.config.images_at_once)
            first = list(islice(groups, 1))  # read and decoded before it is this thread's turn
            with self.turn:
                for group in chain(first, groups):
                    flying.append((group, self._launch([item for item in group if item.pixels is not None])))
                    if len(flying) > IN_FLIGHT:
                        records += _records(*flying.popleft())
                        self.measured(len(records) - told)
                        told = len(records)
        for group, chunks in flying:
            records += _records(group, chunks)
        return pa.Table.from_pylist(records, schema=SCORES), ahead.starved, ahead.held_up

    def prepare(self, rows: Sequence[Row], failures: Mapping[int, Failure] = NONE) -> list[Prepared]:
        """Decode rows, or note why they have no pixels that the model can be shown, and measure their features."""
        shape = self.denoiser.pixel_shape
        assert shape is not None
        problems = {}
        if self.config.condition_column:
            found = {row.row: self.denoiser.problem(row.condition) for row in rows}
            problems = {row: problem for row, problem in found.items() if problem}
        size = (shape[0], shape[1], shape[2])
        described = self.describe(rows, failures, problems, size, self.config.max_pixels, self.png_method)
        classes = self.config.class_column is not None
        return [
            Prepared(row.row, pixels, {**columns, "class": _text(row.condition) if classes else None}, row.condition)
            for row, (pixels, columns) in zip(rows, described, strict=True)
        ]

    def run(self, items: list[Prepared]) -> None:
        """Measure prepared images and wait for the results, to see how long that takes."""
        for chunk in self._launch(items):
            chunk.sent.fetch()

    def _launch(self, items: list[Prepared]) -> list[Chunk]:
        """Give images to the device, in micro-batches of the size that fits."""
        chunks: list[Chunk] = []
        captions = self.config.caption_column is not None
        cut: list[int | None] = [None] * len(items)
        if captions:
            told = self.denoiser.overflow([item.condition for item in items])
            cut = [None if item.condition is None else count for item, count in zip(items, told, strict=True)]
        start = 0
        while start < len(items):
            size, some = self.batch.size, items[start : start + self.batch.size]
            outcome = self._try(some, size)
            if outcome is Trouble.MEMORY:
                if self.batch.size > 1 or not self._checkpoint():
                    self.batch.halve()
            elif outcome is Trouble.DERIVATIVE:
                self._difference()
            else:
                chunks.append(Chunk(some, size, cut[start : start + size], outcome))
                start += len(some)
                self.batch.grow()
        return chunks

    def _try(self, some: list[Prepared], size: int) -> Sent | Trouble:
        """Launch one padded micro-batch, and the copy of its results."""
        padded = some + [some[-1]] * (size - len(some))
        try:
            return self.ready(padded)()
        except (RuntimeError, MemoryError) as error:
            # leave the block before anything is freed or retried: the traceback holds the tensors
            trouble, self._why = (Trouble.MEMORY if out_of_memory(error) else Trouble.DERIVATIVE), kind_and_line(error)
            if trouble is Trouble.DERIVATIVE and (self.differenced or not self._lacks_derivative(padded)):
                raise
        return trouble

    def ready(self, items: list[Prepared]) -> Callable[[], Sent]:
        """Bring pixels and conditions of a micro-batch to the device; return what launches it and its results' copy."""
        flow, rows = self.flow([item.condition for item in items]), [item.row for item in items]
        return partial(self.launcher.sent, flow, self._inputs(items), partial(self._measured, rows))

    def launch(self, items: list[Prepared]) -> Launched:
        """Give a micro-batch to the device, without waiting for its results."""
        flow = self.flow([item.condition for item in items])
        return self._measured([item.row for item in items], flow, self._inputs(items))

    def measure_states(self, flow: Flow, states: Tensor, rows: list[int], axes: Tensor | None = None) -> Launched:
        """Give the states of images to the device to be measured along a flow, without waiting for the results."""
        return launch_images(flow, states, rows, self.measure, self.config.seed, self.screened, axes)

    def _measured(self, rows: list[int], flow: Flow, inputs: Inputs) -> Launched:
        return self.measure_states(flow, self._states(inputs[PIXELS]), rows, inputs.get(AXES))

    def images(self, items: list[Prepared]) -> Tensor:
        """Return the states of images."""
        return self._states(self._pixels(items))

    def _inputs(self, items: list[Prepared]) -> Inputs:
        """Copy to the device what a launch reads: pixels, and the published axes if the measure follows them."""
        inputs = {PIXELS: self._pixels(items)}
        if isinstance(self.measure, PaperMeasure):
            shape = self.denoiser.image_shape or inputs[PIXELS].shape[1:]
            axes = published_axes([item.row for item in items], shape, self.measure, self.config.seed)
            inputs[AXES] = self._on_device(axes.to(self.denoiser.dtype))
        return inputs

    def _pixels(self, items: list[Prepared]) -> Tensor:
        """Copy pixels to the device as bytes."""
        return self._on_device(torch.from_numpy(np.stack([each.pixels for each in items if each.pixels is not None])))

    def _on_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device, from memory that it can read by itself."""
        if self.denoiser.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.denoiser.device, non_blocking=True)

    def _states(self, pixels: Tensor) -> Tensor:
        return self.denoiser.embed(self._units[pixels.int()])

    def _lacks_derivative(self, items: list[Prepared]) -> bool:
        """Say whether the network can be evaluated at these images but not differentiated as the measure does."""
        measure = self.measure
        if not by_torch(measure):
            return False
        try:
            flow = self.flow([item.condition for item in items])
            return not has_derivative(flow.denoiser, self.images(items), measure)
        except Exception:  # the trouble is another one, and the first error is raised
            return False

    def _difference(self) -> None:
        """From now on take derivatives by central differences, of a network in float32 or more."""
        self.differenced = self._why
        low = self.config.dtype in LOW_PRECISION
        if low and self.precise is None:
            raise EngineError(
                f"the network has no derivative ({self._why}), and a difference is lost in the rounding of "
                f"{self.config.dtype}: expected dtype float32"
            )
        if low and self.precise is not None:
            self.denoiser = self.precise()
        if isinstance(self.measure, PaperMeasure):
            self.measure = self.measure.model_copy(update={"derivative": "difference"})
        say_once(f"the network has no derivative ({self._why}): differences in float32 are taken instead")

    def _checkpoint(self) -> bool:
        """Have backward passes compute activations again in place of keeping them; False if that is no help."""
        denoiser = self.denoiser
        if not isinstance(self.measure, VolumeMeasure) or self.differenced or not isinstance(denoiser, NetworkDenoiser):
            return False
        if not denoiser.checkpoint():
            return False
        say_once("one image does not fit with its backward pass: activations are computed twice and not kept")
        return True

    def flow(self, conditions: list[Condition]) -> Flow:
        """Return the flow that images are measured along: the model's own, or the one under their conditions."""
        denoiser, null = self.denoiser, None
        if self.config.condition_column:
            denoiser, null = denoiser.given(conditions), denoiser if denoiser.has_null else None
        if self.differenced and not isinstance(self.measure, PaperMeasure):
            denoiser, null = Differenced(denoiser), null and Differenced(null)
        return Flow(denoiser, null, self.config.guidance if self.config.condition_column else None)


def _text(condition: Condition) -> str | None:
    return None if condition is None else str(condition)


def _records(group: list[Prepared], chunks: list[Chunk]) -> list[dict[str, Any]]:
    """Return one record for each row, with the results of the device for the rows that have an image."""
    measured = (columns for chunk in chunks for columns in _fetched(chunk))
    return [item.columns if item.pixels is None else {**item.columns, **next(measured)} for item in group]


def _fetched(chunk: Chunk) -> Iterator[dict[str, Any]]:
    measurement = chunk.sent.fetch()
    for index in range(len(chunk.items)):
        yield _columns(measurement, index, chunk.size, chunk.cut[index])


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


def _groups(items: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Yield runs of items that hold `size` images each; the last run may hold fewer."""
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
