"""What a launch costs the host and the device: waits, images a second, ways of forward mode, captured and compiled."""

import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from jobs.benchmark.cost.networks import TimedNetwork
from jobs.benchmark.cost.roofline import forward_cost
from jobs.benchmark.device.rig import (
    CIFAR,
    DIT,
    PRESETS,
    STABLE_DIFFUSION,
    Result,
    Rig,
    launch,
    low_allowed,
    short,
)
from volgrowth.audit.scoring.captured import AXES, PIXELS, CudaGraph, Inputs, Launcher
from volgrowth.audit.scoring.measures import Flow, Launched, launch_images, published_axes
from volgrowth.audit.workers.layout import put_channels
from volgrowth.config import PaperMeasure
from volgrowth.models import NetworkDenoiser
from volgrowth.numerics.memory import out_of_memory
from volgrowth.numerics.tangents import noise_stack, tangents_one_by_one

LOW = torch.bfloat16
LEVEL = 0.2


def check_waits(rig: Rig) -> Iterator[Result]:
    """Say whether a launch makes the host wait, and whether the results of one micro-batch wait for the next."""
    denoiser = rig.denoiser(CIFAR, LOW)
    for batch in rig.batches(64, 512):
        images = rig.images(CIFAR, batch)
        for preset, measure in rig.presets.items():
            if not low_allowed(measure) or rig.late():
                continue

            def work(images: Tensor = images, measure: Any = measure) -> Any:
                return launch(denoiser, images, measure)

            took, returned = rig.milliseconds(work, 2)
            yield {
                "preset": preset,
                "batch": batch,
                "host waits at": host_waits(rig, work),
                "device ms": took,
                "launch ms": returned,
                "floor ms": 1e3 * measure.evaluations * batch * forward_cost(denoiser, images[:2], rig.limits).seconds,
                "first of two fetched after, batches": _fetched_after(rig, work, took),
            }


def host_waits(rig: Rig, work: Callable[[], object]) -> list[str] | None:
    """Return where the host waits for the device within a work, as lines of a traceback; None if nowhere."""
    if not rig.gpu:
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def _fetched_after(rig: Rig, work: Callable[[], Any], took: float) -> float:
    """Return when the results of the first of two works are there, in units of the time that one takes.

    One where the host keeps up and the copy does not queue behind the second work, two where it does.
    """
    rig.wait()
    began = time.perf_counter()
    first, second = work(), work()
    first.fetch()
    ended = time.perf_counter()
    second.fetch()
    return 1e3 * (ended - began) / took


def check_speed(
    rig: Rig, network: TimedNetwork, *batches: int, dtypes: tuple[torch.dtype, ...] = (LOW,)
) -> Iterator[Result]:
    """Time the presets on a network, with channels first and last, beside the peak of a product in bfloat16."""
    name = rig.network(network).name
    for dtype in dtypes:
        denoiser = rig.denoiser(network, dtype)
        cost = forward_cost(denoiser, rig.images(network, 2), rig.limits)
        cases = product((False, True) if network is not DIT else (False,), rig.batches(*batches), rig.presets.items())
        for last, batch, (preset, measure) in cases:
            if preset == "volume" or (dtype is LOW and not low_allowed(measure)) or rig.late():
                continue
            put_channels(denoiser, last)
            found = _timed(rig, denoiser, rig.images(network, batch), measure)
            share = found.get("images/s", 0.0) * measure.evaluations * cost.flops / rig.limits.flops
            names = {"network": name, "dtype": short(dtype), "channels last": last, "preset": preset, "batch": batch}
            yield {**names, **found, "share of bfloat16 peak": share}


def _timed(rig: Rig, denoiser: NetworkDenoiser, images: Tensor, measure: Any) -> Result:
    """Return images per second of a launch, its times and its memory; or that it does not fit."""
    if rig.gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        took, returned = rig.milliseconds(lambda: launch(denoiser, images, measure), 2)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return {"out of memory": True}
    memory = torch.cuda.max_memory_allocated() / 2**30 if rig.gpu else None
    return {"images/s": 1e3 * len(images) / took, "device ms": took, "launch ms": returned, "memory, GiB": memory}


