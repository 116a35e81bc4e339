"""Small diffusion models, trained on the spot in minutes on a CPU core."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from volgrowth.demo.cases import to_tensor

# Share of the steps in which the learning rate rises, and fewest steps of a learning-rate cycle: 5% of 20 steps are the
# first step alone, and OneCycleLR would divide by the zero steps after it.
WARM_UP, FEWEST = 0.05, 21


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run: a UNet trained by AdamW with one cycle of the learning rate.

    Attributes:
        channels: of each block of the UNet.
        steps: of the optimizer.
        batch: images per step.
        learning_rate: highest rate of the cycle.
    """

    channels: tuple[int, ...] = (32, 32)
    steps: int = 2000
    batch: int = 64
    learning_rate: float = 2e-3


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside the `with` block.

    Small networks gain nothing from threads, which spin while they wait, and one thread always trains the same model.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def untrained(shape: tuple[int, ...], channels: tuple[int, ...], **further: Any) -> torch.nn.Module:
    """Return a UNet2DModel with random weights for images of `shape` (C, H, W), without attention.

    Args:
        shape: of an image.
        channels: of each block.
        further: settings of UNet2DModel, such as `num_class_embeds`.
    """
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=shape[1],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=8,
        **further,
    )


def train_model(images: np.ndarray, folder: Path, seed: int, recipe: Recipe = Recipe()) -> None:
    """Train a UNet2DModel on uint8 images (n, C, H, W) by the DDPM loss, and save it as a diffusers pipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler

    torch.manual_seed(seed)
    network = untrained(images.shape[1:], recipe.channels)
    scheduler = DDPMScheduler()
    data = to_tensor(images)

    def loss() -> torch.Tensor:
        clean = data[torch.randint(len(data), (recipe.batch,))]
        noise, time = torch.randn_like(clean), torch.randint(1000, (recipe.batch,))
        predicted = network(scheduler.add_noise(clean, noise, time), time).sample
        return torch.nn.functional.mse_loss(predicted, noise)

    fit(list(network.parameters()), loss, recipe)
    DDPMPipeline(network, scheduler).save_pretrained(folder)


def fit(
    parameters: Sequence[torch.nn.Parameter],
    loss: Callable[[], torch.Tensor],
    recipe: Recipe,
    after: Callable[[], None] | None = None,
    clip: float | None = None,
) -> None:
    """Minimise a loss by the recipe, on one thread.

    Args:
        parameters: what is trained.
        loss: draws a batch and returns its loss.
        recipe: steps and learning rate.
        after: called after every step.
        clip: greatest norm of the gradient; longer ones are scaled to it. None for no limit.
    """
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate)
    decay = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=max(recipe.steps, FEWEST), pct_start=WARM_UP
    )
    with one_thread():
        console = Console(stderr=True)
        for _ in track(range(recipe.steps), "training", console=console, disable=not sys.stderr.isatty()):
            value = loss()
            optimizer.zero_grad()
            value.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            decay.step()
            if after:
                after()
