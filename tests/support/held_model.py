"""A model that stops when a test says so, to catch an audit in the act however fast or busy the machine is."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.benchmark.faults.held_model import hold_workers
from tests.conftest import start_volgrowth, wait_for

# the source of a module; a file `hold` beside it has two lines: an output, and a number of fragments
HELD_MODEL = """
import glob, os, signal, time
import volgrowth as vg

FOLDER = os.path.dirname(os.path.abspath(__file__))

def held():
    try:
        with open(os.path.join(FOLDER, "hold")) as file:
            out, count = file.read().splitlines()
    except FileNotFoundError:
        return False
    return len(glob.glob(os.path.join(out, "scores", "*.parquet"))) >= int(count)

class Held(vg.GaussianDenoiser):
    image_shape = (1, 8, 8)

    def noise(self, y, noise_level):
        while held():
            time.sleep(0.05)
        return super().noise(y, noise_level)

def make(device, dtype):
    return Held(0.0, 0.3)
"""


def held_audit(folder: Path, data: Path, *more: Any, model: str = HELD_MODEL, shard_size: int = 6) -> list[Any]:
    """Write the module of the model to a folder, and return the arguments of an audit to its folder `out`."""
    (folder / "held_model.py").write_text(model)
    return [
        "audit", "factory:held_model:make", data, "--output", "out", "--shard-size", shard_size,
        "--set", f"batch_size={shard_size}", "--trust-model", *more,
    ]  # fmt: skip


def fragments(folder: Path) -> int:
    """Return how many fragments an audit to the folder `out` has published."""
    return len(list(folder.glob("out/scores/*.parquet")))


@contextmanager
def caught(arguments: Sequence[Any], folder: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Start an audit to `out`, and give its process while its workers wait, once two fragments are there."""
    with hold_workers(folder, folder / "out", 2):
        process = start_volgrowth(arguments, folder, **environment)
        wait_for(lambda: fragments(folder) >= 2, process)
        yield process