def check_one_tangent(rig: Rig) -> Iterator[Result]:
    """Time one point with one tangent: stacked, by torch.func.jvp, and by a difference."""
    for network, batches in ((CIFAR, (64, 512)), (STABLE_DIFFUSION, (8,))):
        for dtype in (LOW, torch.float32):
            if rig.late(8) or (network is STABLE_DIFFUSION and (dtype is not LOW or rig.quick)):
                continue
            denoiser = rig.denoiser(network, dtype)
            for batch in rig.batches(*batches):
                points = rig.images(network, batch)
                stack = torch.stack([points, torch.randn_like(points)], 1)
                names = {"network": rig.network(network).name, "dtype": short(dtype), "batch": batch}
                yield {**names, **_ways(rig, denoiser, stack)}


@torch.no_grad()
def _ways(rig: Rig, denoiser: NetworkDenoiser, stack: Tensor) -> Result:
    level = torch.tensor(LEVEL, dtype=torch.float64)
    works: dict[str, Callable[[], Tensor]] = {
        "stacked": lambda: noise_stack(denoiser, stack, LEVEL, "jvp", 0.05),
        "torch.func.jvp": lambda: tangents_one_by_one(denoiser, stack, level),
        "difference": lambda: noise_stack(denoiser, stack, LEVEL, "difference", 0.05),
    }
    found: Result = {}
    for name, work in works.items():
        if rig.gpu:
            torch.cuda.reset_peak_memory_stats()
        found[f"{name}, ms"] = rig.milliseconds(work)[0]
        if rig.gpu:
            found[f"{name}, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    difference = (works["stacked"]() - works["torch.func.jvp"]()).abs().max().item()
    return {**found, "stacked against jvp, worst": difference}


def check_captured(rig: Rig) -> Iterator[Result]:
    """Time whole launches as they are, and as a CUDA graph."""
    if not rig.gpu:
        yield {"skipped": "CUDA graphs need a GPU"}
        return
    for network, batch in ((CIFAR, 64), (CIFAR, 512), (STABLE_DIFFUSION, 8)):
        names = {"network": network.name, "batch": batch}
        if rig.late(5):
            yield {**names, "skipped": "no time left"}
            continue
        denoiser, images = rig.denoiser(network, LOW), rig.images(network, batch)
        yield from ({**names, **found} for found in _as_graph(rig, denoiser, images))


def check_compiled(rig: Rig) -> Iterator[Result]:
    """Time launches of the network as it is, and compiled."""
    if not rig.gpu:
        yield {"skipped": "compiling takes a CPU minutes"}
        return
    yield {"network": CIFAR.name, "batch": 64, **_compiled(rig, rig.denoiser(CIFAR, LOW), rig.images(CIFAR, 64))}


def _compiled(rig: Rig, denoiser: NetworkDenoiser, images: Tensor) -> Result:
    """Return the time of preset `screen` with the network as it is, and compiled."""
    measure, compiled = rig.presets["screen"], denoiser.compiled()
    plain, _ = rig.milliseconds(lambda: launch(denoiser, images, measure), 2)
    began = time.perf_counter()
    fast, _ = rig.milliseconds(lambda: launch(compiled, images, measure), 2)
    network: Any = compiled.network
    took = time.perf_counter() - began
    return {"preset": "screen", "ms": plain, "compiled, ms": fast, "whole, s": took, "problem": network.problem}


def _as_graph(rig: Rig, denoiser: NetworkDenoiser, images: Tensor) -> Iterator[Result]:
    """Yield the time of presets without backward passes launched operation by operation, and as one CUDA graph."""
    numbers, inputs = list(range(len(images))), {PIXELS: ((images + 1) * 127.5).round().to(torch.uint8)}
    for preset in ("screen", "standard", "paper, jvp"):
        measure = PRESETS[preset]
        if isinstance(measure, PaperMeasure):
            inputs[AXES] = published_axes(numbers, images.shape[1:], measure, 0).to(images)

        def work(flow: Flow, inputs: Inputs, measure: Any = measure) -> Launched:
            return launch_images(flow, inputs[PIXELS] / 127.5 - 1, numbers, measure, 0, axes=inputs.get(AXES))

        launcher, flow = Launcher(CudaGraph), Flow(denoiser)
        plain, returned = rig.milliseconds(partial(Launcher(None).sent, flow, inputs, work))
        began = time.perf_counter()
        launcher.sent(flow, inputs, work).fetch()
        recording = time.perf_counter() - began
        replayed, replay_returned = rig.milliseconds(partial(launcher.sent, flow, inputs, work))
        yield {
            **{"preset": preset, "ms": plain, "host, ms": returned, "recording, s": recording},
            **{"as a graph, ms": replayed, "as a graph, host, ms": replay_returned, "launched": launcher.said},
        }
