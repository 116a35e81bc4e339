"""How many rows a second processes decode beside the launching one, and what that costs the launches."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from jobs.benchmark.device.rig import CIFAR, Result, Rig, launch
from volgrowth.audit.scoring.decoders import Decoders
from volgrowth.audit.scoring.prefetch import AT_ONCE
from volgrowth.sources import PNG_METHOD, Row

KINDS = ((32, "PNG"), (512, "JPEG"))
PROCESSES = (0, 1, 4, 16)
STARTED_SECONDS = 60.0


def check_decoding(rig: Rig) -> Iterator[Result]:
    """Decode images, features included, in processes beside this one, while it launches micro-batches."""
    denoiser, images = rig.denoiser(CIFAR, torch.bfloat16), rig.images(CIFAR, 2)
    measure = rig.presets["paper, jvp"]
    for size, kind in KINDS:
        data = picture(size, kind)
        for processes in PROCESSES[: 2 if rig.quick else None]:
            if rig.late(5):
                return
            with decoding(data, size, processes) as done:
                began, before = time.perf_counter(), sum(done)
                _, returned = rig.milliseconds(lambda: launch(denoiser, images, measure), 5)
                beside = (sum(done) - before) / (time.perf_counter() - began)
                began, before = time.perf_counter(), sum(done)
                time.sleep(0.05 if rig.quick else 1.0)
                alone = (sum(done) - before) / (time.perf_counter() - began)
            names = {"kind": f"{kind} {size}", "processes": processes}
            yield {**names, "rows/s": alone, "rows/s beside launches": beside, "launch ms": returned}


@contextmanager
def decoding(data: bytes, size: int, processes: int) -> Iterator[list[int]]:
    """Have processes decode an image again and again; the list counts how many rows each thread got back."""
    stop, done, decoders = threading.Event(), [0] * max(processes, 1), Decoders(processes)
    rows = [Row(number, "", "", data) for number in range(AT_ONCE)]

    def ask(number: int) -> None:
        while not stop.is_set():
            decoders.describe(rows, {}, {}, (3, size, size), 10**8, PNG_METHOD)
            done[number] += len(rows)

    crew = [threading.Thread(target=ask, args=(number,)) for number in range(processes)]
    for thread in crew:
        thread.start()
    limit = time.monotonic() + STARTED_SECONDS
    while processes and not all(done) and time.monotonic() < limit:  # processes start once for an audit
        time.sleep(0.01)
    try:
        yield done
    finally:
        stop.set()
        for thread in crew:
            thread.join()


def picture(size: int, kind: str, seed: int = 0) -> bytes:
    """Return a smooth random image with a little noise, as a file."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    noisy = np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(noisy).save(stream, kind)
    return stream.getvalue()
