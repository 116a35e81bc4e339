"""How fast the presets measure, beside the device's own limits, and how long the device waits for images.

Networks have random weights. Work is counted in network evaluations, a backward pass as one; floating-point operations
are those of a forward pass; the device's limits are measured in the same run. Times are the least of several rounds.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from math import ceil
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jobs.benchmark.cost.networks import NETWORKS, TimedNetwork, random_denoiser, smooth_images
from jobs.benchmark.cost.race import race
from jobs.benchmark.cost.roofline import Cost, Limits, forward_cost, least_seconds, measure_limits
from jobs.experiments import Outcome, say
from volgrowth.audit.scoring.measures import Flow, launch_images, measure_images
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.config import AuditConfig, Measure, PaperMeasure, StandardMeasure
from volgrowth.models import NetworkDenoiser
from volgrowth.sources import Row, decode_image, encode_png

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MEASURES: dict[str, Measure] = {
    "standard": StandardMeasure(),
    "paper": PaperMeasure(),
    "paper, jvp": PaperMeasure(derivative="jvp"),
}
CHEAPEST = "paper, jvp"
# the cheapest preset is timed with these parts of the network's batch too
PARTS = (64, 8, 1)
FED_SECONDS, FED_BATCHES = 2.0, 4
# the size of a large audit, and the numbers of devices for which its hours are shown
MANY, DEVICES = 100_000_000, (1, 8, 64)


def measure_speed(networks: Sequence[TimedNetwork] = NETWORKS, rounds: int = 3) -> Outcome:
    """Time the presets on networks of published configurations, beside the device's peak and the published algorithm.

    Runs on the GPU if there is one.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    floors: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    races = [race(each, device, *each.race[gpu], rounds=rounds) for each in networks if each.race]
    for network in networks:
        if network.gpu_only and not gpu:
            continue
        for precision, dtype in PRECISIONS.items():
            say(f"timing {network.name}, {precision}")
            denoiser, images = (
                random_denoiser(network, dtype, device),
                smooth_images(network, network.batch[gpu], device),
            )
            limits = measure_limits(dtype, device)
            cost = forward_cost(denoiser, images, limits)
            names = {"network": network.name, "precision": precision}
            floors.append({**names, **_floor_columns(limits, cost)})
            speeds += [{**names, **row} for row in time_presets(denoiser, images, precision, limits, cost, rounds)]
    rates = decode_rates()
    said = " and ".join(f"{rate:,.0f} images/s of {name}" for name, rate in rates.items())
    settings = {"rounds": rounds, "device": torch.cuda.get_device_name(device) if gpu else "CPU"}
    tables = {"floors": floors, "races": races, "presets": speeds, "many": hours_of_many(speeds, rates["PNG 32"])}
    return Outcome([f"One core decodes {said}."], tables, settings)


def _floor_columns(limits: Limits, cost: Cost) -> dict[str, float]:
    return {
        "product, TFLOP/s": limits.flops / 1e12,
        "copy, GB/s": limits.bandwidth / 1e9,
        "GFLOP an image": cost.flops / 1e9,
        "MB an image": cost.bytes / 1e6,
        "at the peak, ms": 1e3 * cost.flops / limits.flops,
        "op by op, ms": 1e3 * cost.seconds,
    }


