"""Load a model by the name that a user gives: a folder, URL, hub id or factory becomes a Denoiser."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, TypeVar, get_args

import torch

from volgrowth.errors import ModelError, kind_and_line
from volgrowth.held import MEMORY
from volgrowth.models.edm.model import EDMFolder, inspect_edm, is_edm
from volgrowth.models.factories import inspect_factory, load_factory
from volgrowth.models.locating import FACTORY, files_digest, lora_file, model_folder
from volgrowth.models.objects.held_models import inspect_held, load_held
from volgrowth.models.pipelines.inspection import inspect_folder
from volgrowth.models.pipelines.model_folder import DiffusersFolder, ModelOptions
from volgrowth.numerics import Denoiser
from volgrowth.numerics.precision import has_float64
from volgrowth.records import ModelInfo
from volgrowth.storage.urls import is_url

DType = Literal["float32", "float64", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(DType)}
FACTORY_LOADS = "a factory loads what it needs itself"
OBJECT_LOADS = "a model that is an object is loaded already"
T = TypeVar("T")


def load_model(
    name: str,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: DType = "float32",
    device: str = "cpu",
    *,
    base: str | None = None,
    lora: str | None = None,
    resolution: int | None = None,
) -> Denoiser:
    """Load a model as a Denoiser with frozen weights.

    Args:
        name: a diffusers folder or its URL (`s3://bucket/model`), a hub id (`google/ddpm-cifar10-32`), an EDM folder,
            or `factory:module:function` for a function `function(device, dtype)` that returns a Denoiser. The
            factory's module may lie on the Python path or in the working directory.
        revision: branch, tag or commit of a hub id; by default its main branch.
        subfolder: where in the folder or repository the model lies, such as `unet_ema`.
        dtype: precision of the network. The default, float32, is the precision that most networks were trained in.
            States and sums are float64 if the network is, and float32 otherwise.
        device: name of a torch device, such as `cuda:0`.
        base: path, URL or hub id of the pipeline from which a network alone takes its scheduler, autoencoder and text
            encoders; by default the pipeline that the network's folder lies in.
        lora: path, URL or hub id of low-rank weights (LoRA) to add to the model.
        resolution: height and width of the images in pixels; by default the size in the model's configuration.

    Returns:
        The denoiser in y-coordinates. It takes states of shape (B, *denoiser.image_shape): images in [-1, 1], or their
        latents if the model has an autoencoder.

    Raises:
        ModelError: one sentence that says what was given, what was expected, and the fix.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    precision, at = DTYPES[dtype], torch.device(device)
    states = torch.float64 if precision is torch.float64 else torch.float32
    if precision is torch.float64 and not has_float64(at):
        raise ModelError(f"dtype is float64, which {device} does not have: expected float32, or the device cpu")
    given = {"revision": revision, "subfolder": subfolder, "base": base, "lora": lora, "resolution": resolution}
    if name.startswith(MEMORY):
        _refuse_beside(OBJECT_LOADS, **given)
        return load_held(name, precision, states, at)
    if name.startswith(FACTORY):
        _refuse_beside(FACTORY_LOADS, **given)
        return load_factory(name, precision, states, at)
    with _inspected(name, revision, subfolder, base, lora, resolution) as model:
        return model.load(states, precision, at)


def inspect_model(
    name: str,
    revision: str | None = None,
    subfolder: str | None = None,
    *,
    base: str | None = None,
    lora: str | None = None,
    resolution: int | None = None,
) -> ModelInfo:
    """Return what the manifest records about a model, after every check that needs no weights in memory.

    It takes the arguments of `load_model`, except dtype and device. A factory is called, in float32 on the CPU, since
    only the denoiser that it returns knows the shape of its images, and holds its weights.

    Returns:
        Name, kind, shapes, conditions and digest of the model.

    Raises:
        ModelError: one sentence that says what was given, what was expected, and the fix.
    """
    given = {"revision": revision, "subfolder": subfolder, "base": base, "lora": lora, "resolution": resolution}
    if name.startswith(MEMORY):
        _refuse_beside(OBJECT_LOADS, **given)
        return inspect_held(name)
    if name.startswith(FACTORY):
        _refuse_beside(FACTORY_LOADS, **given)
        return inspect_factory(name)
    with _inspected(name, revision, subfolder, base, lora, resolution) as model:
        files = files_digest(name, revision, subfolder, base=base, lora=lora, resolution=resolution)
        return replace(model.info(name), files=files)


def _refuse_beside(reason: str, **settings: object) -> None:
    """Raise ModelError if one of the settings was given."""
    given = next((f"{setting} {value}" for setting, value in settings.items() if value is not None), None)
    if given:
        raise ModelError(f"{given} was given, and {reason}: leave it out")


@contextmanager
def _inspected(
    name: str, revision: str | None, subfolder: str | None, base: str | None, lora: str | None, resolution: int | None
) -> Iterator[DiffusersFolder | EDMFolder]:
    """Yield the checked model; errors about a downloaded copy name the URL that it came from."""
    folder = model_folder(name, revision, subfolder)
    try:
        if is_edm(folder):
            _refuse_beside("an EDM network is whole and of one size", base=base, lora=lora, resolution=resolution)
            yield _checked(name, lambda: inspect_edm(folder))
        else:
            options = ModelOptions(
                base=model_folder(base) if base else None,
                lora=lora_file(lora) if lora else None,
                resolution=resolution,
            )
            yield _checked(name, lambda: inspect_folder(folder, options))
    except ModelError as error:
        if not is_url(name):
            raise
        given = "/".join(part.strip("/") for part in (name, subfolder) if part)
        raise ModelError(str(error).replace(str(folder), given)) from None


def _checked(name: str, inspect: Callable[[], T]) -> T:
    """Return what `inspect` returns; a configuration may hold anything, also what no class of diffusers would write."""
    try:
        return inspect()
    except (TypeError, KeyError, AttributeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ModelError(
            f"the configuration of {name} is not as diffusers writes it ({kind_and_line(error)}): save the model again"
        ) from error
