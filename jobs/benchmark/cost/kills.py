"""A long audit whose drivers and workers are killed again and again: their memory, and whether every row is there."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jobs.benchmark.cost.engine_load import (
    SAMPLE_SECONDS,
    SETTINGS,
    SHARD_ROWS,
    audit_command,
    make_data,
    memory_slope,
)
from jobs.benchmark.processes import command_of, cpu_of_tree, in_repository, resident_mib
from jobs.experiments import Outcome, say
from volgrowth.errors import EngineError

# no driver has scored anything by then
STARTING_SECONDS = 3.0
# the title of the processes of workers; others of Ray begin with ray:: too
ACTOR = b"ray::Actor"


@dataclass
class Driver:
    """One driver of the audit, until it was killed or done.

    Attributes:
        first: rows that were published when it began.
        samples: pairs of rows published and MiB of its memory.
        workers_killed: how many of its workers were killed.
        killed: whether it was killed itself.
    """

    first: int
    samples: list[tuple[int, float]] = field(default_factory=list)
    workers_killed: int = 0
    killed: bool = False

    def row(self) -> dict[str, Any]:
        """Return its line of the table: memory when a tenth of its rows was there, at its last shard, and the slope."""
        done, memory = np.array(self.samples, float).T
        last = int(done.max())
        steady = (done > self.first + (last - self.first) / 10) & (done < last)
        begin, end = (memory[steady][0], memory[steady][-1]) if steady.any() else (memory.max(),) * 2
        slope, error = memory_slope(done[steady], memory[steady])
        return {
            "rows from": self.first,
            "to": last,
            "workers killed": self.workers_killed,
            "end": "killed" if self.killed else "every row is there",
            "driver, MiB": f"{begin:,.0f} to {end:,.0f}",
            "grows, MiB a million rows": None if slope is None else f"{slope:+.1f} ± {error:.1f}",
        }


def soak_with_kills(folder: Path, rows: int, every: int, *, scores_only: bool = False) -> Outcome:
    """Audit very many rows; every so many rows a worker is killed, and half as many rows later the driver.

    Args:
        folder: where data and audit are written.
        rows: number of rows.
        every: number of rows from one kill of a driver to the next.
        scores_only: end the last driver when every row is scored: what follows is measured by `analysis`.
    """
    workers, output, log = os.cpu_count() or 1, folder / "killed-audit", folder / "killed-audit.jsonl"
    shutil.rmtree(output, ignore_errors=True)
    command = audit_command(make_data(folder / f"data-{rows}", rows), output, log, workers)
    began, drivers = time.monotonic(), list[Driver]()
    while not (output / "_SUCCESS").exists() and not (scores_only and _rows_there(output) >= rows):
        drivers.append(_run_driver(command, output, rows, every, scores_only))
        say(f"{drivers[-1].row()}")
    seconds = time.monotonic() - began
    lost, doubled = count_rows(output, rows)
    kills = sum(driver.killed for driver in drivers), sum(driver.workers_killed for driver in drivers)
    said = (
        f"{rows:,} rows in {seconds:.0f} s, with {kills[0]} kills of the driver and {kills[1]} of a worker: {lost:,} "
        f"rows were lost, {doubled:,} doubled."
    )
    sizes = {"rows": rows, "rows between kills of a driver": every, "workers": workers}
    return Outcome([said], {"table": [driver.row() for driver in drivers]}, {**sizes, **SETTINGS})


def count_rows(output: Path, rows: int) -> tuple[int, int]:
    """Return how many rows of an output are missing, and how many are there beyond the first of their number."""
    numbers = [pq.read_table(path, columns=["row"])["row"].to_numpy() for path in output.glob("scores/*.parquet")]
    times = np.bincount(np.concatenate(numbers), minlength=rows)
    return int((times[:rows] == 0).sum()), int(np.maximum(times - 1, 0).sum() + times[rows:].sum())


def _run_driver(command: list[str], output: Path, rows: int, every: int, scores_only: bool) -> Driver:
    """Run a driver until it is done, or is killed when its rows are there; kill one of its workers half-way.

    Raises:
        EngineError: the driver failed.
    """
    driver = Driver(_rows_there(output))
    with subprocess.Popen(command, env=in_repository(), start_new_session=True) as process:
        began = time.monotonic()
        while process.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            done = _rows_there(output)
            if time.monotonic() - began < STARTING_SECONDS:
                driver.first = done  # workers of the driver before may publish one more shard
            if memory := resident_mib(command_of(process.pid)):
                driver.samples.append((done, memory))
            if done >= driver.first + every / 2 and not driver.workers_killed:
                driver.workers_killed = _kill_worker(process.pid)
            if done >= rows and scores_only:
                os.killpg(process.pid, signal.SIGKILL)
                break
            if done >= driver.first + every and done < rows:
                driver.killed = True
                os.killpg(process.pid, signal.SIGKILL)
                break
    if process.returncode and not driver.killed and not (scores_only and _rows_there(output) >= rows):
        raise EngineError(f"{' '.join(command)} ended with {process.returncode}: its own message says why")
    return driver


def _rows_there(output: Path) -> int:
    return SHARD_ROWS * len(list(output.glob("scores/part-*.parquet")))


def _kill_worker(driver: int) -> int:
    """Kill a worker of a driver. Returns how many were killed: 0 if none was there."""
    for process in cpu_of_tree(driver):
        try:
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(ACTOR):
                os.kill(process, signal.SIGKILL)
                return 1
        except OSError:
            continue
    return 0
