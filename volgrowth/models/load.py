"""Load a model by the name that a user gives: a folder, URL, hub id or factory becomes a Denoiser."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch

from volgrowth.errors import ModelError, kind_and_line
from volgrowth.models.checkpoint_files import PATTERNS, wanted_folders
from volgrowth.models.downloads import local_folder
from volgrowth.models.edm.model import EDMFolder, inspect_edm, is_edm
from volgrowth.models.factories import FACTORY, inspect_factory, load_factory
from volgrowth.models.pipelines.inspection import inspect_folder
from volgrowth.models.pipelines.model_folder import DiffusersFolder, ModelOptions
from volgrowth.models.recognition import no_folder
from volgrowth.numerics import Denoiser
from volgrowth.records import ModelInfo
from volgrowth.storage.urls import is_url

DType = Literal["float32", "float64", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(DType)}
FACTORY_LOADS = "a factory loads what it needs itself"
T = TypeVar("T")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    if name.startswith(FACTORY):
        _refuse_beside(
            FACTORY_LOADS, revision=revision, subfolder=subfolder, base=base, lora=lora, resolution=resolution
        )
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
    if name.startswith(FACTORY):
        _refuse_beside(
            FACTORY_LOADS, revision=revision, subfolder=subfolder, base=base, lora=lora, resolution=resolution
        )
        return inspect_factory(name)
    with _inspected(name, revision, subfolder, base, lora, resolution) as model:
        return model.info(name)


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
    folder = _folder(name, revision, subfolder)
    try:
        if is_edm(folder):
            _refuse_beside("an EDM network is whole and of one size", base=base, lora=lora, resolution=resolution)
            yield _checked(name, lambda: inspect_edm(folder))
        else:
            options = ModelOptions(
                base=_folder(base, None, None) if base else None,
                lora=_lora_file(lora) if lora else None,
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


def _folder(name: str, revision: str | None, subfolder: str | None) -> Path:
    """Return the local folder of a path, a hub id or a URL, of which the needed files are downloaded to a cache."""
    if revision and (is_url(name) or Path(name).expanduser().is_dir()):
        raise ModelError(f"revision {revision!r} was given for the folder {name}: expected a hub id, or no revision")
    path = local_folder(name, subfolder) if is_url(name) else Path(name).expanduser()
    if path.is_file():
        raise no_folder(path, name)
    if path.is_symlink() and not path.exists():
        raise ModelError(f"{name} is a link to {path.readlink()}, which is not there: name the folder itself")
    if not path.is_dir():
        wanted = [f"{place}/{file}".lstrip("/") for place in wanted_folders(subfolder) for file in PATTERNS]
        path = _snapshot(name, revision, wanted)
    folder = path / subfolder if subfolder else path
    if not folder.is_dir():
        raise ModelError(f"{name} has no subfolder {subfolder!r}: it holds {_names(path)}")
    return folder


def _lora_file(name: str) -> Path:
    """Return the one safetensors file of low-rank weights."""
    path = local_folder(name) if is_url(name) else Path(name).expanduser()
    if not path.exists():
        path = _snapshot(name, None, ["*.safetensors", "*.json"])
    if path.is_file() and path.suffix == ".safetensors":
        return path
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if len(found) != 1:
        raise ModelError(f"lora {name} holds {len(found)} safetensors files: expected one file, or a folder with one")
    return found[0]


def _snapshot(name: str, revision: str | None, wanted: list[str]) -> Path:
    """Download files of a hub id whose paths match one of the patterns, and return their folder."""
    if not HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(
            f"model {name} does not exist{_near(name)}: expected a diffusers folder, a hub id such as "
            f"google/ddpm-cifar10-32, or factory:module:function"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # hub, network and cache each raise their own kinds
        reason = type(error).__name__
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"model {name} is no local folder{_near(name)}, and the hub did not give it{at} ({reason}): check the "
            f"name, the revision, your network and, for private models, `hf auth login`"
        ) from None


def _near(name: str) -> str:
    """Return ` (there is OTHER)` if a folder beside the one that was named has nearly that name, else nothing."""
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        return ""
    here = {other.name.lower(): other.name for other in path.parent.iterdir() if other.is_dir()}
    found = get_close_matches(path.name.lower(), here, 1, 0.8)
    return f" (there is {path.parent / here[found[0]]})" if found else ""


def _names(folder: Path) -> str:
    """Return the names of the folders in a folder, for an error."""
    return ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "no folders"
