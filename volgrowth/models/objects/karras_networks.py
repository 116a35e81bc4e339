"""Networks that take a noise level: k-diffusion's wrappers, and EDM and EDM2 as NVlabs' code makes them.

k-diffusion's wrappers take y and a noise level and return E[x_0 | y], by scalars of their own around an inner network:

    Denoiser                  EDM's preconditioning, label sigma
    VDenoiser                 v = alpha e - sigma x_0, alpha = cos, sigma = sin of pi t / 2, label t = 2/pi atan(sigma)
    DiscreteEpsDDPMDenoiser   e on a table, label the step, between steps linear in log sigma (whole if `quantize`)
    DiscreteVDDPMDenoiser     v on a table, likewise
"""

from math import pi
from typing import Any

import torch
from torch import Tensor

from volgrowth.errors import ModelError
from volgrowth.models.edm.model import OneHot
from volgrowth.models.edm.preconditioning import HIGHEST, LOWEST, karras_levels
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.objects.preparing import ImageShape, Module, ValueRange, network_denoiser, place_of
from volgrowth.models.parameterizations import EDM, Scheduled
from volgrowth.numerics import DDPMSchedule

_LEVELS = LOWEST, HIGHEST


def _sampling(steps: int) -> Tensor:
    return karras_levels(*_LEVELS, steps)


class _Answer(Module):
    """What a k-diffusion wrapper of a table gets from its inner network: its noise, or its v."""

    def __init__(self, inner: torch.nn.Module, method: str):
        super().__init__(inner)
        self.method = method

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        answer: Tensor = getattr(self.inner, self.method)(x, labels)
        return answer


def from_k_diffusion(wrapper: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of k-diffusion's `Denoiser` or a subclass."""
    parameterization = EDM(float(wrapper.sigma_data), _LEVELS, label=_level)
    return _wrapped(wrapper, parameterization, image_shape, value_range)


def from_v_wrapper(wrapper: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of k-diffusion's `VDenoiser`."""
    return _wrapped(wrapper, EDM(1.0, _LEVELS, -1, label=_angle), image_shape, value_range)


def from_noise_table(wrapper: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of k-diffusion's `DiscreteEpsDDPMDenoiser` or of `OpenAIDenoiser`."""
    return _tabled(wrapper, "epsilon", "get_eps", image_shape, value_range)


def from_v_table(wrapper: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of k-diffusion's `DiscreteVDDPMDenoiser`."""
    return _tabled(wrapper, "v_prediction", "get_v", image_shape, value_range)


def refuse_latents(wrapper: Any) -> ModelError:
    """Return the error for wrappers of latent diffusion models."""
    return ModelError(
        f"{type(wrapper).__name__} wraps a network of latents and captions, whose autoencoder it does not hold: turn "
        f"the checkpoint into a diffusers folder with StableDiffusionPipeline.from_single_file and audit that"
    )


def from_nvlabs(network: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of an EDM2 `Precond` or an EDM `EDMPrecond`, with the network inside it.

    The network runs in the precision of its weights. Noise levels are those of NVlabs' sampler.

    Raises:
        ModelError: it has another preconditioning, or works on latents.
    """
    kind = type(network).__name__
    inner = getattr(network, "unet", None) or getattr(network, "model", None)
    if kind not in ("Precond", "EDMPrecond") or inner is None:
        raise ModelError(
            f"{kind} is another preconditioning than EDM's: expected EDM2's Precond or EDM's EDMPrecond; convert other "
            f"networks of NVlabs with `volgrowth convert FILE.pkl FOLDER --allow-pickle`"
        )
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    if shape[0] not in (1, 3):
        raise ModelError(
            f"this {kind} has {shape[0]} channels, which are latents: write a function that returns "
            f"vg.NetworkDenoiser(..., codec=...) with its autoencoder"
        )
    classes, device = network.label_dim, place_of(network)[0]
    has_null = getattr(inner, "label_dropout", 0) > 0  # EDM2's networks have none: they know no image without a class
    return network_denoiser(
        _Labelled(inner),
        EDM(float(network.sigma_data), _LEVELS),
        image_shape or shape,
        value_range,
        kind,
        conditioner=OneHot(classes, has_null, device) if classes else None,
        sampling_levels=_sampling,
    )


class _Labelled(Module):
    """An inner network of NVlabs, which takes class labels as its third argument, None for a model without classes."""

    def forward(self, x: Tensor, labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        if class_labels is not None:
            class_labels = class_labels.to(x.dtype)
        output: Tensor = self.inner(x, labels, class_labels)
        return output


def _wrapped(wrapper: Any, parameterization: EDM, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    kind = type(wrapper).__name__
    return network_denoiser(
        wrapper.inner_model, parameterization, image_shape, value_range, kind, sampling_levels=_sampling
    )


def _tabled(
    wrapper: Any, prediction: Any, method: str, image_shape: ImageShape, value_range: ValueRange
) -> NetworkDenoiser:
    levels = wrapper.sigmas.detach().cpu().double()
    parameterization = Scheduled.on_table(DDPMSchedule(1 / (1 + levels**2)), prediction)
    kind, whole = type(wrapper).__name__, bool(wrapper.quantize)
    return network_denoiser(
        _Answer(wrapper, method), parameterization, image_shape, value_range, kind, whole_labels=whole
    )


def _level(level: Tensor) -> Tensor:
    return level


def _angle(level: Tensor) -> Tensor:
    return level.atan() * 2 / pi
