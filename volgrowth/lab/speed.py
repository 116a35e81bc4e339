"""How fast a measurement is: beside the device's own limits, and beside the published algorithm on the same work.

Networks have published configurations and random weights. Work is counted in network evaluations, a backward pass as
one; floating-point operations are those of a forward pass by torch's own counter; the device's peak is a large matrix
product in the same precision, measured in the same run. Times are the least of several rounds.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import exp, sqrt
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from volgrowth.audit.measures import Flow, measure_images, true_float32
from volgrowth.config import Measure, PaperMeasure, StandardMeasure
from volgrowth.models import NetworkDenoiser, Scheduled
from volgrowth.numerics import DDPMSchedule, volume_growth
from volgrowth.sources import decode

TABLE = DDPMSchedule(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS = 3


@dataclass(frozen=True)
class Subject:
    """A network of a published configuration.

    Attributes:
        batch: images at a time, on a CPU and on a GPU.
        on_gpu_only: it is too large for a CPU.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    shape: tuple[int, int, int]
    batch: tuple[int, int]
    call: Callable[[torch.nn.Module, Tensor, Tensor], Tensor]
    on_gpu_only: bool = False


def _unet(channels: tuple[int, ...], down: str, up: str, layers: int) -> torch.nn.Module:
    from diffusers import UNet2DModel

    kinds = {"d": "DownBlock2D", "a": "AttnDownBlock2D", "u": "UpBlock2D", "b": "AttnUpBlock2D"}
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=[kinds[letter] for letter in down],
        up_block_types=[kinds[letter] for letter in up],
        attention_head_dim=None,
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )


def _dit() -> torch.nn.Module:
    from diffusers import DiTTransformer2DModel

    sizes = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "patch_size": 2}
    return DiTTransformer2DModel(in_channels=4, out_channels=8, sample_size=32, **sizes)


