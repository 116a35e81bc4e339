"""The check of a GPU: its steps in the order of what is least known, each safe from the failure of the others."""

import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from jobs.benchmark.cost.roofline import measure_limits
from jobs.benchmark.device.audits import check_audits
from jobs.benchmark.device.captioned import check_captioned
from jobs.benchmark.device.correctness import check_full_device, check_growth
from jobs.benchmark.device.decoding import check_decoding
from jobs.benchmark.device.launches import (
    check_captured,
    check_compiled,
    check_one_tangent,
    check_speed,
    check_waits,
)
from jobs.benchmark.device.rig import CIFAR, DIT, SECONDS, STABLE_DIFFUSION, Result, Rig, tf32
from volgrowth.errors import EngineError, UsageError, kind_and_line

RESULTS = "gpu.jsonl"
Step = Callable[[Rig], Iterator[Result]]


def measure_device(rig: Rig) -> Iterator[Result]:
    """Name the device, and measure its limits in bfloat16, float32 and TF32."""
    if not rig.quick:
        rig.limits = measure_limits(torch.bfloat16, rig.device)
    found: Result = {
        "device": torch.cuda.get_device_name(rig.device) if rig.gpu else "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "free and all memory": torch.cuda.mem_get_info(rig.device) if rig.gpu else None,
        "bfloat16, TFLOP/s": rig.limits.flops / 1e12,
        "copy, TB/s": rig.limits.bandwidth / 1e12,
    }
    for name, allowed in (("float32", False), ("TF32", True)) if rig.gpu else ():
        with tf32(allowed):
            found[f"{name}, TFLOP/s"] = measure_limits(torch.float32, rig.device).flops / 1e12
    yield found


STEPS: Mapping[str, Step] = {
    "device": measure_device,
    "growth": check_growth,
    "captured": check_captured,
    "waits": check_waits,
    "speed, CIFAR": lambda rig: check_speed(rig, CIFAR, 64, 512, dtypes=(torch.bfloat16, torch.float32)),
    "audits": check_audits,
    "captioned audit": check_captioned,
    "decoding": check_decoding,
    "full device": check_full_device,
    "speed, Stable Diffusion": lambda rig: check_speed(rig, STABLE_DIFFUSION, 8, 32),
    "forward mode": check_one_tangent,
    "speed, DiT": lambda rig: check_speed(rig, DIT, 256),
    "compiled": check_compiled,
}
BUDGETS: Mapping[str, float] = {
    "device": 10,
    "growth": 30,
    "captured": 35,
    "waits": 15,
    "speed, CIFAR": 35,
    "audits": 100,
    "captioned audit": 65,
    "decoding": 20,
    "full device": 20,
    "speed, Stable Diffusion": 30,
    "forward mode": 20,
    "speed, DiT": 10,
    "compiled": 30,
}
"""Seconds in which a step begins further parts, so that none takes the time of those behind it; `SECONDS` together."""


def check_device(output: Path, only: Sequence[str] | None = None, quick: bool = False) -> Path:
    """Run the steps, and write one JSON line for each result to the terminal and to a file.

    Args:
        output: folder for the file.
        only: names of steps; all by default.
        quick: the smallest network and few images, on a GPU or without one.

    Returns:
        The file.

    Raises:
        UsageError: there is no GPU and the check is not a quick one, or a step has another name.
        EngineError: steps failed; what they and the others found is written.
    """
    unknown = sorted(set(only or ()) - set(STEPS))
    if unknown:
        raise UsageError(f"--only {unknown[0]!r}: expected some of {', '.join(STEPS)}")
    gpu = torch.cuda.is_available()
    if not gpu and not quick:
        raise UsageError("there is no GPU here that torch can use: give --quick, which runs every step in small")
    output.mkdir(parents=True, exist_ok=True)
    path = output / RESULTS
    with path.open("w") as file, tempfile.TemporaryDirectory(prefix="volgrowth-gpu-") as folder:
        rig = Rig(torch.device("cuda" if gpu else "cpu"), Path(folder), quick)
        chosen = {name: step for name, step in STEPS.items() if not only or name in only}
        failed = run_steps(rig, chosen, file)
    if failed:
        raise EngineError(f"{len(failed)} steps of the check failed ({', '.join(failed)}): {path} says why")
    return path


def run_steps(rig: Rig, steps: Mapping[str, Step], file: TextIO) -> list[str]:
    """Run steps one after the other, and return the names of those that failed. None is begun when it is late."""
    failed = list[str]()

    def write(step: str, **found: Any) -> None:
        line = json.dumps({"step": step, "at, s": round(rig.age, 1), **found}, default=str)
        print(line, flush=True)
        print(line, file=file, flush=True)

    for name, step in steps.items():
        rig.ends = SECONDS
        if rig.late():
            write(name, skipped="no time left")
            continue
        rig.ends = rig.age + BUDGETS.get(name, SECONDS)
        try:
            for found in step(rig):
                write(name, **{key: _rounded(value) for key, value in found.items()})
        except Exception as error:  # whatever a device, a driver or a library raises
            failed.append(name)
            frames = traceback.extract_tb(error.__traceback__)[-4:]
            at = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
            write(name, error=kind_and_line(error), at=at)
        rig.free()
    write("end", failed=failed)
    return failed


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
