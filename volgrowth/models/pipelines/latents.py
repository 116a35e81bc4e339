r"""Autoencoders: images become the latents that a network was trained on, and latents become images.

    latents = (mode of the encoder - shift) * scale

Shift and scale are `shift_factor` and `scaling_factor` of the autoencoder's configuration; if that lists a mean and a
standard deviation per channel, they are `latents_mean` and `scaling_factor / latents_std`. The mode is used instead of
a sample, so that an audit of the same image gives the same number each time. A vector-quantised autoencoder (VQModel)
gives its latents before quantisation, which latent diffusion is trained on (arXiv 2112.10752).
"""

import sys
from typing import Any

import torch
from torch import Tensor

from volgrowth.models.checkpoint_files import Component, from_pretrained
from volgrowth.models.pipelines.library_classes import class_of_diffusers
from volgrowth.numerics.memory import Sliced

AUTOENCODER_KINDS = ("AutoencoderKL", "VQModel")
# of a slice on a GPU: 8 images of 512 x 512
SLICE_PIXELS = 1 << 21


class Latents:
    """A loaded autoencoder as the codec of a `NetworkDenoiser`.

    Args:
        vae: the module, frozen. Its own configuration is used, which fills in a scale that old files omit.
        pixel_shape: (channels, height, width) of the images.
        at_once: images that the module gets at a time, fewer if the device has no memory for them.

    Attributes:
        encoded, decoded: the two halves of the module; their `size` says how many images they get at a time now.
    """

    def __init__(self, vae: Any, pixel_shape: tuple[int, int, int], at_once: int = sys.maxsize):
        self.vae, self.pixel_shape, config = vae, pixel_shape, vae.config
        self.encoded = Sliced(self._encode, at_once, "the autoencoder's encoder")
        self.decoded = Sliced(self._decode, at_once, "the autoencoder's decoder")
        scale: float = config.scaling_factor
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if mean and deviation:
            self.shift = torch.tensor(mean, dtype=torch.float64).reshape(-1, 1, 1)
            self.scale = scale / torch.tensor(deviation, dtype=torch.float64).reshape(-1, 1, 1)
        else:
            self.shift = torch.tensor(config.get("shift_factor") or 0.0, dtype=torch.float64)
            self.scale = torch.tensor(scale, dtype=torch.float64)
        self._placed: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        latents = self.encoded(images)
        shift, scale = self._affine(latents)
        return (latents - shift) * scale

    @torch.no_grad()
    def decode(self, states: Tensor) -> Tensor:
        shift, scale = self._affine(states)
        return self.decoded(states / scale + shift)

    def _encode(self, images: Tensor) -> Tensor:
        encoded = self.vae.encode(images)
        latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents

    def _decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return images

    def _affine(self, latents: Tensor) -> list[Tensor]:
        """Return shift and scale beside latents. They are copied there once: a CUDA graph can record no such copy."""
        place = latents.device, latents.dtype
        if place not in self._placed:
            self._placed[place] = [each.to(*place) for each in (self.shift, self.scale)]
        return self._placed[place]


def images_at_once(pixel_shape: tuple[int, int, int], device: torch.device) -> int:
    """Return how many images an autoencoder gets at a time: all on a CPU, `SLICE_PIXELS` pixels on a GPU.

    The activations of an autoencoder are as large as its images, so that a batch that suits the network may be too
    large for it.
    """
    _, height, width = pixel_shape
    return sys.maxsize if device.type == "cpu" else max(1, SLICE_PIXELS // (height * width))


def downsampling(vae: Component) -> int:
    """Return how many pixels of height, and of width, one latent stands for."""
    return int(2 ** (len(vae.config["block_out_channels"]) - 1))


def load_autoencoder(vae: Component, dtype: torch.dtype, device: torch.device) -> Any:
    """Load an autoencoder, frozen. `dtype` is the precision of states, since some autoencoders overflow in float16."""
    module = from_pretrained(class_of_diffusers(vae.kind), vae, low_cpu_mem_usage=True)
    torch.nn.Module.to(module, device, dtype)
    return module