def time_presets(
    denoiser: NetworkDenoiser, images: Tensor, precision: str, limits: Limits, cost: Cost, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield a row of the page for every preset that the precision allows, the cheapest one in several batch sizes.

    Shares are of the rates that the device's limits allow for as many forward passes. The idle share is measured for
    the cheapest preset in the largest batch, if the images can be PNG files.
    """
    gpu = images.device.type == "cuda"
    for preset, measure in MEASURES.items():
        if preset == "paper" and precision != "float32":
            continue
        for part in PARTS if preset == CHEAPEST else (1,):
            if part > len(images):
                continue
            some = images[: len(images) // part]
            if gpu:
                torch.cuda.reset_peak_memory_stats()
            took, nfe = _time_measure(denoiser, some, measure, rounds)
            memory = torch.cuda.max_memory_allocated() / 2**20 if gpu else None
            rate = len(some) * nfe / took
            fed = preset == CHEAPEST and part == 1 and images.shape[1] in (1, 3)
            yield {
                "preset": preset,
                "batch": len(some),
                "evaluations": nfe,
                "images/s": len(some) / took,
                "evaluations/s": rate,
                "of peak, %": 100 * rate * cost.flops / limits.flops,
                "of op by op, %": 100 * rate * cost.seconds,
                "idle, %": 100 * idle_share(denoiser, images, measure, took) if fed else None,
                **({"memory, MiB": memory} if gpu else {}),
            }


def _time_measure(denoiser: NetworkDenoiser, images: Tensor, measure: Measure, rounds: int) -> tuple[float, int]:
    """Return the seconds of measuring one batch, and network evaluations per image."""
    spent: list[int] = []

    def work() -> None:
        spent.append(measure_images(Flow(denoiser), images, list(range(len(images))), measure, 0).nfe)

    (took,) = least_seconds([work], images.device, rounds)
    return took, spent[-1]


def idle_share(denoiser: NetworkDenoiser, images: Tensor, measure: Measure, took: float) -> float:
    """Return the share of the time from PNG files to records that the measurement by itself does not take.

    Args:
        images: one micro-batch.
        took: seconds that its measurement takes.
    """
    count = max(FED_BATCHES, ceil(FED_SECONDS / took))
    numbers = list(range(len(images)))

    def bare() -> None:
        before = launch_images(Flow(denoiser), images, numbers, measure, 0).sent()
        for _ in range(count - 1):
            after = launch_images(Flow(denoiser), images, numbers, measure, 0).sent()
            before.fetch()
            before = after
        before.fetch()

    files = [encode_png(pixels) for pixels in ((images + 1) * 127.5).round().to(torch.uint8).cpu().numpy()]
    rows = [Row(i, str(i), "", files[i % len(files)]) for i in range(count * len(files))]
    config = AuditConfig.build(model="unused", data="unused", output="unused", batch_size=len(images))
    scorer = Scorer(denoiser, config.model_copy(update={"measure": measure}))
    alone, fed = least_seconds([bare, lambda: scorer.score(rows)], images.device, 1)
    return max(0.0, 1 - alone / fed)


def decode_rates(count: int = 2000) -> dict[str, float]:
    """Return how many images a second one core decodes: PNG of 32 x 32 pixels, and JPEG of 256 x 256 to 32 x 32."""
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    rates = {}
    for name, size, kind in (("PNG 32", 32, "PNG"), ("JPEG 256 to 32", 256, "JPEG")):
        stream = BytesIO()
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(stream, kind)
        (took,) = least_seconds([partial(_decode_often, stream.getvalue(), count)], torch.device("cpu"))
        rates[name] = count / took
    return rates


def _decode_often(data: bytes, count: int) -> None:
    for _ in range(count):
        decode_image(data, (3, 32, 32), 10**6)


def hours_of_many(speeds: Sequence[Mapping[str, Any]], png_rate: float) -> list[dict[str, Any]]:
    """Return the hours that `MANY` images take in the largest batches, and the decoding cores that a device needs."""
    largest = {row["network"]: row["batch"] for row in sorted(speeds, key=lambda row: row["batch"])}
    return [
        {
            **{name: row[name] for name in ("network", "precision", "preset")},
            **{f"{n} device{'s' * (n > 1)}, h": MANY / row["images/s"] / n / 3600 for n in DEVICES},
            "decoding cores": row["images/s"] / png_rate,
        }
        for row in speeds
        if row["preset"] in ("standard", CHEAPEST) and row["batch"] == largest[row["network"]]
    ]
