"""Audits of very many small images with a model that costs next to nothing, so that what is measured is the engine.

What remains is reading, decoding, complexity, publishing and the driver. The driver's memory is watched while shards
are scored: it must not grow with them. The CPU time of all that an audit starts is compared with that of plain loops
over the same rows, one per worker, which read, decode, measure and keep nothing. Analysis and report, which hold the
tables in memory, are measured apart.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy import stats

from jobs.benchmark.processes import command_of, cpu_of_tree, in_repository, resident_mib
from jobs.experiments import Outcome, say
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.config import AuditConfig
from volgrowth.errors import EngineError
from volgrowth.numerics import GaussianDenoiser
from volgrowth.sources import open_source

MODEL = "factory:jobs.benchmark.cost.engine_load:costless_denoiser"
FILE_ROWS = 50_000
LOOP_ROWS = 20_000
SHARD_ROWS = 2_000
BATCH = 256
SAMPLE_SECONDS = 0.25
SETTINGS = {"shard size": SHARD_ROWS, "batch size": BATCH}
SIZES = (1_000, 10_000, 100_000, 1_000_000)
# the audit whose hours are shown, for these numbers of GPUs, each with so many CPU cores
MANY, GPUS, CORES = 100_000_000, (1, 8, 64), 16


class CostlessDenoiser(GaussianDenoiser):
    """The denoiser of 8 x 8 images with independent pixels."""

    image_shape = (1, 8, 8)


def costless_denoiser(device: torch.device, dtype: torch.dtype) -> GaussianDenoiser:
    """Return the model that the audits load."""
    return CostlessDenoiser(
        torch.zeros((), device=device, dtype=dtype), torch.full((), 0.3, device=device, dtype=dtype)
    )


def soak(folder: Path, rows: int) -> Outcome:
    """Audit very many rows: the driver's memory, and CPU time beside that of plain loops."""
    workers = os.cpu_count() or 1
    audited = measure_audit(folder, rows, workers)
    engine, loop = audited["CPU, s"] / rows, loops_cpu(folder / f"data-{rows}", min(LOOP_ROWS, rows), workers)
    said = (
        f"The audit takes {1e3 * engine:.3f} ms of CPU time a row, as many plain loops {1e3 * loop:.3f} ms: an "
        f"overhead of {engine / loop - 1:+.0%}."
    )
    return Outcome([said], {"table": [audited]}, SETTINGS)


def scale(folder: Path, sizes: Sequence[int], workers: Sequence[int]) -> Outcome:
    """Audit every size by each number of workers, with a cost model if there are two sizes or more.

    Plain loops run before and after the largest audit, since machines that are shared change their speed.
    """
    audits: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    for rows in sorted(sizes):
        for count in workers:
            say(f"auditing {rows:,} rows by {count} workers")
            ends = rows == max(sizes) > min(sizes)
            data = make_data(folder / f"data-{rows}", rows)
            before = loops_cpu(data, min(LOOP_ROWS, rows), count) if ends else 0.0
            audits.append(measure_audit(folder, rows, count))
            if ends:
                loop = (before + loops_cpu(data, min(LOOP_ROWS, rows), count)) / 2
                few = next(row for row in audits if row["workers"] == count)
                models.append(cost_model(few, audits[-1], loop))
    said = [
        f"Workers: {model['workers']}. A command takes {model['start, s']:.0f} s without any row, and each row adds "
        f"{model['a row adds, ms']:.3f} ms."
        for model in models
    ]
    return Outcome(said, {"audits": audits, "model": models}, SETTINGS)


def cost_model(few: dict[str, Any], many: dict[str, Any], loop_cpu: float) -> dict[str, Any]:
    """Return the line through a small audit and a large one by as many workers, beside plain loops' CPU seconds a row.

    "start" is the time of a command without any row. The hours are those of `MANY` rows by the CPU time that each row
    adds, with `CORES` such cores for each GPU, and without the network's own time.
    """
    added = many["rows"] - few["rows"]
    row_seconds = (many["command, s"] - few["command, s"]) / added
    row_cpu = (many["CPU, s"] - few["CPU, s"]) / added
    return {
        "workers": many["workers"],
        "start, s": few["command, s"] - few["rows"] * row_seconds,
        "a row adds, ms": 1e3 * row_seconds,
        "CPU a row, ms": 1e3 * row_cpu,
        "plain loop, ms": 1e3 * loop_cpu,
        "overhead, %": 100 * (row_cpu / loop_cpu - 1),
        **{f"{n} GPU{'s' * (n > 1)}, h": MANY * row_cpu / CORES / n / 3600 for n in GPUS},
    }