def _stable_diffusion() -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def _plain(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    return network(x, labels, return_dict=False)[0]


def _of_class(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    classes = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return network(x, timestep=labels, class_labels=classes, return_dict=False)[0][:, : x.shape[1]]


def _of_text(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    text = torch.zeros(len(x), 77, 768, dtype=x.dtype, device=x.device)
    return network(x, labels, encoder_hidden_states=text, return_dict=False)[0]


SUBJECTS = (
    Subject("small UNet, 0.8M", partial(_unet, (32, 64), "dd", "uu", 1), (3, 32, 32), (64, 2048), _plain),
    Subject("the same at 12 x 12 pixels", partial(_unet, (32, 64), "dd", "uu", 1), (3, 12, 12), (256, 4096), _plain),
    Subject(
        "CIFAR UNet (google/ddpm-cifar10-32), 35.7M",
        partial(_unet, (128, 256, 256, 256), "dadd", "uubu", 2),
        (3, 32, 32),
        (8, 512),
        _plain,
    ),
    Subject("DiT-S/2, 33M", _dit, (4, 32, 32), (8, 256), _of_class),
    Subject("Stable Diffusion UNet, 860M", _stable_diffusion, (4, 64, 64), (1, 16), _of_text, on_gpu_only=True),
)
CIFAR = SUBJECTS[2]

# preset `volume` is more of the traces of `standard`
MEASURES: dict[str, Measure] = {
    "standard": StandardMeasure(),
    "paper": PaperMeasure(),
    "paper, jvp": PaperMeasure(derivative="jvp"),
}


@dataclass(frozen=True)
class Speed:
    """One measurement: images of one batch, in the least of several rounds."""

    network: str
    preset: str
    dtype: str
    batch: int
    nfe: int
    images_per_second: float
    evaluations_per_second: float
    share_of_peak: float
    peak_memory_mib: float | None


@dataclass(frozen=True)
class Race:
    """The published loop over images and points, and ours, on the same work: seconds, and how far the numbers differ.

    Attributes:
        naive, batched, low: seconds of the loop, of batches in float32 by differences, and in bfloat16 by derivatives.
        difference: largest deviation of the batches' log volumes from the loop's, relative to their spread.
        low_difference: largest deviation of bfloat16 derivatives' log volumes from float64 ones, nats an axis and step.
    """

    network: str
    images: int
    axes: int
    steps: int
    naive: float
    batched: float
    low: float
    difference: float
    low_difference: float


def denoiser_of(subject: Subject, dtype: torch.dtype, device: torch.device, seed: int = 0) -> NetworkDenoiser:
    """The network with random weights, frozen."""
    torch.manual_seed(seed)
    # diffusers' own `to` warns of a cast that is meant here
    network = torch.nn.Module.to(subject.build(), device, dtype).eval().requires_grad_(False)
    for parameter in network.parameters():  # what starts at zero would make the derivative trivial
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    parameterization = Scheduled.on_table(TABLE, "epsilon")
    denoiser = NetworkDenoiser(partial(subject.call, network), parameterization, subject.shape, precision=dtype)
    denoiser.device, denoiser.dtype = device, torch.float64 if dtype is torch.float64 else torch.float32
    return denoiser


def images_of(subject: Subject, count: int, device: torch.device) -> Tensor:
    """Smooth random images in [-1, 1]."""
    noise = torch.randn(count, *subject.shape, generator=torch.Generator().manual_seed(0))
    return torch.tanh(torch.nn.functional.avg_pool2d(noise, 5, 1, 2) * 4).to(device)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / seconds(lambda: a @ a, device)


def flops(denoiser: NetworkDenoiser, images: Tensor) -> float:
    """Of one forward pass for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser.noise(images[:1], torch.tensor(0.2, dtype=torch.float64))
    return float(counter.get_total_flops())


def seconds(work: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """The least of several rounds, after one that is not counted."""

    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return min(once() for _ in range(rounds))


def speeds(subjects: Iterable[Subject], device: torch.device, rounds: int = ROUNDS) -> Iterator[Speed]:
    """Every preset on every network, in each precision that it allows."""
    gpu = device.type == "cuda"
    for subject in subjects:
        if subject.on_gpu_only and not gpu:
            continue
        for name, dtype in PRECISIONS.items():
            peak, denoiser = matmul_peak(dtype, device), denoiser_of(subject, dtype, device)
            images = images_of(subject, subject.batch[gpu], device)
            cost = flops(denoiser, images)
            for preset, measure in MEASURES.items():
                if preset == "paper" and dtype is not torch.float32:
                    continue
                yield _speed(denoiser, images, (subject.name, preset, name), measure, peak / cost, rounds)


def _speed(
    denoiser: NetworkDenoiser,
    images: Tensor,
    labels: tuple[str, str, str],
    measure: Measure,
    peak_evaluations: float,
    rounds: int,
) -> Speed:
    rows, gpu = list(range(len(images))), images.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    spent: list[int] = []

    def work() -> None:
        spent.append(measure_images(Flow(denoiser), images, rows, measure, 0).nfe)

    took = seconds(work, images.device, rounds)
    nfe = spent[-1]
    rate = len(images) / took
    return Speed(
        network=labels[0],
        preset=labels[1],
        dtype=labels[2],
        batch=len(images),
        nfe=nfe,
        images_per_second=rate,
        evaluations_per_second=rate * nfe,
        share_of_peak=rate * nfe / peak_evaluations,
        peak_memory_mib=torch.cuda.max_memory_allocated() / 2**20 if gpu else None,
    )


def published_loop(denoiser: NetworkDenoiser, images: Tensor, frames: Tensor, times: list[float]) -> Tensor:
    """(images,) log volume growth, as one would write the published algorithm: image by image and point by point.

    VPSDE with beta 0.1 to 20, Euler steps of dx/dt = -beta/2 (x - eps / sigma), differences of length .05, Gram-Schmidt
    after every step (arXiv 2503.19429).
    """
    radius = 0.05

    def step(x: Tensor, t: float, dt: float) -> Tensor:
        decay = -0.5 * t * t * 19.9 - 0.1 * t
        alpha, sigma = exp(decay / 2), sqrt(1 - exp(decay))
        level = torch.tensor(sigma / alpha, dtype=torch.float64)
        return x - dt * (0.1 + 19.9 * t) / 2 * (x - denoiser.noise(x[None] / alpha, level)[0] / sigma)

    grown = []
    for x, frame in zip(images, frames, strict=True):
        tangents, volume = list(frame), 0.0
        for t, s in itertools.pairwise(times):
            after = step(x, t, s - t)
            moved, tangents = [step(x + radius * u, t, s - t) - after for u in tangents], []
            for v in moved:
                for u in tangents:
                    v = v - (v * u).sum() * u
                volume += (v.norm() / radius).log().item()
                tangents.append(v / v.norm())
            x = after
        grown.append(volume)
    return torch.tensor(grown, dtype=torch.float64)


@torch.no_grad()
def race(subject: Subject, device: torch.device, images: int, axes: int, steps: int, rounds: int = ROUNDS) -> Race:
    """The same images, axes and times in three ways."""
    batch = subject.batch[device.type == "cuda"]
    whole = images_of(subject, images, device)
    draws = torch.randn(images, axes, *subject.shape, generator=torch.Generator().manual_seed(1))
    frames = torch.linalg.qr(draws.flatten(2).mT).Q.mT.reshape(draws.shape).to(device)
    times = [(1 + k) / 1000 for k in range(steps + 1)]

    def ours(denoiser: NetworkDenoiser, derivative: Any) -> Tensor:
        grown = []
        for first in range(0, images, batch):
            some, given = (each[first : first + batch].to(denoiser.dtype) for each in (whole, frames))
            grid = torch.tensor(times, dtype=torch.float64)
            grown.append(volume_growth(denoiser, some, times=grid, derivative=derivative, tangents=given).log_volume)
        return torch.cat(grown)[:, -1].double().cpu()

    exact, low = denoiser_of(subject, torch.float32, device), denoiser_of(subject, torch.bfloat16, device)
    double = ours(denoiser_of(subject, torch.float64, device), "jvp")
    with true_float32():
        loop, batches = published_loop(exact, whole, frames, times), ours(exact, "difference")
        naive = seconds(lambda: published_loop(exact, whole, frames, times), device, rounds)
        batched = seconds(lambda: ours(exact, "difference"), device, rounds)
    spread = (loop.max() - loop.min()).item() or loop.abs().max().item()
    return Race(
        network=subject.name,
        images=images,
        axes=axes,
        steps=steps,
        naive=naive,
        batched=batched,
        low=seconds(lambda: ours(low, "jvp"), device, rounds),
        difference=(batches - loop).abs().max().item() / spread,
        low_difference=(ours(low, "jvp") - double).abs().max().item() / (axes * steps),
    )


def decode_rates(seconds_each: float = 1.0) -> dict[str, float]:
    """Images a second that one core decodes: PNG of 32 x 32 pixels, JPEG of 256 x 256 down to 32 x 32."""
    random, rates = np.random.default_rng(0), {}
    for name, size, kind in (("PNG 32", 32, "PNG"), ("JPEG 256 to 32", 256, "JPEG")):
        stream = BytesIO()
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(stream, kind)
        data, counts = stream.getvalue(), []
        for _ in range(3):
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds_each / 3:
                decode(data, (3, 32, 32), 10**6)
                count += 1
            counts.append(count / (time.perf_counter() - began))
        rates[name] = median(counts)
    return rates
