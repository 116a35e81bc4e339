"""Launches of micro-batches, where possible as one CUDA graph in place of thousands of operations.

Python dispatches an operation in about 20 us, and a forward pass of a network is hundreds of them, so that a fast
device waits for its host. Presets without backward passes do the same operations for every micro-batch: levels, scales
and noises are constants, only pixels, conditions and the axes of preset `paper` differ. The whole launch is recorded
once, from the pixels to the packed results, and replayed for others, which are copied to where the recording reads
them.

The first micro-batch of each shape is launched operation by operation, and its results are compared with those of the
recording. If recording fails, or the results differ by more than `TOLERANCE`, everything is launched operation by
operation from then on.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from volgrowth.audit.scoring.measures import Flow, Launched, Measurement, Packed, Sent
from volgrowth.errors import kind_and_line
from volgrowth.models import NetworkDenoiser

TOLERANCE, LOW_TOLERANCE = 1e-4, 2e-3
"""Allowed difference from the launch by operations, as a share of the largest number of a column, and that in a low
precision. The operations are the same; libraries may choose other kernels for them within a graph."""

PLAIN = "operation by operation"
PIXELS, AXES = "uint8 pixels", "axes"

Inputs = dict[str, Tensor]
"""What a launch reads beside conditions: `PIXELS`, and for preset `paper` the `AXES`."""
Launch = Callable[[Flow, Inputs], Launched]
"""Measures inputs along a flow."""

log = logging.getLogger("volgrowth")


class Graph(Protocol):
    """Work that is recorded once and replayed on the same memory."""

    def record(self, work: Callable[[], Packed]) -> Packed:
        """Record the work, and return the results that each replay overwrites."""

    def replay(self) -> None:
        """Do the work again, without waiting for the device."""


class CudaGraph:
    """A `Graph` of the current device."""

    def record(self, work: Callable[[], Packed]) -> Packed:
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):  # libraries allocate their workspaces for each stream, which no graph may do
            work()
        here.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # other threads of this process may allocate pinned memory meanwhile
        with torch.cuda.graph(self.graph, stream=aside, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        self.graph.replay()


class Recording:
    """The launch of one micro-batch, recorded, with the memory that its inputs and conditions are read from.

    Args:
        graph: records.
        launch: the launch.
        flow: the flow of the first micro-batch, under its conditions.
        inputs: those of the first micro-batch.
    """

    def __init__(self, graph: Graph, launch: Launch, flow: Flow, inputs: Inputs):
        own, conditions = (
            {name: tensor.clone() for name, tensor in each.items()} for each in (inputs, _conditions(flow))
        )
        if isinstance(flow.denoiser, NetworkDenoiser) and conditions:
            flow = replace(flow, denoiser=flow.denoiser.under(conditions))
        self._graph, self._read = graph, {**own, **conditions}
        self._results = graph.record(lambda: launch(flow, own).packed())

    def fits(self, flow: Flow, inputs: Inputs) -> bool:
        """Say whether a micro-batch has the shapes of the recorded one."""
        return _shapes({**inputs, **_conditions(flow)}) == _shapes(self._read)

    def replay(self, flow: Flow, inputs: Inputs) -> Packed:
        """Launch a micro-batch, and return its results, which the next replay overwrites."""
        for name, tensor in {**inputs, **_conditions(flow)}.items():
            self._read[name].copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._results


class Launcher:
    """Launches micro-batches, by a recording where there is a graph and the denoiser is a network.

    Args:
        graph: makes an empty graph; None to launch operation by operation.

    Attributes:
        said: how micro-batches are launched, for people.
        used: whether any was launched.
    """

    def __init__(self, graph: Callable[[], Graph] | None):
        self._graph = graph
        self._recording: Recording | None = None
        self.said, self.used = PLAIN, False

    def sent(self, flow: Flow, inputs: Inputs, launch: Launch) -> Sent:
        """Launch a micro-batch, and the copy of its results."""
        self.used = True
        if self._recording is not None and self._recording.fits(flow, inputs):
            return self._recording.replay(flow, inputs).sent()
        self._recording = None  # gives back its memory
        sent = launch(flow, inputs).sent()
        if self._graph is not None and isinstance(flow.denoiser, NetworkDenoiser):
            self._record(self._graph(), flow, inputs, launch, sent.fetch())
        return sent

    def _record(self, graph: Graph, flow: Flow, inputs: Inputs, launch: Launch, expected: Measurement) -> None:
        """Record a micro-batch that was launched operation by operation, if its replay has the expected results."""
        try:
            recording = Recording(graph, launch, flow, inputs)
            off = largest_difference(expected, recording.replay(flow, inputs).sent().fetch())
        except Exception as error:  # whatever a driver or a library raises when it cannot be recorded
            return self._give_up(kind_and_line(error))
        low = flow.denoiser.precision in (torch.bfloat16, torch.float16)
        most = LOW_TOLERANCE if low else TOLERANCE
        if not off <= most:
            return self._give_up(f"its numbers differ by {off:.1e} of the largest, and {most:.0e} is allowed")
        self._recording = recording
        self.said = "as a CUDA graph, " + (f"within {off:.1e} of" if off else "same bits as") + f" {PLAIN}"

    def _give_up(self, why: str) -> None:
        self._graph, self.said = None, f"{PLAIN}: as a CUDA graph it fails ({why})"
        log.warning("micro-batches are launched %s", self.said)


def _conditions(flow: Flow) -> dict[str, Tensor]:
    return flow.denoiser.conditions if isinstance(flow.denoiser, NetworkDenoiser) else {}


def _shapes(inputs: Inputs) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in inputs.items()}


def largest_difference(expected: Measurement, found: Measurement) -> float:
    """Return the largest difference of two measurements, as a share of the largest number of its column, or NaN."""
    shares = [0.0]
    for name, column in expected.columns.items():
        finite = np.isfinite(column)
        if not np.array_equal(finite, np.isfinite(found.columns[name])):
            return float("nan")
        known, other = column[finite], found.columns[name][finite]
        largest = np.abs(known).max(initial=0.0)
        shares.append(np.abs(known - other).max(initial=0.0) / (largest or 1.0))
    return max(shares)
