"""From what a user names a model by to a Denoiser, with errors a user can act on."""

import hashlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from volgrowth.errors import ModelError
from volgrowth.models.diffusers import DiffusersModel, inspect_folder
from volgrowth.models.remote import local_folder
from volgrowth.models.user_code import import_function
from volgrowth.numerics import Denoiser
from volgrowth.records import ModelInfo
from volgrowth.storage import is_url

DTYPES = {"float32": torch.float32, "float64": torch.float64}
DType = Literal["float32", "float64"]
FACTORY = "factory:"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(
    name: str,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: DType = "float32",
    device: str = "cpu",
) -> Denoiser:
    """Load a model as a Denoiser with frozen weights.

    Args:
        name: a diffusers folder or its URL (`s3://bucket/model`), a hub id (`google/ddpm-cifar10-32`), or
            `factory:module:function` for a function `function(device, dtype)` that returns a Denoiser; its module is
            looked for in the working directory too.
        revision: of a hub id: branch, tag or commit.
        subfolder: where in the folder or repository the model lies.
        dtype: precision of weights and states.
        device: where a torch.device is told to be.

    Raises:
        ModelError: in one sentence, what was given, what was expected, and the fix.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")
    if name.startswith(FACTORY):
        return _from_factory(name, DTYPES[dtype], torch.device(device))
    with _inspected(name, revision, subfolder) as model:
        return model.load(DTYPES[dtype], torch.device(device))


def inspect_model(name: str, revision: str | None = None, subfolder: str | None = None) -> ModelInfo:
    """Everything the manifest records, and every check that does not need the weights in memory.

    Raises:
        ModelError: as `load_model`.
    """
    if name.startswith(FACTORY):
        denoiser = _from_factory(name, torch.float32, torch.device("cpu"))
        assert denoiser.image_shape is not None
        return ModelInfo(name, denoiser.kind, denoiser.image_shape, _factory_digest(name), None)
    with _inspected(name, revision, subfolder) as model:
        return ModelInfo(name, model.network["_class_name"], model.image_shape, model.digest, model.num_parameters)


@contextmanager
def _inspected(name: str, revision: str | None, subfolder: str | None) -> Iterator[DiffusersModel]:
    """A checked folder; what is said of a local copy names the URL that it was downloaded from."""
    folder = _folder(name, revision, subfolder)
    try:
        yield inspect_folder(folder)
    except ModelError as error:
        if not is_url(name):
            raise
        given = "/".join(part.strip("/") for part in (name, subfolder) if part)
        raise ModelError(str(error).replace(str(folder), given)) from None


def _folder(name: str, revision: str | None, subfolder: str | None) -> Path:
    """The local folder of a path, or of a hub id or URL after its JSON and safetensors files are in a local cache."""
    if revision and (is_url(name) or Path(name).expanduser().is_dir()):
        raise ModelError(f"revision {revision!r} was given for the folder {name}: expected a hub id, or no revision")
    path = local_folder(name, subfolder) if is_url(name) else Path(name).expanduser()
    if path.is_file():
        raise ModelError(f"{name} is a file: expected the diffusers folder it belongs to")
    if not path.is_dir():
        path = _snapshot(name, revision, subfolder)
    folder = path / subfolder if subfolder else path
    if not folder.is_dir():
        raise ModelError(f"{name} has no subfolder {subfolder!r}: it holds {_names(path)}")
    return folder


def _snapshot(name: str, revision: str | None, subfolder: str | None) -> Path:
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(
            f"model {name} does not exist: expected a diffusers folder, a hub id such as "
            f"google/ddpm-cifar10-32, or factory:module:function"
        )
    from huggingface_hub import snapshot_download

    # of a repository with other networks or precisions only the weights that `inspect_folder` looks for
    root = f"{subfolder}/" if subfolder else ""
    wanted = ["*.json", *(f"{root}{folder}diffusion_pytorch_model*.safetensors" for folder in ("", "unet/"))]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # hub, network and cache each raise their own kinds
        reason = type(error).__name__
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"model {name} is no local folder, and the hub did not give it{at} ({reason}): check the "
            f"name, the revision, your network and, for private models, `hf auth login`"
        ) from None


def _names(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "no folders"


def _factory(name: str) -> tuple[object, str]:
    """The function behind factory:module:function, and its module's source."""
    parts = name.removeprefix(FACTORY).split(":")
    if len(parts) != 2 or not all(parts):
        raise ModelError(f"model {name!r} is no factory: expected factory:module:function")
    function, module = import_function(parts[0], parts[1], ModelError, f"model {name!r}")
    try:
        return function, inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise ModelError(
            f"model {name!r} cannot be imported from source ({error}): expected a Python file, which stands for the "
            f"weights in the manifest"
        ) from None


def _from_factory(name: str, dtype: torch.dtype, device: torch.device) -> Denoiser:
    function, _ = _factory(name)
    try:
        denoiser = function(device=device, dtype=dtype)  # type: ignore[operator]
    except Exception as error:
        raise ModelError(
            f"{name} failed with {type(error).__name__}: {error}; it is called as "
            f"function(device=torch.device, dtype=torch.dtype)"
        ) from error
    if not isinstance(denoiser, Denoiser):
        raise ModelError(f"{name} returned {type(denoiser).__name__}: expected a volgrowth.Denoiser")
    shape = denoiser.image_shape
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3) or not all(isinstance(n, int) for n in shape):
        raise ModelError(f"{name} returned a denoiser with image_shape {shape}: expected (1 or 3, height, width)")
    denoiser.image_shape = tuple(shape)
    denoiser.device, denoiser.dtype = device, dtype
    return denoiser


def _factory_digest(name: str) -> str:
    """A factory's weights are its own affair: its name and source stand for them."""
    _, source = _factory(name)
    return "sha256:" + hashlib.sha256(f"{name}\n{source}".encode()).hexdigest()
