"""What the steps of the GPU check share: the device, networks and images, the clock, and the switch of TF32."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from jobs.benchmark.cost.networks import NETWORKS, TimedNetwork, random_denoiser, smooth_images
from jobs.benchmark.cost.roofline import Limits
from jobs.benchmark.cost.speed import MEASURES
from volgrowth.audit.scoring.derivatives import true_float32
from volgrowth.audit.scoring.measures import Flow, Sent, launch_images
from volgrowth.config import Measure, PaperMeasure, ScreenMeasure, VolumeMeasure
from volgrowth.models import NetworkDenoiser

Result = dict[str, Any]
PRESETS: Mapping[str, Measure] = {"screen": ScreenMeasure(), **MEASURES, "volume": VolumeMeasure()}
QUICK_PRESETS: Mapping[str, Measure] = {
    **{name: PRESETS[name] for name in ("screen", "paper", "paper, jvp")},
    "volume": VolumeMeasure(num_levels=2, num_probes=1),
}
CPU = torch.device("cpu")
SMALL, CIFAR, DIT, STABLE_DIFFUSION = NETWORKS[2:6]
# a check is to end within eight minutes: after so many seconds no step, and no part of one, is begun; steps have shares
# of these (`check.BUDGETS`)
SECONDS = 420.0


@dataclass
class Rig:
    """The device that is checked, and the sizes.

    Attributes:
        device: where the network computes.
        folder: an empty folder for files.
        quick: the smallest network in place of all, few images: to see on any machine that every step runs.
        limits: the device's measured limits in bfloat16, once the first step has measured them.
        ends: seconds after the beginning at which the step that runs now begins no further part.
    """

    device: torch.device
    folder: Path
    quick: bool = False
    limits: Limits = field(default_factory=lambda: Limits(1e11, 1e10))
    began: float = field(default_factory=time.monotonic)
    ends: float = SECONDS

    @property
    def gpu(self) -> bool:
        """True if the device is one."""
        return self.device.type == "cuda"

    @property
    def presets(self) -> Mapping[str, Measure]:
        """The presets that are measured, by name."""
        return QUICK_PRESETS if self.quick else PRESETS

    @property
    def age(self) -> float:
        """Seconds since the check began."""
        return time.monotonic() - self.began

    def late(self, needed: float = 0.0) -> bool:
        """Say whether something that needs so many seconds would end too late."""
        return needed > self.left

    @property
    def left(self) -> float:
        """Seconds in which the step that runs now may begin further parts."""
        return min(SECONDS, self.ends) - self.age

    def network(self, network: TimedNetwork) -> TimedNetwork:
        """Return the network, or the smallest one if the check is a quick one."""
        return NETWORKS[0] if self.quick else network

    def batches(self, *sizes: int) -> tuple[int, ...]:
        """Return the batch sizes, or one small one."""
        return (4,) if self.quick else sizes

    def denoiser(self, network: TimedNetwork, dtype: torch.dtype, at: torch.device | None = None) -> NetworkDenoiser:
        """Return the network with random weights, the same on every device."""
        return random_denoiser(self.network(network), dtype, at or self.device)

    def images(self, network: TimedNetwork, count: int, at: torch.device | None = None) -> Tensor:
        """Return images of the network's size."""
        return smooth_images(self.network(network), count, at or self.device)

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.gpu:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object], rounds: int = 3) -> tuple[float, float]:
        """Return how long a work takes until the device is idle, and until the call returns: medians, in ms.

        A first call is not counted, but for a quick check, which has only that one.
        """
        done, returned = list[float](), list[float]()
        if not self.quick:
            work()
            self.wait()
        for _ in range(1 if self.quick else rounds):
            began = time.perf_counter()
            work()
            returned.append(1e3 * (time.perf_counter() - began))
            self.wait()
            done.append(1e3 * (time.perf_counter() - began))
        return median(done), median(returned)

    def free(self) -> None:
        """Give memory that is cached and not used back to the device."""
        if self.gpu:
            torch.cuda.empty_cache()


def launch(denoiser: NetworkDenoiser, images: Tensor, measure: Measure) -> Sent:
    """Give images to the device to be measured, and start the copy of the results."""
    return launch_images(Flow(denoiser), images, list(range(len(images))), measure, 0).sent()


def low_allowed(measure: Measure) -> bool:
    """Say whether a preset may run in bfloat16."""
    return not (isinstance(measure, PaperMeasure) and measure.derivative == "difference")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 in products and convolutions, or forbid it."""
    with true_float32():
        if allowed:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        yield


def short(dtype: torch.dtype) -> str:
    """Return the name of a precision."""
    return str(dtype).removeprefix("torch.")
