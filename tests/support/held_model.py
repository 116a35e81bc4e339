"""A model that stops when a test says so, to catch an audit in the act however fast or busy the machine is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def held_up(folder: Path, out: Path, fragments: int) -> Iterator[None]:
    """Stop every worker of the audit `out` once so many fragments are there; `folder` is that of the model's module."""
    partial = folder / "partial"
    partial.write_text(f"{out}\n{fragments}")
    partial.rename(folder / "hold")
    try:
        yield
    finally:
        (folder / "hold").unlink()
