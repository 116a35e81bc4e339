"""What an audit costs beside its network: from a thousand rows to a million, by one worker or several.

The model of the soak costs nothing, so that what is measured is reading, decoding, publishing and the driver.
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

from volgrowth.lab.soak import audit_command, make_data, watch

ROWS = (1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True)
class Scale:
    """One audit.

    Attributes:
        seconds: of the whole command, start of Ray, analysis and report included.
        images_per_second: while scoring.
        driver_mib: most memory of the driver while rows were scored.
        cpu_per_row: CPU seconds a row of everything that the audit started, up to the last row.
        resume_seconds: of the same command again, which has nothing left to do.
    """

    rows: int
    workers: int
    seconds: float
    images_per_second: float
    driver_mib: float
    cpu_per_row: float
    resume_seconds: float


def run_scale(folder: Path, largest: int, workers: Sequence[int]) -> list[Scale]:
    """Audits of every size up to `largest` by each number of workers."""
    found = []
    for rows in (rows for rows in ROWS if rows <= largest):
        data = folder / f"data-{rows}"
        make_data(data, rows)
        found += [_measure(folder, data, rows, count) for count in workers]
    return found


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
        cpu_per_row=cpu[scoring].max() / rows,
        resume_seconds=resume,
    )


def write_scale(folder: Path, found: Sequence[Scale], device: str) -> None:
    """`scale.json` and `scale.md`."""
    (folder / "scale.json").write_text(json.dumps([asdict(each) for each in found], indent=2) + "\n")
    (folder / "scale.md").write_text(markdown(found, device))


def markdown(found: Sequence[Scale], device: str) -> str:
    """The numbers as a table."""
    header = "| rows | workers | whole command | images a second | driver | CPU a row | asked for again |"
    rows = [
        f"| {each.rows:,} | {each.workers} | {each.seconds:,.0f} s | {each.images_per_second:,.0f} | "
        f"{each.driver_mib:,.0f} MiB | {1e3 * each.cpu_per_row:.3f} ms | {each.resume_seconds:.1f} s |"
        for each in found
    ]
    note = "CPU a row is of everything up to the last row, start of Ray and imports included, which few rows share."
    return "\n".join([f"Measured on {device}.", "", header, "|-" * 7 + "|", *rows, "", note, ""])


def worker_counts() -> list[int]:
    """1, 2, 4, ... up to the CPUs there are."""
    cpus = os.cpu_count() or 1
    return [2**power for power in range(cpus.bit_length()) if 2**power <= cpus]
