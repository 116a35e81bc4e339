"""The numbers of `speed` as JSON and Markdown: tables, the cost model, and what a hundred million images would take."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from jobs.benchmark.cost.race import Race
from jobs.benchmark.cost.speed import CHEAPEST, Floor, Speed

MANY = 100_000_000
GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Results:
    """Everything that one run measured.

    Attributes:
        decoding: images a second and core.
    """

    device: str
    decoding: Mapping[str, float]
    floors: Sequence[Floor]
    speeds: Sequence[Speed]
    races: Sequence[Race]


def device_name(device: torch.device) -> str:
    """The device, versions and date."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
    return f"{name}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"


def write(folder: Path, results: Results) -> None:
    """`speed.json` and `speed.md`."""
    (folder / "speed.json").write_text(json.dumps(asdict(results), indent=2) + "\n")
    (folder / "speed.md").write_text(markdown(results))


def markdown(results: Results) -> str:
    """All tables."""
    parts = [f"Measured on {results.device}.", _floors(results), _races(results.races), _speeds(results.speeds)]
    return "\n\n".join([*parts, _extrapolation(results)]) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["-"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _floors(results: Results) -> str:
    text = (
        "### The floor\n\nA forward pass costs at least its floating-point operations at the rate of a large matrix "
        "product; in a framework that takes one operation after the other, it costs the sum over operations of the "
        "longer of two times, arithmetic at that rate and the bytes it reads and writes at the rate of a large copy "
        "(`jobs.benchmark.cost.roofline`). Limits were measured again before each network. One core decodes "
        + " and ".join(f"{rate:,.0f} images/s of {name}" for name, rate in results.decoding.items())
        + ".\n\n"
    )
    columns = ["network", "precision", "product", "copy", "an image", "moves", "at the peak", "op by op"]
    rows = [
        [
            floor.network,
            floor.dtype,
            f"{floor.limits.flops / 1e12:,.2f} TFLOP/s",
            f"{floor.limits.bandwidth / 1e9:,.0f} GB/s",
            f"{floor.cost.flops / 1e9:,.2f} GFLOP",
            f"{floor.cost.bytes / 1e6:,.0f} MB",
            f"{1e3 * floor.cost.flops / floor.limits.flops:.3g} ms",
            f"{1e3 * floor.cost.seconds:.3g} ms",
        ]
        for floor in results.floors
    ]
    return text + _table(columns, rows)


def _races(races: Sequence[Race]) -> str:
    text = (
        "### Beside the published algorithm\n\nThe same images, axes and times: as published, image by image and point "
        "by point; in batches by differences in float32; in batches by derivatives in bfloat16. Log volumes of the "
        "first two agree within the given share of their spread; those in bfloat16 deviate from float64 by the given "
        "nats an axis and step, of which a point mass has at most 0.44 (random weights: growth itself is small).\n\n"
    )
    columns = ["network", "images x axes x steps", "loop", "batches", "bfloat16", "agreement", "bfloat16 deviates"]
    rows = [
        [
            race.network,
            f"{race.images} x {race.axes} x {race.steps}",
            f"{race.naive:.2f} s",
            f"{race.batched:.2f} s: {race.naive / race.batched:.2f} times as fast",
            f"{race.low:.2f} s: {race.naive / race.low:.2f} times",
            f"{race.difference:.1e}",
            f"{race.low_difference:.1e} nats",
        ]
        for race in races
    ]
    return text + _table(columns, rows)


def _speeds(speeds: Sequence[Speed]) -> str:
    text = (
        "### Presets\n\nA backward pass counts as one evaluation, as a forward pass does. Shares are of the rates that "
        "the floors above allow, for as many forward passes: the matrix product's peak, and operation by operation "
        "(above 100% where caches spare the copies). Idle: of the time in which PNG files become records, decoding and "
        "complexity included, the part that the measurement by itself does not take.\n\n"
    )
    memory = any(speed.peak_memory_mib is not None for speed in speeds)
    columns = ["network", "preset", "precision", "batch", "evaluations", "images/s", "evaluations/s"]
    columns += ["of peak", "of op by op", "idle"]
    rows = [
        [
            speed.network,
            speed.preset,
            speed.dtype,
            str(speed.batch),
            str(speed.nfe),
            f"{speed.images_per_second:,.2f}",
            f"{speed.evaluations_per_second:,.1f}",
            f"{speed.share_of_peak:.0%}",
            f"{speed.share_of_floor:.0%}",
            "" if speed.idle is None else f"{speed.idle:.0%}",
            *([f"{speed.peak_memory_mib:,.0f} MiB"] if memory else []),
        ]
        for speed in speeds
    ]
    return text + _table([*columns, *(["memory"] if memory else [])], rows)


def _extrapolation(results: Results) -> str:
    """Hours of a hundred million images, and the decoding cores that one device keeps busy."""
    text = (
        f"### {MANY:,} images\n\nAssumed: the rate above on every device, storage that delivers, a driver that costs "
        "nothing (docs/engine.md), and decoding by other cores, so many for one device, at the rate above.\n\n"
    )
    png = results.decoding.get("PNG 32", 1.0)
    largest = {speed.network: speed.batch for speed in sorted(results.speeds, key=lambda speed: speed.batch)}
    columns = ["network", "preset", "precision", *(f"{n} device{'s' if n > 1 else ''}" for n in GPUS), "decoding cores"]
    rows = [
        [
            speed.network,
            speed.preset,
            speed.dtype,
            *(f"{MANY / speed.images_per_second / n / 3600:,.1f} h" for n in GPUS),
            f"{speed.images_per_second / png:.2g}",
        ]
        for speed in results.speeds
        if speed.preset in ("standard", CHEAPEST) and speed.batch == largest[speed.network]
    ]
    return text + _table(columns, rows)
