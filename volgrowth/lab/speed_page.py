"""The numbers of `speed` as JSON and Markdown: tables, the cost model, and what a hundred million images would take."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from volgrowth.lab.speed import Race, Speed

MANY = 100_000_000
GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Results:
    """Everything that one run measured.

    Attributes:
        peaks: operations a second of a matrix product, by precision.
        decoding: images a second and core.
        flops: of a forward pass, by network.
    """

    device: str
    peaks: Mapping[str, float]
    decoding: Mapping[str, float]
    flops: Mapping[str, float]
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
    parts = [f"Measured on {results.device}.", _limits(results), _races(results.races), _speeds(results.speeds)]
    return "\n\n".join([*parts, _extrapolation(results)]) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["-"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _limits(results: Results) -> str:
    rows = [[f"matrix product, {name}", f"{peak / 1e12:,.2f} TFLOP/s"] for name, peak in results.peaks.items()]
    rows += [[f"a forward pass of {name}", f"{cost / 1e9:,.2f} GFLOP an image"] for name, cost in results.flops.items()]
    rows += [[f"decoding {name}", f"{rate:,.0f} images/s a core"] for name, rate in results.decoding.items()]
    return "### The device\n\n" + _table(["limit", "measured"], rows)


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
        "### Presets\n\nA backward pass counts as one evaluation, as a forward pass does; the share is of the floor: "
        "evaluations times the operations of a forward pass, at the matrix product's peak.\n\n"
    )
    memory = any(speed.peak_memory_mib is not None for speed in speeds)
    columns = ["network", "preset", "precision", "batch", "evaluations", "images/s", "evaluations/s", "share of peak"]
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
        if speed.preset in ("standard", "paper, jvp")
    ]
    return text + _table(columns, rows)
