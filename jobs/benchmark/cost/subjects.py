"""Networks for timing, with random weights: of the demo, of published configurations, and a small one between."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from volgrowth.demo.training import untrained
from volgrowth.models import NetworkDenoiser, Scheduled
from volgrowth.numerics import DDPMSchedule

TABLE = DDPMSchedule(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0))


@dataclass(frozen=True)
class Subject:
    """A network.

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


def unet(channels: tuple[int, ...], down: str, up: str, layers: int) -> torch.nn.Module:
    """A `UNet2DModel` for 32 x 32 pixels; a letter for each block, a and b those with attention."""
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


def plain(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    """A network without conditions."""
    return network(x, labels, return_dict=False)[0]


def _of_class(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    classes = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return network(x, timestep=labels, class_labels=classes, return_dict=False)[0][:, : x.shape[1]]


def _of_text(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    text = torch.zeros(len(x), 77, 768, dtype=x.dtype, device=x.device)
    return network(x, labels, encoder_hidden_states=text, return_dict=False)[0]


SUBJECTS = (
    Subject("UNet of the demo, 0.3M, 8 x 8", partial(untrained, (1, 8, 8), (32, 32)), (1, 8, 8), (256, 8192), plain),
    Subject(
        "UNet of the demo, 0.3M, 12 x 12", partial(untrained, (1, 12, 12), (32, 32)), (1, 12, 12), (256, 8192), plain
    ),
    Subject("UNet, 0.8M, 32 x 32", partial(unet, (32, 64), "dd", "uu", 1), (3, 32, 32), (64, 2048), plain),
    Subject(
        "CIFAR UNet (google/ddpm-cifar10-32), 35.7M",
        partial(unet, (128, 256, 256, 256), "dadd", "uubu", 2),
        (3, 32, 32),
        (8, 512),
        plain,
    ),
    Subject("DiT-S/2, 33M", _dit, (4, 32, 32), (8, 256), _of_class),
    Subject("Stable Diffusion UNet, 860M", _stable_diffusion, (4, 64, 64), (1, 16), _of_text, on_gpu_only=True),
)
CIFAR = SUBJECTS[3]


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
