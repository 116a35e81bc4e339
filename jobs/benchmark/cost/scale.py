"""What an audit costs beside its network: from a thousand rows to a million, by one worker or several.

The model of the soak costs nothing, so that what is measured is reading, decoding, publishing and the driver. The cost
model is a line: what an audit takes without any row, and what each row adds, beside the floor, a plain loop over the
same rows.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jobs.benchmark.cost.soak import LOOP_ROWS, audit_command, loops_cpu, make_data, watch

ROWS = (1_000, 10_000, 100_000, 1_000_000)
MANY, GPUS, CORES = 100_000_000, (1, 8, 64), 16


@dataclass(frozen=True)
class Scale:
    """One audit.

    Attributes:
        seconds: of the whole command, start of Ray, analysis and report included.
        images_per_second: while scoring.
        driver_mib: most memory of the driver while rows were scored.
        analysis_mib: and of it afterwards.
        cpu: CPU seconds of everything that the audit started, up to the last row.
        resume_seconds: of the same command again, which has nothing left to do.
    """

    rows: int
    workers: int
    seconds: float
    images_per_second: float
    driver_mib: float
    analysis_mib: float
    cpu: float
    resume_seconds: float


@dataclass(frozen=True)
class CostModel:
    """Of audits by so many workers: a line through the smallest and the largest.

    Attributes:
        start_seconds: of the whole command, without any row.
        row_seconds: that each row adds to it.
        row_cpu: CPU seconds that each row adds up to the last one.
        loop_cpu: CPU seconds a row of plain loops, as many at the same time: the mean of before the largest audit and
            after it, since machines that are shared change their speed.
    """

    workers: int
    start_seconds: float
    row_seconds: float
    row_cpu: float
    loop_cpu: float


def run_scale(folder: Path, sizes: Sequence[int], workers: Sequence[int]) -> tuple[list[Scale], list[CostModel]]:
    """Audits of every size by each number of workers; cost models where there are two sizes or more."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Scale] = []
    models: list[CostModel] = []
    for rows in sorted(sizes):
        data = folder / f"data-{rows}"
        make_data(data, rows)
        for count in workers:
            largest = rows == max(sizes) > min(sizes)
            loops = [loops_cpu(data, min(LOOP_ROWS, rows), count)] if largest else []
            found.append(many := _measure(folder, data, rows, count))
            if largest:
                loops.append(loops_cpu(data, min(LOOP_ROWS, rows), count))
                few = next(each for each in found if each.workers == count)
                models.append(_line(few, many, sum(loops) / 2))
    return found, models


def _line(few: Scale, many: Scale, loop_cpu: float) -> CostModel:
    added = many.rows - few.rows
    row_seconds = (many.seconds - few.seconds) / added
    return CostModel(
        workers=many.workers,
        start_seconds=few.seconds - few.rows * row_seconds,
        row_seconds=row_seconds,
        row_cpu=(many.cpu - few.cpu) / added,
        loop_cpu=loop_cpu,
    )


def _measure(folder: Path, data: Path, rows: int, workers: int) -> Scale:
    output, log = folder / "audit", folder / "scale.jsonl"
    shutil.rmtree(output, ignore_errors=True)
    command = audit_command(data, output, log, workers)
    began = time.monotonic()
    samples = watch(command, log)
    seconds = time.monotonic() - began
    done, memory, cpu = (np.array(column, float) for column in zip(*samples, strict=True))
    scoring = done < rows
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    resume = time.monotonic() - began
    summary = json.loads((output / "summary.json").read_text())
    return Scale(
        rows=rows,
        workers=workers,
        seconds=seconds,
        images_per_second=summary["run"]["images_per_second"],
        driver_mib=memory[scoring].max(),
        analysis_mib=memory[~scoring].max(initial=0.0),
        cpu=cpu[scoring].max(),
        resume_seconds=resume,
    )


def write_scale(folder: Path, found: Sequence[Scale], models: Sequence[CostModel], device: str) -> None:
    """`scale.json` and `scale.md`."""
    numbers = {"device": device, "audits": list(map(asdict, found)), "models": list(map(asdict, models))}
    (folder / "scale.json").write_text(json.dumps(numbers, indent=2) + "\n")
    (folder / "scale.md").write_text(markdown(found, models, device))


def markdown(found: Sequence[Scale], models: Sequence[CostModel], device: str) -> str:
    """The numbers as tables."""
    lines = [
        f"Measured on {device}, with a model that costs nothing on images of 8 x 8 pixels.",
        "",
        "| rows | workers | whole command | images a second | driver | analysis | CPU | asked for again |",
        "|-" * 8 + "|",
    ]
    lines += [
        f"| {each.rows:,} | {each.workers} | {each.seconds:,.0f} s | {each.images_per_second:,.0f} | "
        f"{each.driver_mib:,.0f} MiB | {each.analysis_mib:,.0f} MiB | {each.cpu:,.0f} s | {each.resume_seconds:.1f} s |"
        for each in found
    ]
    lines += [
        "",
        "Driver: its memory while rows are scored; analysis: later. CPU: of all, up to the last row.",
        "",
    ]
    if not models:
        return "\n".join(lines)
    hours = " | ".join(f"{n} GPU{'s' if n > 1 else ''}" for n in GPUS)
    lines += [
        "A line through the smallest audit and the largest: what a command takes without any row, what each row adds "
        "to it, CPU time that each row adds up to the last one, and the floor, that of as many plain loops that read, "
        f"decode, measure and keep nothing. Then hours of {MANY:,} rows by that CPU time, with {CORES} such cores "
        "for each GPU, storage that delivers, and networks whose own time is not in it.",
        "",
        f"| workers | start | a row adds | CPU a row | plain loop | overhead | {hours} |",
        "|-" * (6 + len(GPUS)) + "|",
    ]
    lines += [
        f"| {model.workers} | {model.start_seconds:.0f} s | {1e3 * model.row_seconds:.3f} ms | "
        f"{1e3 * model.row_cpu:.3f} ms | {1e3 * model.loop_cpu:.3f} ms | {model.row_cpu / model.loop_cpu - 1:+.0%} | "
        + " | ".join(f"{MANY * model.row_cpu / CORES / n / 3600:.2f} h" for n in GPUS)
        + " |"
        for model in models
    ]
    return "\n".join([*lines, ""])


def worker_counts() -> list[int]:
    """1, 2, 4, ... up to the CPUs there are."""
    cpus = os.cpu_count() or 1
    return [2**power for power in range(cpus.bit_length()) if 2**power <= cpus]
