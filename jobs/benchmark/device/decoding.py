"""How many rows a second threads decode beside the launching thread, and what that costs the launches."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from jobs.benchmark.device.rig import CIFAR, Result, Rig, launch
from volgrowth.audit.scoring.prefetch import AT_ONCE
from volgrowth.sources import decode_image, features_of_each

KINDS = ((32, "PNG"), (512, "JPEG"))
THREADS = (0, 1, 4, 16)


def check_decoding(rig: Rig) -> Iterator[Result]:
    """Decode images, features included, by threads of this process while it launches micro-batches."""
    denoiser, images = rig.denoiser(CIFAR, torch.bfloat16), rig.images(CIFAR, 2)
    measure = rig.presets["paper, jvp"]
    for size, kind in KINDS:
        data = picture(size, kind)
        for threads in THREADS[: 2 if rig.quick else None]:
            if rig.late(5):
                return
            with decoding(data, size, threads) as done:
                began, before = time.perf_counter(), sum(done)
                _, returned = rig.milliseconds(lambda: launch(denoiser, images, measure), 5)
                beside = (sum(done) - before) / (time.perf_counter() - began)
                began, before = time.perf_counter(), sum(done)
                time.sleep(0.05 if rig.quick else 1.0)
                alone = (sum(done) - before) / (time.perf_counter() - began)
            names = {"kind": f"{kind} {size}", "threads": threads}
            yield {**names, "rows/s": alone, "rows/s beside launches": beside, "launch ms": returned}


@contextmanager
def decoding(data: bytes, size: int, threads: int) -> Iterator[list[int]]:
    """Have threads decode an image again and again; the list counts how often each has done so."""
    stop, done = threading.Event(), [0] * max(threads, 1)

    def work(number: int) -> None:
        while not stop.is_set():
            features_of_each([decode_image(data, (3, size, size), 10**8) for _ in range(AT_ONCE)])
            done[number] += AT_ONCE

    crew = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in crew:
        thread.start()
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
