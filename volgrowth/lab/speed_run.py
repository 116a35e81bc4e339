"""`jobs/benchmark.py speed`: everything that is measured, in one run."""

from pathlib import Path

import torch

from volgrowth.lab.speed import (
    CIFAR,
    PRECISIONS,
    SUBJECTS,
    decode_rates,
    denoiser_of,
    flops,
    images_of,
    matmul_peak,
    race,
    speeds,
)
from volgrowth.lab.speed_page import Results, device_name, write

# images, axes and steps of the race on a CPU and on a GPU, for small networks and for large ones
SMALL_RACE = ((128, 1, 4), (512, 1, 4))
LARGE_RACE = ((8, 1, 2), (256, 1, 4))


def run_speed(folder: Path, *, quick: bool = False) -> None:
    """Measure, and write `speed.json` and `speed.md`; on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    subjects = SUBJECTS[:1] if quick else SUBJECTS
    rounds = 1 if quick else 3
    racing = [
        race(subject, device, *(LARGE_RACE if subject == CIFAR else SMALL_RACE)[gpu], rounds=rounds)
        for subject in subjects
        if subject in SUBJECTS[:3]
    ]
    costs = {}
    for subject in subjects:
        if gpu or not subject.on_gpu_only:
            images = images_of(subject, 1, device)
            costs[subject.name] = flops(denoiser_of(subject, torch.float32, device), images)
    results = Results(
        device=device_name(device),
        peaks={name: matmul_peak(dtype, device) for name, dtype in PRECISIONS.items()},
        decoding=decode_rates(),
        flops=costs,
        speeds=list(speeds(subjects, device, rounds)),
        races=racing,
    )
    write(folder, results)
