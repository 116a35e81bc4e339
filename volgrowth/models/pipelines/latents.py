r"""Autoencoders: images become the latents that a network was trained on, and latents become images.

    latents = (mode of the encoder - shift) * scale

Shift and scale are `shift_factor` and `scaling_factor` of the autoencoder's configuration; if that lists a mean and a
standard deviation per channel, they are `latents_mean` and `scaling_factor / latents_std`. The mode is used instead of
a sample, so that an audit of the same image gives the same number each time. A vector-quantised autoencoder (VQModel)
gives its latents before quantisation, which latent diffusion is trained on (arXiv 2112.10752).
"""

from typing import Any

import torch
from torch import Tensor

from volgrowth.models.checkpoint_files import Component, from_pretrained

AUTOENCODER_KINDS = ("AutoencoderKL", "VQModel")


class Latents:
    """A loaded autoencoder as the codec of a `NetworkDenoiser`.

    Args:
        vae: the module, frozen. Its own configuration is used, which fills in a scale that old files omit.
        pixel_shape: (channels, height, width) of the images.
    """

    def __init__(self, vae: Any, pixel_shape: tuple[int, int, int]):
        self.vae, self.pixel_shape, config = vae, pixel_shape, vae.config
        scale: float = config.scaling_factor
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean and deviation:
            self.shift = torch.tensor(mean, dtype=torch.float64).reshape(-1, 1, 1)
            self.scale = scale / torch.tensor(deviation, dtype=torch.float64).reshape(-1, 1, 1)
        else:
            self.shift = torch.tensor(config.get("shift_factor") or 0.0, dtype=torch.float64)
            self.scale = torch.tensor(scale, dtype=torch.float64)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        encoded = self.vae.encode(images)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        shift, scale = self._affine(latents)
        return (latents - shift) * scale

    @torch.no_grad()
    def decode(self, states: Tensor) -> Tensor:
        shift, scale = self._affine(states)
        return self.vae.decode(states / scale + shift, return_dict=False)[0]

    def _affine(self, latents: Tensor) -> list[Tensor]:
        return [each.to(latents.device, latents.dtype, non_blocking=True) for each in (self.shift, self.scale)]


def downsampling(vae: Component) -> int:
    """Return how many pixels of height, and of width, one latent stands for."""
    return int(2 ** (len(vae.config["block_out_channels"]) - 1))


def load_autoencoder(vae: Component, dtype: torch.dtype, device: torch.device) -> Any:
    """Load an autoencoder, frozen. `dtype` is the precision of states, since some autoencoders overflow in float16."""
    import diffusers

    module = from_pretrained(getattr(diffusers, vae.kind), vae, low_cpu_mem_usage=False)
    torch.nn.Module.to(module, device, dtype)
    return module
