"""`jobs/benchmark.py speed`: everything that is measured, in one run."""

from pathlib import Path

import torch

from jobs.benchmark.cost.race import race
from jobs.benchmark.cost.speed import decode_rates, speeds
from jobs.benchmark.cost.speed_page import Results, device_name, write
from jobs.benchmark.cost.subjects import CIFAR, SUBJECTS

# images, axes and steps of the race on a CPU and on a GPU, for small networks and for large ones
SMALL_RACE = ((256, 1, 4), (512, 1, 4))
LARGE_RACE = ((8, 1, 2), (256, 1, 4))


def run_speed(folder: Path, *, quick: bool = False) -> None:
    """Measure, and write `speed.json` and `speed.md`; on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    subjects = SUBJECTS[:1] if quick else SUBJECTS
    rounds = 1 if quick else 3
    races = [
        race(subject, device, *(LARGE_RACE if subject == CIFAR else SMALL_RACE)[gpu], rounds=rounds)
        for subject in subjects
        if subject in SUBJECTS[:4]
    ]
    measured = list(speeds(subjects, device, rounds))
    results = Results(
        device=device_name(device),
        decoding=decode_rates(),
        floors=[floor for floor, _ in measured],
        speeds=[speed for _, some in measured for speed in some],
        races=races,
    )
    write(folder, results)
