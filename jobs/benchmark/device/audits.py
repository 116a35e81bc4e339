"""Whole audits by several actors a GPU, from PNG files, and the share of the time in which the GPU was busy."""

import json
import os
import signal
import subprocess
import sys
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
GRACE = 10.0
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
    for number, (actors, preset, more, batch) in enumerate(AUDITS[: 1 if rig.quick else None]):
        if rig.late(NEEDED):
            yield {"actors a GPU": actors, "preset": preset, "skipped": "no time left"}
            continue
        log = rig.folder / f"log-{number}"
        engine = ["--gpus-per-worker", str(1 / actors)] if rig.gpu else ["--engine", "local"]
        layout = "auto" if number == 0 else "true"  # measured by the first audit, whose `arithmetic` says what it found
        given = ("dtype=bfloat16", f"batch_size={8 if rig.quick else batch}", f"channels_last={layout}", *more)
        settings = [f"--set={each}" for each in given]
        command = [
            *(sys.executable, str(ROOT / "jobs/audit.py"), str(rig.folder / "model"), str(rig.folder / "data.parquet")),
            *("--output", str(rig.folder / f"out-{number}"), "--preset", preset, "--trust-model"),
            *("--shard-size", "32" if rig.quick else "4096", "--log-json", str(log), *engine, *settings),
        ]
        began = time.monotonic()
        with busy_share(rig.gpu) as busy:
            code, said = run_in_time(command, max(NEEDED, min(SECONDS, rig.left)))
        names: Result = {"actors a GPU": actors if rig.gpu else None, "preset": preset, "batch": batch, "rows": rows}
        names |= {"exit code": code, "whole, s": time.monotonic() - began}
        if code:
            yield {**names, "error": said[-300:]}
        else:
            yield {**names, **_from_log(log, rows, busy), **_from_summary(rig.folder / f"out-{number}")}


def run_in_time(command: list[str], seconds: float = SECONDS) -> tuple[int, str]:
    """Run a command, and return its exit code and what it printed. If it takes longer, it and its processes end."""
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": in_repository()}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # an audit ends in good order
            try:
                said, _ = process.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, _ = process.communicate()
            said += f" (it was ended after {seconds:g} s)"
    return process.returncode, said


def _from_log(log: Path, rows: int, busy: list[tuple[float, int]]) -> Result:
    """Return images per second from the first ready worker to the last shard, and how busy the GPU was meanwhile."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    times: dict[str, list[float]] = {}
    for event in events:
        times.setdefault(event["event"], []).append(datetime.fromisoformat(event["time"]).timestamp())
    first = max(times.get("worker_ready", times["started"]))
    last = max(times["shard"])
    inside = [share for at, share in busy if first < at < last]
    totals = next(event for event in events if event["event"] == "ended")
    waits = {name: totals[name] for name in ("decode_wait", "device_wait", "seconds", "startup_seconds")}
    return {
        "scoring, s": last - first,
        "images/s": rows / max(last - first, 1e-9),
        "busy, %": float(np.mean(inside)) if inside else None,
        **waits,
    }


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
