"""What a launch costs the host: dispatched operations, and Python's time, on a device without kernels.

Tensors on torch's `meta` device have shapes and no numbers, so that the time is that of Python and of the dispatcher. A
recorded launch is replayed by nothing here: on a GPU it is one call of the driver, which is counted and not timed.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.benchmark.cost.networks import NETWORKS, TimedNetwork, random_denoiser
from jobs.benchmark.device.rig import CIFAR, PRESETS
from jobs.experiments import Outcome
from volgrowth.audit.scoring.captured import AXES, PIXELS, Inputs, Recording
from volgrowth.audit.scoring.measures import Flow, Launched, Packed, launch_images
from volgrowth.config import Measure, PaperMeasure, VolumeMeasure

META = torch.device("meta")
BATCH, ROUNDS = 64, 7
# preset standard as it was with fifteen evaluations and backward passes, by the first version of this measurement
BEFORE = {"evaluations": 15, "operations": 5891, "host, ms": 124.0}


class Count(TorchDispatchMode):
    """Counts the operations that are dispatched within this context."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return op(*args, **(kwargs or {}))


class Nothing:
    """A graph whose replay is one call that does nothing."""

    def record(self, work: Callable[[], Packed]) -> Packed:
        return work()

    def replay(self) -> None:
        return


def measure_host_cost(quick: bool = False) -> Outcome:
    """Count operations of a micro-batch by preset, launched one by one and as a recording, and time the host."""
    network = NETWORKS[0] if quick else CIFAR
    rows: list[dict[str, Any]] = [{"preset": "standard, before", **BEFORE}]
    for preset, measure in PRESETS.items():
        rows.append(
            {
                "preset": preset,
                "evaluations": measure.evaluations,
                **host_cost(network, measure, 1 if quick else ROUNDS),
            }
        )
    counts = [f"{row['preset']} {row['recorded, operations']}" for row in rows if row.get("recorded, operations")]
    said = f"Operations of a micro-batch once it is recorded: {', '.join(counts)}; {BEFORE['operations']:,} before."
    return Outcome(
        [said], {"table": rows}, {"images in a micro-batch": BATCH, "network": network.name, "device": "meta"}
    )


def host_cost(network: TimedNetwork, measure: Measure, rounds: int) -> dict[str, float | None]:
    """Return operations and milliseconds of a launch; recorded ones are None for backward passes."""
    flow = Flow(random_denoiser(network, torch.float32, META))
    pixels = torch.empty(BATCH, *network.shape, dtype=torch.uint8, device=META)

    inputs = {PIXELS: pixels}
    if isinstance(measure, PaperMeasure):
        inputs[AXES] = torch.empty(BATCH, measure.num_tangents, *network.shape, device=META)

    def launch(flow: Flow, inputs: Inputs) -> Launched:
        states = inputs[PIXELS] / 127.5 - 1
        return launch_images(flow, states, list(range(BATCH)), measure, 0, axes=inputs.get(AXES))

    operations, took = _cost(lambda: launch(flow, inputs).packed(), rounds)
    found: dict[str, float | None] = {"operations": operations + 1, "host, ms": took}  # and the copy of the results
    recorded: dict[str, float | None] = dict.fromkeys(("recorded, operations", "recorded, ms"))
    if not isinstance(measure, VolumeMeasure):
        recording = Recording(Nothing(), launch, flow, inputs)
        operations, took = _cost(lambda: recording.replay(flow, inputs), rounds)
        recorded = {"recorded, operations": operations + 2, "recorded, ms": took}  # and the replay
    return {**found, **recorded}


def _cost(work: Callable[[], object], rounds: int) -> tuple[int, float]:
    """Return the operations of a work that was done before, and its least CPU time in milliseconds."""
    work()
    with Count() as count:
        work()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return count.operations, 1e3 * min(times)