def measure_audit(folder: Path, rows: int, workers: int) -> dict[str, Any]:
    """Audit so many rows by a command of its own, and repeat the command, which then has nothing left to do.

    Returns:
        A row of the page. "driver" is the driver's memory when a tenth of the rows was scored, and at the last shard;
        "grows" is that memory's slope over the samples between, with the half width of its 95% interval; "analysis"
        is the most memory afterwards; "CPU" counts everything that the audit started, up to the last row.
    """
    output, log = folder / "audit", folder / "audit.jsonl"
    shutil.rmtree(output, ignore_errors=True)
    command = audit_command(make_data(folder / f"data-{rows}", rows), output, log, workers)
    began = time.monotonic()
    done, memory, cpu = np.array(watch_audit(command, log), float).T
    seconds, again = time.monotonic() - began, time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=in_repository())
    again = time.monotonic() - again
    scoring = done < rows
    steady = scoring & (done > rows / 10)
    slope, error = memory_slope(done[steady], memory[steady])
    # an audit of one or two shards has no sample between its tenth and its last row
    first, last = (memory[steady][0], memory[steady][-1]) if steady.any() else (memory[scoring].max(),) * 2
    return {
        "rows": rows,
        "workers": workers,
        "command, s": seconds,
        "images/s": json.loads((output / "summary.json").read_text())["run"]["images_per_second"],
        "driver, MiB": f"{first:,.0f} to {last:,.0f}",
        "grows, MiB a million rows": None if slope is None else f"{slope:+.1f} ± {error:.1f}",
        "analysis, MiB": memory[~scoring].max(initial=0.0),
        "CPU, s": cpu[scoring].max(),
        "asked for again, s": again,
    }


def memory_slope(done: np.ndarray, memory: np.ndarray) -> tuple[float | None, float | None]:
    """Fit memory (n,) in MiB to rows done (n,): MiB for a million rows, and the half width of its 95% interval.

    Both are None if there are fewer than three samples, or no two numbers of rows among them.
    """
    if len(done) < 3 or np.ptp(done) == 0:
        return None, None
    fit = stats.linregress(done / 1e6, memory)
    return float(fit.slope), float(1.96 * fit.stderr)


def make_data(folder: Path, rows: int) -> Path:
    """Write so many images of noise as PNG in Parquet files, if they are not there yet. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        path = folder / f"{number:05d}.parquet"
        if not path.exists():
            pixels = np.random.default_rng(number).integers(0, 256, (min(FILE_ROWS, rows - start), 8, 8), np.uint8)
            images = [{"bytes": _png(image), "path": None} for image in pixels]
            pq.write_table(pa.table({"image": images}), path.with_suffix(".part"), row_group_size=SHARD_ROWS)
            path.with_suffix(".part").rename(path)
    return folder


def loops_cpu(data: Path, rows: int, count: int) -> float:
    """Return the CPU seconds a row of so many plain loops at the same time, as workers are: threads share cores."""
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        return float(np.mean(list(pool.map(loop_cpu, [data] * count, [rows] * count))))


def loop_cpu(data: Path, rows: int) -> float:
    """Return the CPU seconds a row of a plain loop in this process, without the cost of its start."""
    torch.set_num_threads(1)
    config = AuditConfig.build(model=MODEL, data=str(data), output="unused", batch_size=BATCH)
    scorer, source = Scorer(costless_denoiser(torch.device("cpu"), torch.float32), config), open_source(str(data))
    scorer.score(source.read(0, min(BATCH, rows)))
    began = time.process_time()
    for start in range(0, rows, SHARD_ROWS):
        scorer.score(source.read(start, min(start + SHARD_ROWS, rows)))
    return (time.process_time() - began) / rows


def audit_command(data: Path, output: Path, log: Path, workers: int) -> list[str]:
    """Return the command line that audits `data`, and delete an old log."""
    log.unlink(missing_ok=True)
    program = str(Path(sys.executable).parent / "volgrowth")
    # the costless denoiser means nothing
    settings = [
        "--shard-size",
        str(SHARD_ROWS),
        "--set",
        f"batch_size={BATCH}",
        "--log-json",
        str(log),
        "--trust-model",
    ]
    return [program, "audit", MODEL, str(data), "--output", str(output), *settings, "--workers", str(workers)]


def watch_audit(command: list[str], log: Path) -> list[tuple[int, float, float]]:
    """Run an audit; every `SAMPLE_SECONDS`: rows scored, MiB of the driver, CPU seconds of all that it started.

    Raises:
        EngineError: the command failed.
    """
    samples: list[tuple[int, float, float]] = []
    spent: dict[int, float] = {}
    done = position = 0
    with subprocess.Popen(command, env=in_repository()) as process:
        while process.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            if log.exists():
                text = log.read_bytes()[position:]
                whole = text[: text.rfind(b"\n") + 1]
                position += len(whole)
                events = map(json.loads, whole.splitlines())
                done += sum(event["images"] for event in events if event["event"] == "shard")
            spent |= cpu_of_tree(process.pid)
            if memory := resident_mib(command_of(process.pid)):
                samples.append((done, memory, sum(spent.values())))
    if process.returncode:
        raise EngineError(f"{' '.join(command)} ended with {process.returncode}: its own message says why")
    return samples


def _png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
