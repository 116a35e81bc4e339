"""Denoisers that are given as objects: settings name them, and workers take them as they are.

The name of such a model has the digest of its weights in it, so that the same call with the same model goes on with an
audit, also in another process.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from typing import Any

import torch

from volgrowth.errors import ModelError
from volgrowth.held import MEMORY, held_by, hold
from volgrowth.models.factories import check_image_shape
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.weight_digest import digest_weights, modules_behind
from volgrowth.numerics import Denoiser
from volgrowth.records import ModelInfo

# noise levels at which the scalars of a parameterization are part of what a model is
_TRIED = (0.01, 0.1, 0.3, 1.0, 3.0, 30.0)
_SHOWN = 12


def hold_model(denoiser: Denoiser) -> str:
    """Give a denoiser a name that settings can use in this process, as long as somebody holds the denoiser.

    Raises:
        ModelError: it is no denoiser of images, or it holds tensors without values, or with NaN or infinity.
    """
    check_image_shape(denoiser, "this is")
    digest = _digest(denoiser)[0]
    name = f"{MEMORY}{denoiser.kind}-{digest[:_SHOWN]}"
    hold(name, denoiser)
    return name


def load_held(name: str, precision: torch.dtype, states: torch.dtype, device: torch.device) -> Denoiser:
    """Return a denoiser that was given as an object; a copy of it, if another precision is asked for.

    Args:
        name: the name that `hold_model` gave it.
        precision: dtype of the network's numbers.
        states: dtype of states and sums.
        device: where the denoiser shall compute.

    Raises:
        ModelError: this process does not hold it, it is on another kind of device, or it cannot be copied.
    """
    denoiser = _object(name)
    own = denoiser.precision or denoiser.dtype
    if denoiser.device.type != device.type:
        raise ModelError(
            f"the model that was given as an object is on {denoiser.device}, and a worker computes on {device}: move "
            f"the model there before the audit"
        )
    if own is precision:
        return denoiser
    network = getattr(denoiser, "network", None)
    if not isinstance(denoiser, NetworkDenoiser) or not isinstance(network, torch.nn.Module) or denoiser.codec:
        raise ModelError(f"the model that was given as an object was made for {own}: expected to stay in it")
    other = copy(denoiser)
    other.network = deepcopy(network).to(device, precision)
    other.precision, other.dtype, other.device = precision, states, device
    return other


def inspect_held(name: str) -> ModelInfo:
    """Return what the manifest records about a model that was given as an object.

    Raises:
        ModelError: this process does not hold it, or it holds tensors without values, or with NaN or infinity.
    """
    denoiser = _object(name)
    digest, numbers, note = _digest(denoiser)
    shape, latent = denoiser.pixel_shape, denoiser.image_shape
    assert shape is not None  # hold_model checked it
    return ModelInfo(
        name=name,
        kind=denoiser.kind,
        image_shape=shape,
        hash=f"sha256:{digest}",
        parameters=numbers or None,
        latent_shape=None if latent == shape else latent,
        condition=denoiser.condition,
        has_null=denoiser.has_null,
        notes=(note,) if note else (),
    )


@contextmanager
def at_rest(model: object) -> Iterator[None]:
    """Have all networks behind an object in `eval()` and their weights frozen, and put both back in the end.

    An audit may put the channels of weights last in memory; in the end they lie where they lay before.
    """
    modules = modules_behind(model)
    training = [module for module in modules if module.training]
    weights = [weight for module in modules for weight in module.parameters(recurse=False)]
    asking = [weight for weight in weights if weight.requires_grad]
    places = [(weight, weight.data) for weight in weights if weight.ndim == 4]
    for module in training:
        module.training = False
    for weight in asking:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for weight, data in places:
            if weight.data.stride() != data.stride():
                weight.data = data
        for weight in asking:
            weight.requires_grad_(True)


def _object(name: str) -> Denoiser:
    found = held_by(name)
    if found is None:
        raise ModelError(
            f"model {name} was an object in the process that audited it, and has no name on disk: call "
            f"vg.audit_images with the same model, images and output first, which measures nothing again, and keep "
            f"the audit that it returns; or save the model and audit it by its path"
        )
    assert isinstance(found, Denoiser)
    return found


def _digest(denoiser: Denoiser) -> tuple[str, int, str]:
    """Return the digest of a denoiser's weights and of what they mean, the number of weights, and a note."""
    weights = digest_weights(denoiser, "the model")
    meaning = hashlib.sha256(json.dumps(_meaning(denoiser)).encode())
    note = weights.note.replace("behind the factory", "behind the model").replace(
        "its source code alone stands", "its settings alone stand"
    )
    return hashlib.sha256(meaning.digest() + weights.digest).hexdigest(), weights.numbers, note


def _meaning(denoiser: Denoiser) -> list[Any]:
    """Return what a denoiser's output means, as JSON values, apart from its weights."""
    said: list[Any] = [
        denoiser.kind,
        denoiser.image_shape,
        denoiser.pixel_shape,
        denoiser.noise_levels,
        denoiser.condition,
        denoiser.has_null,
    ]
    if isinstance(denoiser, NetworkDenoiser):
        scales = denoiser.parameterization(torch.tensor(_TRIED, dtype=torch.float64))
        numbers = [scales.input, scales.label, scales.of_y, scales.of_output]
        said += [[f"{number:.9e}" for number in each.expand(len(_TRIED)).tolist()] for each in numbers]
        said += [denoiser.whole_labels, denoiser.unit_range, type(denoiser.network).__qualname__]
    else:
        kind = type(denoiser)
        said.append(kind.__qualname__)
        if not kind.__module__.startswith("volgrowth."):
            with suppress(OSError, TypeError):  # typed in at a prompt
                said.append(inspect.getsource(kind))
    return said
