"""The networks that are timed, with random weights: those of the demo, a small one, and published configurations."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jobs.benchmark.detection.compared_scores import DDPM_SCHEDULE
from volgrowth.demo.training import untrained
from volgrowth.models import NetworkDenoiser, Scheduled


def unet(channels: tuple[int, ...], layers: int, attention: Collection[int] = ()) -> torch.nn.Module:
    """Return a `UNet2DModel` for RGB images of 32 x 32 pixels.

    Args:
        channels: number of channels in each block.
        layers: layers in each block.
        attention: numbers of the blocks that have attention, from 0; the way up mirrors the way down.
    """
    from diffusers import UNet2DModel

    kinds = ["Attn" if block in attention else "" for block in range(len(channels))]
    return UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in kinds[::-1]],
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


def stable_diffusion() -> torch.nn.Module:
    """Return the network of Stable Diffusion 1.5, without weights of anybody's training."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def _call(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    return network(x, labels, return_dict=False)[0]


def _call_with_class(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    classes = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return network(x, timestep=labels, class_labels=classes, return_dict=False)[0][:, : x.shape[1]]


def _call_with_text(network: Any, x: Tensor, labels: Tensor) -> Tensor:
    text = torch.zeros(len(x), 77, 768, dtype=x.dtype, device=x.device)
    return network(x, labels, encoder_hidden_states=text, return_dict=False)[0]


@dataclass(frozen=True)
class TimedNetwork:
    """A network configuration that is timed.

    Attributes:
        build: makes the network.
        shape: channels, height and width of its images.
        batch: images in a batch, on a CPU and on a GPU.
        race: images, axes and steps of the race against the published loop, on a CPU and on a GPU; None for no race.
        call: evaluates the network at images and time labels, and returns the expected noise.
        gpu_only: the network is too large for a CPU.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    shape: tuple[int, int, int]
    batch: tuple[int, int]
    race: tuple[tuple[int, int, int], tuple[int, int, int]] | None = ((256, 1, 4), (512, 1, 4))
    call: Callable[[torch.nn.Module, Tensor, Tensor], Tensor] = _call
    gpu_only: bool = False


# diffusers' DiT-S/2 has 40M parameters, since every block embeds time and class; the original has 33M
NETWORKS = (
    TimedNetwork("UNet of the demo, 0.3M, 8 x 8", partial(untrained, (1, 8, 8), (32, 32)), (1, 8, 8), (256, 8192)),
    TimedNetwork(
        "UNet of the demo, 0.3M, 12 x 12", partial(untrained, (1, 12, 12), (32, 32)), (1, 12, 12), (256, 8192)
    ),
    TimedNetwork("UNet, 0.7M, 32 x 32", partial(unet, (32, 64), 1), (3, 32, 32), (64, 2048)),
    TimedNetwork(
        "CIFAR UNet (google/ddpm-cifar10-32), 35.7M",
        partial(unet, (128, 256, 256, 256), 2, {1}),
        (3, 32, 32),
        (8, 512),
        race=((8, 1, 2), (256, 1, 4)),
    ),
    TimedNetwork("DiT-S/2, 40M", _dit, (4, 32, 32), (8, 256), None, _call_with_class),
    TimedNetwork(
        "Stable Diffusion UNet, 860M", stable_diffusion, (4, 64, 64), (1, 16), None, _call_with_text, gpu_only=True
    ),
)


def random_denoiser(network: TimedNetwork, dtype: torch.dtype, device: torch.device, seed: int = 0) -> NetworkDenoiser:
    """Return the network as a denoiser with random frozen weights.

    The weights are drawn in float32 on the CPU and rounded to `dtype` afterwards, so that they are the same numbers in
    every precision and on every device, up to that rounding. Those of a network that only a GPU can run are drawn
    there, which takes a moment and not half a minute.
    """
    torch.manual_seed(seed)
    with torch.device(device if network.gpu_only else "cpu"):
        module = network.build().eval().requires_grad_(False)
    for parameter in module.parameters():  # weights that start at zero would make the derivative trivial
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    # diffusers' own `to` warns of a cast that is meant here
    module = torch.nn.Module.to(module, device, dtype)
    parameterization = Scheduled.on_table(DDPM_SCHEDULE, "epsilon")
    denoiser = NetworkDenoiser(partial(network.call, module), parameterization, network.shape, precision=dtype)
    denoiser.device, denoiser.dtype = device, torch.float64 if dtype is torch.float64 else torch.float32
    return denoiser


def smooth_images(network: TimedNetwork, count: int, device: torch.device) -> Tensor:
    """Return smooth random images (count, C, H, W) in [-1, 1]."""
    noise = torch.randn(count, *network.shape, generator=torch.Generator().manual_seed(0))
    return torch.tanh(torch.nn.functional.avg_pool2d(noise, 5, 1, 2) * 4).to(device)
