"""Training as users do it: in latents, with augmented images, averaged weights, and under classes or captions.

All of it is the DDPM loss, on one thread, and saved as a diffusers pipeline that volgrowth loads as any other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from volgrowth.demo.cases import to_tensor
from volgrowth.demo.training import Recipe, fit, untrained

# images that an autoencoder encodes at a time
AT_ONCE = 256

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
Augment = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Autoencoder:
    """An AutoencoderKL that halves height and width once less than it has channels, and how it is trained.

    Attributes:
        channels: of its blocks.
        latents: channels of a latent.
        recipe: of its training, by the squared error of the image and `divergence` times the divergence of the latents.
        divergence: weight of the Kullback-Leibler divergence from the normal distribution, per image.
    """

    channels: tuple[int, ...] = (16, 32, 32)
    latents: int = 4
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=1000, batch=32))
    divergence: float = 1e-6


@dataclass(frozen=True)
class Practice:
    """What users add to a training.

    Attributes:
        augmented: mirror every second image, and move each by up to a pixel, anew in every step.
        average: share of the averaged weights that each step keeps, which are saved in place of the last ones.
    """

    augmented: bool = False
    average: float | None = None


def target_of(scheduler: Any, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Return what a network under this scheduler is to predict: the noise, or the velocity."""
    if scheduler.config.prediction_type == "epsilon":
        return noise
    velocity: Tensor = scheduler.get_velocity(clean, noise, time)
    return velocity


def train_in_latents(
    images: np.ndarray,
    folder: Path,
    seed: int,
    recipe: Recipe,
    autoencoder: Autoencoder,
    *,
    mixed: bool = False,
    drawn: np.ndarray | None = None,
    clip: float | None = None,
) -> None:
    """Train an autoencoder on uint8 images (n, C, H, W), then a UNet2DModel in its latents; save an LDMPipeline.

    Args:
        images: to train on.
        folder: of the pipeline.
        seed: of weights, batches and noise.
        recipe: of the UNet's training.
        autoencoder: its shape and its training.
        mixed: True to train the UNet in mixed precision (`network_in`); the autoencoder never is.
        drawn: how often the UNet is shown each image, in relation to the others, (n,); None for all alike.
        clip: greatest norm of the UNet's gradient; None for no limit.
    """
    from diffusers import DDPMScheduler, LDMPipeline

    torch.manual_seed(seed)
    vae = train_autoencoder(images, autoencoder)
    states = encode_images(vae, images)
    network, scheduler = untrained(tuple(states.shape[1:]), recipe.channels), DDPMScheduler()
    loss = denoising_loss(network_in(network, mixed), states, scheduler, recipe.batch, drawn=drawn)
    fit(list(network.parameters()), loss, recipe, clip=clip)
    LDMPipeline(vqvae=vae, unet=network, scheduler=scheduler).save_pretrained(folder)


def train_as_users_do(
    images: np.ndarray,
    folder: Path,
    seed: int,
    recipe: Recipe,
    practice: Practice,
    prediction: str = "epsilon",
    *,
    mixed: bool = False,
    drawn: np.ndarray | None = None,
    clip: float | None = None,
) -> None:
    """Train a UNet2DModel on uint8 images (n, C, H, W), augmented or with averaged weights; save a DDPMPipeline.

    Args:
        images: to train on.
        folder: of the pipeline.
        seed: of weights, batches and noise.
        recipe: of the training.
        practice: what users add to it.
        prediction: what the network predicts: `epsilon` or `v_prediction`.
        mixed: True to train in mixed precision (`network_in`).
        drawn: how often each image is drawn, in relation to the others, (n,); None for all alike.
        clip: greatest norm of the gradient; None for no limit.
    """
    from diffusers import DDPMPipeline, DDPMScheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    network = untrained(images.shape[1:], recipe.channels)
    scheduler = DDPMScheduler(prediction_type=prediction)
    average = None
    if practice.average is not None:
        average = EMAModel(network.parameters(), decay=practice.average, use_ema_warmup=True)
    loss = denoising_loss(
        network_in(network, mixed),
        to_tensor(images),
        scheduler,
        recipe.batch,
        mirror_and_move if practice.augmented else None,
        drawn,
    )
    after = (lambda: average.step(network.parameters())) if average else None
    fit(list(network.parameters()), loss, recipe, after, clip)
    if average:
        average.copy_to(network.parameters())
    DDPMPipeline(network, scheduler).save_pretrained(folder)


