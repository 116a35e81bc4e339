"""A model that stops where a fault is to strike, so that an audit is caught in the act however fast the machine is.

Audits find its folder in the environment. A file `hold` in it names an output and a number of fragments: workers of
that output wait while at least so many are there. A file in `workers` is named by each process that holds the model.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from volgrowth.numerics import GaussianDenoiser

FOLDER = "VOLGROWTH_FAULTS_FOLDER"
MODULE = "factory:jobs.benchmark.faults.held_model"
# a noisy image of such a mean was a white one: the others are dark
WHITE = 0.95


class HeldDenoiser(GaussianDenoiser):
    """The denoiser of 8 x 8 images with independent pixels, which can be made to wait."""

    image_shape = (1, 8, 8)

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        """Return the expected noise, once nothing holds this worker up."""
        while _held():
            time.sleep(0.02)
        if (y.flatten(1).mean(1) > WHITE).any():
            self.meet_white()
        return super().noise(y, noise_level)

    def meet_white(self) -> None:
        """Do nothing at a white image."""


class EndingDenoiser(HeldDenoiser):
    """One whose process ends at a white image, as a bug in a driver of a device does it."""

    def meet_white(self) -> None:
        """End this process."""
        os.kill(os.getpid(), signal.SIGKILL)


class HangingDenoiser(HeldDenoiser):
    """One that never returns from a white image."""

    def meet_white(self) -> None:
        """Wait for longer than any audit takes."""
        time.sleep(1e6)


def held(device: torch.device, dtype: torch.dtype) -> HeldDenoiser:
    """Return the model of an audit that is disturbed from outside."""
    return _made(HeldDenoiser, device, dtype)


def ending(device: torch.device, dtype: torch.dtype) -> HeldDenoiser:
    """Return the model that ends its process."""
    return _made(EndingDenoiser, device, dtype)


def hanging(device: torch.device, dtype: torch.dtype) -> HeldDenoiser:
    """Return the model that hangs."""
    return _made(HangingDenoiser, device, dtype)


@contextmanager
def hold_workers(folder: Path, output: Path, fragments: int) -> Iterator[None]:
    """Have every worker of an audit wait as soon as its output holds so many fragments."""
    partial = folder / "hold.partial"
    partial.write_text(f"{output}\n{fragments}")
    partial.rename(folder / "hold")
    try:
        yield
    finally:
        (folder / "hold").unlink()


def _made(kind: type[HeldDenoiser], device: torch.device, dtype: torch.dtype) -> HeldDenoiser:
    if FOLDER in os.environ:
        (Path(os.environ[FOLDER]) / "workers" / str(os.getpid())).touch()
    spread = torch.full((), 0.3, device=device, dtype=dtype)
    return kind(torch.zeros((), device=device, dtype=dtype), spread)


def _held() -> bool:
    try:
        output, fragments = (Path(os.environ[FOLDER]) / "hold").read_text().splitlines()
    except (FileNotFoundError, KeyError):
        return False
    return len(list(Path(output).glob("scores/*.parquet"))) >= int(fragments)
