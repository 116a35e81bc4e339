"""The engine under load: many rows, next to no network, and what it costs beside a plain loop.

The driver's memory is watched while shards are scored: it must not grow with them. The CPU time of everything that an
audit starts is compared with that of plain loops over the same rows, one a CPU, which read, decode, measure and keep
nothing. Analysis and report, which hold the tables in memory, are timed and measured apart.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy import stats

from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.config import AuditConfig
from volgrowth.errors import EngineError
from volgrowth.numerics import GaussianDenoiser
from volgrowth.sources import open_source

MODEL = "factory:jobs.benchmark.cost.soak:denoiser"
FILE_ROWS = 50_000
LOOP_ROWS = 20_000
SHARD_ROWS = 2_000
BATCH = 256
SAMPLE_SECONDS = 0.25


@dataclass(frozen=True)
class Soak:
    """What was measured.

    Attributes:
        driver_mib: of the driver's memory when the first tenth of the shards was scored, and at the last one.
        slope: MiB for a million rows, least squares over the samples between, and the half width of its 95% interval.
        analysis_mib: most memory of the driver afterwards.
        overhead: CPU time of the audit's scoring over that of the loop, less 1.
    """

    rows: int
    seconds: float
    images_per_second: float
    driver_mib: tuple[float, float]
    slope: float
    slope_error: float
    analysis_mib: float
    engine_cpu: float
    loop_cpu: float
    overhead: float


class Picture(GaussianDenoiser):
    """Of 8x8 images with independent pixels."""

    image_shape = (1, 8, 8)


def denoiser(device: torch.device, dtype: torch.dtype) -> GaussianDenoiser:
    """The soak's model."""
    return Picture(torch.zeros((), device=device, dtype=dtype), torch.full((), 0.3, device=device, dtype=dtype))


def run_soak(folder: Path, rows: int) -> Soak:
    """Make the data, audit it, and do a part of it in a loop."""
    data = folder / f"data-{rows}"
    make_data(data, rows)
    log, output = folder / "soak.jsonl", folder / f"audit-{time.time():.0f}"
    began = time.monotonic()
    samples = watch(audit_command(data, output, log), log)
    seconds = time.monotonic() - began
    done, memory, cpu = (np.array(column, float) for column in zip(*samples, strict=True))
    while_scoring = done < rows
    steady = while_scoring & (done > rows / 10)
    fit = stats.linregress(done[steady] / 1e6, memory[steady])
    loop, audited = (
        loops_cpu(data, min(LOOP_ROWS, rows), os.cpu_count() or 1),
        json.loads((output / "summary.json").read_text()),
    )
    engine = cpu[while_scoring].max() / rows
    return Soak(
        rows=rows,
        seconds=seconds,
        images_per_second=audited["run"]["images_per_second"],
        driver_mib=(memory[steady][0], memory[steady][-1]),
        slope=fit.slope,
        slope_error=1.96 * fit.stderr,
        analysis_mib=memory[~while_scoring].max(),
        engine_cpu=engine,
        loop_cpu=loop,
        overhead=engine / loop - 1,
    )


def make_data(folder: Path, rows: int) -> None:
    """Images of noise as PNG, in Parquet files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        path = folder / f"{number:05d}.parquet"
        if not path.exists():
            pixels = np.random.default_rng(number).integers(0, 256, (min(FILE_ROWS, rows - start), 8, 8), np.uint8)
            images = [{"bytes": _png(image), "path": None} for image in pixels]
            pq.write_table(pa.table({"image": images}), path.with_suffix(".part"), row_group_size=SHARD_ROWS)
            path.with_suffix(".part").rename(path)


def loops_cpu(data: Path, rows: int, count: int) -> float:
    """CPU seconds a row of so many plain loops at the same time, as the audit's workers are: threads share cores."""
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        return float(np.mean(list(pool.map(loop_cpu, [data] * count, [rows] * count))))


def loop_cpu(data: Path, rows: int) -> float:
    """CPU seconds a row of a loop in this process, without what its start costs."""
    torch.set_num_threads(1)
    config = AuditConfig.build(model=MODEL, data=str(data), output="unused", batch_size=BATCH)
    scorer, source = Scorer(denoiser(torch.device("cpu"), torch.float32), config), open_source(str(data))
    scorer.score(source.read(0, BATCH))
    began = time.process_time()
    for start in range(0, rows, SHARD_ROWS):
        scorer.score(source.read(start, min(start + SHARD_ROWS, rows)))
    return (time.process_time() - began) / rows


def markdown(soak: Soak, device: str) -> str:
    """The numbers as a page."""
    first, last = soak.driver_mib
    rows = [
        ("Rows", f"{soak.rows:,}"),
        ("Took", f"{soak.seconds:,.0f} s, {soak.images_per_second:,.0f} images a second while scoring"),
        ("Driver's memory", f"{first:,.0f} MiB after a tenth of the rows, {last:,.0f} MiB at the last shard"),
        ("Slope", f"{soak.slope:+.1f} ± {soak.slope_error:.1f} MiB for a million rows"),
        ("Analysis and report", f"at most {soak.analysis_mib:,.0f} MiB"),
        ("CPU time a row", f"{1e3 * soak.engine_cpu:.3f} ms, in a plain loop {1e3 * soak.loop_cpu:.3f} ms"),
        ("Overhead", f"{soak.overhead:+.0%}"),
    ]
    return "\n".join([f"Measured on {device}.", "", "| | |", "|-|-|", *(f"| {a} | {b} |" for a, b in rows), ""])


def write(folder: Path, soak: Soak, device: str) -> None:
    """`soak.json` and `soak.md`."""
    (folder / "soak.json").write_text(json.dumps(asdict(soak), indent=2) + "\n")
    (folder / "soak.md").write_text(markdown(soak, device))


def audit_command(data: Path, output: Path, log: Path, workers: int | None = None) -> list[str]:
    """The soak's audit as a command line."""
    log.unlink(missing_ok=True)
    settings = ["--shard-size", str(SHARD_ROWS), "--set", f"batch_size={BATCH}", "--log-json", str(log)]
    settings += ["--workers", str(workers)] if workers else []
    program = str(Path(sys.executable).parent / "volgrowth")
    return [program, "audit", MODEL, str(data), "--output", str(output), *settings]


def watch(command: list[str], log: Path) -> list[tuple[int, float, float]]:
    """Run a command; often: rows scored, MiB of its process, and CPU seconds of all that it started."""
    samples: list[tuple[int, float, float]] = []
    spent: dict[int, float] = {}
    done = position = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            if log.exists():
                text = log.read_bytes()[position:]
                whole = text[: text.rfind(b"\n") + 1]
                position += len(whole)
                events = map(json.loads, whole.splitlines())
                done += sum(event["images"] for event in events if event["event"] == "shard")
            spent |= _cpu_of_tree(process.pid)
            memory = _resident(process.pid)
            if memory:
                samples.append((done, memory, sum(spent.values())))
    if process.returncode:
        raise EngineError(f"{' '.join(command)} ended with {process.returncode}: its own message says why")
    return samples


def _resident(pid: int) -> float:
    """MiB of a process in memory, 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def _cpu_of_tree(root: int) -> dict[int, float]:
    """CPU seconds so far of a process and all below it, by process id."""
    seconds, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    below = {root}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid: seconds[pid] for pid in below if pid in seconds}


def _png(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