def network_in(network: Any, mixed: bool) -> Predict:
    """Return an unconditional network as `denoising_loss` calls it, in float32 or in mixed precision.

    In mixed precision the network multiplies in bfloat16, which is faster on a processor that has instructions for it,
    and slower on others. Weights, their gradients and the loss stay in float32.
    """

    def predict(states: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found: Tensor = network(states, time).sample
        return found.float()

    return predict


def denoising_loss(
    predict: Predict,
    states: Tensor,
    scheduler: Any,
    batch: int,
    augment: Augment | None = None,
    drawn: np.ndarray | None = None,
) -> Callable[[], Tensor]:
    """Return a function that draws a batch and returns its DDPM loss.

    Args:
        predict: the network as a function of noisy states (B, *state), times (B,), and the rows (B,) they are made of.
        states: images or latents to draw from, (n, *state).
        scheduler: a scheduler of diffusers with 1000 steps; it says what the network predicts.
        batch: rows of a batch.
        augment: changes the states of a batch.
        drawn: how often each state is drawn, in relation to the others, (n,); None for all alike.
    """
    shares = None if drawn is None else torch.from_numpy(drawn)

    def loss() -> Tensor:
        rows = torch.randint(len(states), (batch,)) if shares is None else shares.multinomial(batch, replacement=True)
        clean = augment(states[rows]) if augment else states[rows]
        noise, time = torch.randn_like(clean), torch.randint(1000, (batch,))
        predicted = predict(scheduler.add_noise(clean, noise, time), time, rows)
        return functional.mse_loss(predicted, target_of(scheduler, clean, noise, time))

    return loss


def mirror_and_move(images: Tensor) -> Tensor:
    """Mirror about half of the images (B, C, H, W), move each by up to a pixel, and repeat its edge."""
    height, width = images.shape[2:]
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    corners = torch.randint(3, (len(images), 2)).tolist()
    return torch.stack(
        [image[:, top : top + height, left : left + width] for image, (top, left) in zip(padded, corners, strict=True)]
    )


def augmented_forms(images: np.ndarray) -> np.ndarray:
    """Return all images that `mirror_and_move` makes of images (n, C, H, W): (18 n, C, H, W), form by form."""
    height, width = images.shape[2:]
    both = np.concatenate([images, images[..., ::-1]])
    padded = np.pad(both, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    corners = [(top, left) for top in range(3) for left in range(3)]
    return np.concatenate([padded[:, :, top : top + height, left : left + width] for top, left in corners])


def train_autoencoder(images: np.ndarray, settings: Autoencoder) -> Any:
    """Train an AutoencoderKL on uint8 images (n, C, H, W). Its scale is set so that latents have unit variance."""
    from diffusers import AutoencoderKL

    blocks = len(settings.channels)
    vae = AutoencoderKL(
        in_channels=images.shape[1],
        out_channels=images.shape[1],
        block_out_channels=settings.channels,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=settings.latents,
        norm_num_groups=8,
        sample_size=images.shape[2],
        mid_block_add_attention=False,
    )
    data = to_tensor(images)

    def loss() -> Tensor:
        clean = data[torch.randint(len(data), (settings.recipe.batch,))]
        posterior = vae.encode(clean).latent_dist
        error = functional.mse_loss(vae.decode(posterior.sample()).sample, clean)
        return error + settings.divergence * posterior.kl().mean()

    fit(list(vae.parameters()), loss, settings.recipe)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0)
    vae.register_to_config(scaling_factor=1 / float(encode_images(vae, images).std()))
    return vae


@torch.no_grad()
def encode_images(vae: Any, images: np.ndarray) -> Tensor:
    """Return the scaled modes of the latents of uint8 images (n, C, H, W)."""
    modes = [vae.encode(part).latent_dist.mode() for part in to_tensor(images).split(AT_ONCE)]
    return torch.cat(modes) * vae.config.scaling_factor
