"""Whole audits by several actors a GPU, from PNG files, and the share of the time in which the GPU was busy."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.benchmark.device.rig import CIFAR, Result, Rig
from jobs.benchmark.processes import ROOT, in_repository
from volgrowth.sources import encode_png

ROWS = 50_000
# what an audit of `ROWS` may take at most, and what is left of the check when none is begun any more
SECONDS, NEEDED = 90.0, 20.0
# seconds from SIGTERM to SIGKILL
GRACE = 20.0
# actors a GPU, preset with its settings, micro-batch
AUDITS = (
    (1, "paper", ("measure.derivative=jvp",), 512),
    (2, "paper", ("measure.derivative=jvp",), 512),
    (4, "paper", ("measure.derivative=jvp",), 512),
    (4, "screen", (), 512),
    (4, "standard", (), 512),
)


def check_audits(rig: Rig) -> Iterator[Result]:
    """Audit PNG files by the command line with 1, 2 and 4 actors a GPU; without a GPU by one worker and no Ray."""
    rows = 48 if rig.quick else ROWS
    _write_model(rig)
    _write_images(rig, rows)
    for actors, preset, more, batch in AUDITS[: 1 if rig.quick else None]:
        names: Result = {"actors a GPU": actors if rig.gpu else None, "preset": preset, "batch": batch, "rows": rows}
        if rig.late(NEEDED):
            yield {**names, "skipped": "no time left"}
            continue
        settings = (f"batch_size={8 if rig.quick else batch}", "channels_last=false", *more)
        shard = 32 if rig.quick else 4096
        yield {**names, **audit_files(rig, "model", "data.parquet", rows, preset, settings, actors, shard)}


def audit_files(
    rig: Rig, model: str, data: str, rows: int, preset: str, settings: tuple[str, ...], actors: int, shard: int
) -> Result:
    """Audit files of the rig's folder in bfloat16 by the command line, and return how long it took and what it says.

    Args:
        rig: the device.
        model: folder of the model in the rig's folder.
        data: Parquet file there.
        rows: how many rows it has.
        preset: the preset.
        settings: more settings, as `--set` takes them.
        actors: workers of the GPU.
        shard: rows in a shard.
    """
    output, log = (Path(tempfile.mkdtemp(dir=rig.folder)) / name for name in ("out", "log"))
    engine = ["--gpus-per-worker", str(1 / actors)] if rig.gpu else ["--engine", "local"]
    command = [
        *(sys.executable, str(ROOT / "jobs/audit.py"), str(rig.folder / model), str(rig.folder / data)),
        *("--output", str(output), "--preset", preset, "--trust-model", "--shard-size", str(shard)),
        *("--log-json", str(log), *engine, *(f"--set={each}" for each in ("dtype=bfloat16", *settings))),
    ]
    began = time.monotonic()
    with busy_share(rig.gpu) as busy:
        code, said = run_in_time(command, max(NEEDED, min(SECONDS, rig.left)))
    found: Result = {"exit code": code, "whole, s": time.monotonic() - began}
    if code:
        return {**found, "error": said[-600:]}
    return {**found, **_from_log(log, rows, busy), **_from_summary(output)}


def run_in_time(command: list[str], seconds: float = SECONDS) -> tuple[int, str]:
    """Run a command, and return its exit code and what it printed. If it takes longer, it and its processes end."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": in_repository()}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # an audit ends in good order
            try:
                said, _ = process.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
            said += f" (it was ended after {seconds:g} s)"
    return process.returncode, said


def _from_log(log: Path, rows: int, busy: list[tuple[float, int]]) -> Result:
    """Return images per second and how busy the GPU was, from the last ready worker to the last shard.

    `steady images/s` leaves out what an audit does once: it counts from the last of the first shards of each worker and
    of the check of the arithmetic, which a data set of 50,000 feels and one of a million does not.
    """
    events = [json.loads(line) for line in log.read_text().splitlines()]
    times: dict[str, list[float]] = {}
    for event in events:
        times.setdefault(event["event"], []).append(_seconds(event))
    first = max(times.get("worker_ready", times["started"]))
    last, workers = max(times["shard"]), len(times.get("worker_ready", ["here"]))
    steady = max([*sorted(times["shard"])[:workers], *times.get("self_check", [])])
    later = sum(event["images"] for event in events if event["event"] == "shard" and _seconds(event) > steady)
    inside = [share for at, share in busy if steady < at < last]
    totals = next(event for event in events if event["event"] == "ended")
    waits = {name: totals[name] for name in ("decode_wait", "device_wait", "seconds", "startup_seconds")}
    return {
        "scoring, s": last - first,
        "images/s": rows / max(last - first, 1e-9),
        "steady images/s": later / (last - steady) if later else None,
        "busy, %": float(np.mean(inside)) if inside else None,
        **waits,
    }


def _seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _from_summary(output: Path) -> Result:
    summary = json.loads((output / "summary.json").read_text())
    counts, run = summary["counts"], summary["run"]
    return {"scored": counts["ok"], "arithmetic": run["arithmetic"], "noise floor": run["noise_floor"]}


def _write_model(rig: Rig) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    torch.manual_seed(0)
    DDPMPipeline(rig.network(CIFAR).build(), DDPMScheduler()).save_pretrained(rig.folder / "model")


def _write_images(rig: Rig, rows: int) -> None:
    channels, height, width = rig.network(CIFAR).shape
    coarse = np.random.default_rng(0).integers(0, 256, (rows, channels, height // 4, width // 4), np.uint8)
    images = coarse.repeat(4, 2).repeat(4, 3)
    table = pa.table({"image": [{"bytes": encode_png(image), "path": None} for image in images]})
    pq.write_table(table, rig.folder / "data.parquet", row_group_size=2048)


@contextmanager
def busy_share(gpu: bool) -> Iterator[list[tuple[float, int]]]:
    """Ask nvidia-smi five times a second how busy the GPU is: pairs of time and percent; none without a GPU."""
    found: list[tuple[float, int]] = []
    if not gpu:
        yield found
        return
    asked = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as watch:

        def read(lines: Any) -> None:
            found.extend((time.time(), int(line)) for line in lines if line.strip().isdigit())

        reader = threading.Thread(target=read, args=(watch.stdout,), daemon=True)
        reader.start()
        try:
            yield found
        finally:
            watch.terminate()
            reader.join()
