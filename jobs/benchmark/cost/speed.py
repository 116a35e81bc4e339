"""How fast a measurement is, beside the device's own limits, and how long the device waits for images.

Networks have random weights. Work is counted in network evaluations, a backward pass as
one; floating-point operations are those of a forward pass; the device's limits are measured in the same run. Times are
the least of several rounds.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from math import ceil
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jobs.benchmark.cost.roofline import Cost, Limits, cost_of, limits_of, seconds
from jobs.benchmark.cost.subjects import Subject, denoiser_of, images_of
from volgrowth.audit.scoring.measures import Flow, launch_images, measure_images
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.config import AuditConfig, Measure, PaperMeasure, StandardMeasure
from volgrowth.models import NetworkDenoiser
from volgrowth.sources import Row, decode_image
from volgrowth.sources.pixels.features import encode_png

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# preset `volume` is more of the traces of `standard`
MEASURES: dict[str, Measure] = {
    "standard": StandardMeasure(),
    "paper": PaperMeasure(),
    "paper, jvp": PaperMeasure(derivative="jvp"),
}
CHEAPEST = "paper, jvp"
# images of the batch sizes that the cheapest preset is timed with, as parts of the network's own
PARTS = (64, 8, 1)
FED_SECONDS, FED_BATCHES = 2.0, 4


@dataclass(frozen=True)
class Speed:
    """One measurement: images of one batch, in the least of several rounds.

    Attributes:
        share_of_peak: of the rate that a large matrix product's operations a second allow.
        share_of_floor: of the rate that the roofline of `speed_cost` allows.
        idle: share of the time that scoring PNG files takes in which the device has nothing to do; None where it was
            not measured.
    """

    network: str
    preset: str
    dtype: str
    batch: int
    nfe: int
    images_per_second: float
    evaluations_per_second: float
    share_of_peak: float
    share_of_floor: float
    peak_memory_mib: float | None
    idle: float | None = None


@dataclass(frozen=True)
class Floor:
    """The limits of the device in one precision, and what a forward pass of a network costs by them."""

    network: str
    dtype: str
    limits: Limits
    cost: Cost


def speeds(subjects: Iterable[Subject], device: torch.device, rounds: int = 3) -> Iterator[tuple[Floor, list[Speed]]]:
    """Every preset on every network, in each precision that it allows."""
    gpu = device.type == "cuda"
    for subject in subjects:
        if subject.on_gpu_only and not gpu:
            continue
        for name, dtype in PRECISIONS.items():
            denoiser, images = denoiser_of(subject, dtype, device), images_of(subject, subject.batch[gpu], device)
            limits = limits_of(dtype, device)
            floor = Floor(subject.name, name, limits, cost_of(denoiser, images, limits))
            yield floor, list(_speeds(denoiser, images, floor, rounds))


def _speeds(denoiser: NetworkDenoiser, images: Tensor, floor: Floor, rounds: int) -> Iterator[Speed]:
    for preset, measure in MEASURES.items():
        if preset == "paper" and floor.dtype != "float32":
            continue
        for part in PARTS if preset == CHEAPEST else (1,):
            if part > len(images):
                continue
            speed = _speed(denoiser, images[: len(images) // part], floor, preset, measure, rounds)
            if preset == CHEAPEST and part == 1 and images.shape[1] in (1, 3):
                speed = replace(
                    speed, idle=idle_share(denoiser, images, measure, len(images) / speed.images_per_second)
                )
            yield speed


def _speed(
    denoiser: NetworkDenoiser, images: Tensor, floor: Floor, preset: str, measure: Measure, rounds: int
) -> Speed:
    rows, gpu = list(range(len(images))), images.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    spent: list[int] = []

    def work() -> None:
        spent.append(measure_images(Flow(denoiser), images, rows, measure, 0).nfe)

    took = seconds(work, images.device, rounds)
    nfe = spent[-1]
    rate = len(images) / took
    return Speed(
        network=floor.network,
        preset=preset,
        dtype=floor.dtype,
        batch=len(images),
        nfe=nfe,
        images_per_second=rate,
        evaluations_per_second=rate * nfe,
        share_of_peak=rate * nfe * floor.cost.flops / floor.limits.flops,
        share_of_floor=rate * nfe * floor.cost.seconds,
        peak_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if gpu else None,
    )


def idle_share(denoiser: NetworkDenoiser, images: Tensor, measure: Measure, took: float) -> float:
    """Of the time in which PNG files become records, the share beyond what their measurement takes by itself.

    Args:
        images: one micro-batch.
        took: seconds that it takes.
    """
    count = max(FED_BATCHES, ceil(FED_SECONDS / took))
    numbers = list(range(len(images)))

    def bare() -> None:
        before = launch_images(Flow(denoiser), images, numbers, measure, 0)
        for _ in range(count - 1):
            after = launch_images(Flow(denoiser), images, numbers, measure, 0)
            before.fetch()
            before = after
        before.fetch()

    files = [encode_png(pixels) for pixels in ((images + 1) * 127.5).round().to(torch.uint8).cpu().numpy()]
    rows = [Row(i, str(i), "", files[i % len(files)]) for i in range(count * len(files))]
    config = AuditConfig.build(model="unused", data="unused", output="unused", batch_size=len(images))
    scorer = Scorer(denoiser, config.model_copy(update={"measure": measure}))
    return max(0.0, 1 - seconds(bare, images.device, 1) / seconds(lambda: scorer.score(rows), images.device, 1))


def decode_rates(seconds_each: float = 1.0) -> dict[str, float]:
    """Images a second that one core decodes: PNG of 32 x 32 pixels, JPEG of 256 x 256 down to 32 x 32."""
    random, rates = np.random.default_rng(0), {}
    for name, size, kind in (("PNG 32", 32, "PNG"), ("JPEG 256 to 32", 256, "JPEG")):
        stream = BytesIO()
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(stream, kind)
        data, counts = stream.getvalue(), []
        for _ in range(3):
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds_each / 3:
                decode_image(data, (3, 32, 32), 10**6)
                count += 1
            counts.append(count / (time.perf_counter() - began))
        rates[name] = median(counts)
    return rates
