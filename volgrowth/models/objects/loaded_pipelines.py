"""Pipelines and networks of diffusers that are loaded already: measured as their folders would be."""

import json
from pathlib import Path
from typing import Any

import torch

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import Component, class_name
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.objects.preparing import ImageShape, ValueRange, is_unit_range, place_of
from volgrowth.models.pipelines.families import FAMILIES, TextFamily
from volgrowth.models.pipelines.inspection import PIPELINES, check_fit
from volgrowth.models.pipelines.latents import AUTOENCODER_KINDS
from volgrowth.models.pipelines.model_folder import DiffusersFolder, ModelOptions
from volgrowth.models.pipelines.schedulers import SchedulerConfig


def from_pipeline(pipeline: Any, scheduler: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of a loaded pipeline.

    Args:
        pipeline: one of the classes that volgrowth reads from folders.
        scheduler: another scheduler than the pipeline's own; None for that.
        image_shape: (channels, height, width) of the images, if they are not the pipeline's own.
        value_range: range of the pixels that it was trained on, if that is not its family's.

    Raises:
        ModelError: the pipeline or a part of it is not known.
    """
    name = type(pipeline).__name__
    if name not in PIPELINES:
        raise ModelError(f"a {name} was given: expected one of {', '.join(PIPELINES)}")
    parts = pipeline.components
    network = parts.get("unet") or parts.get("transformer")
    vae = parts.get("vae") or parts.get("vqvae")
    return _denoiser(network, scheduler or parts["scheduler"], vae, pipeline, image_shape, value_range)


def from_network(network: Any, scheduler: Any, image_shape: ImageShape, value_range: ValueRange) -> NetworkDenoiser:
    """Return the denoiser of a loaded network of diffusers and the scheduler that it was trained with.

    Raises:
        ModelError: there is no scheduler, the network is not known, or it needs an autoencoder or captions.
    """
    kind = type(network).__name__
    if scheduler is None:
        raise ModelError(
            f"a {kind} does not say how it was trained: give the scheduler that added the noise, as in "
            f"vg.adapt(network, scheduler=noise_scheduler)"
        )
    return _denoiser(network, scheduler, None, None, image_shape, value_range)


def _denoiser(
    network: Any, scheduler: Any, vae: Any, pipeline: Any, image_shape: ImageShape, value_range: ValueRange
) -> NetworkDenoiser:
    component = _component(network, "network", tuple(FAMILIES))
    family = FAMILIES[component.kind]
    component.config.setdefault("in_channels", family.in_channels)
    family.check(component)
    if isinstance(family, TextFamily):
        expected = family.pipeline(component.config)
        if type(pipeline).__name__ != expected:
            raise ModelError(
                f"a {component.kind} takes captions, and what was given encodes none: give the whole {expected}"
            )
    folder = DiffusersFolder(
        component,
        SchedulerConfig(Path(type(scheduler).__name__), _values(scheduler)),
        None if vae is None else _component(vae, "autoencoder", AUTOENCODER_KINDS),
        None,
        None,
        _options(image_shape),
    )
    check_fit(folder)
    if image_shape is not None and tuple(image_shape) != folder.image_shape:
        raise ModelError(f"image_shape {tuple(image_shape)}: the model's images are of shape {folder.image_shape}")
    if value_range is not None and vae is not None:
        raise ModelError("value_range was given, and the model works on latents: leave it out")
    device, precision = place_of(network)
    dtype = torch.float64 if precision is torch.float64 else torch.float32
    if vae is not None and place_of(vae) != (device, dtype):
        raise ModelError(
            f"the autoencoder is {' in '.join(map(str, reversed(place_of(vae))))}: expected {dtype} on the network's "
            f"device, as pipeline.vae.to({str(device)!r}, {dtype}) makes it"
        )
    for part in (network, vae, *(pipeline.components.values() if pipeline else ())):
        if isinstance(part, torch.nn.Module):  # a text encoder in training drops out too
            part.eval()
    denoiser = folder.denoiser(network, vae, pipeline, dtype, precision, device)
    denoiser.kind = component.kind  # type: ignore[misc]
    if value_range is not None:
        denoiser.unit_range = is_unit_range(value_range)
    return denoiser


def _component(module: Any, role: str, known: tuple[str, ...]) -> Component:
    """Return a loaded module's configuration, as its folder would have it.

    Raises:
        ModelError: the module is of a class that is not known.
    """
    config = {**_values(module), "_class_name": type(module).__name__}
    if class_name(config) not in known:
        raise ModelError(f"the {role} is a {class_name(config)}: expected one of {', '.join(known)}")
    return Component(Path(f"the {role}"), config, ())


def _values(part: Any) -> dict[str, Any]:
    """Return the configuration of a part of diffusers, as save_pretrained would write it."""
    values: dict[str, Any] = json.loads(part.to_json_string())
    return values


def _options(image_shape: ImageShape) -> ModelOptions:
    square = image_shape is not None and image_shape[1] == image_shape[2]
    return ModelOptions(resolution=image_shape[1] if image_shape is not None and square else None)
