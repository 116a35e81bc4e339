"""The files of a model, by the name that a user gives it: a folder, URL or hub id. Nothing here needs torch."""

import hashlib
import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path

from volgrowth.errors import ModelError
from volgrowth.held import MEMORY
from volgrowth.models.checkpoint_files import AVERAGES, FOLDERS, NETWORKS, PATTERNS, wanted_folders
from volgrowth.models.downloads import local_folder
from volgrowth.models.recognition import no_folder
from volgrowth.storage.file_digests import file_digest
from volgrowth.storage.urls import is_url

FACTORY = "factory:"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def files_digest(
    name: str,
    revision: str | None = None,
    subfolder: str | None = None,
    *,
    base: str | None = None,
    lora: str | None = None,
    resolution: int | None = None,
) -> str | None:
    """Return "sha256:..." over all files that `inspect_model` describes a model by, and over its arguments.

    It takes the arguments of `inspect_model`, and costs no more than reading the files. As long as the digest is the
    same, so is the description.

    Returns:
        The digest; None for a factory, whose model is known only when it is called, and for a model that is an object.

    Raises:
        ModelError: the model is not there.
    """
    if name.startswith((FACTORY, MEMORY)):
        return None
    folder = model_folder(name, revision, subfolder)
    files = dict(_files_of(folder, "model"))
    if not (folder / "model_index.json").is_file():  # a network alone takes the rest from the pipeline around it
        for steps, place in enumerate(folder.absolute().parents[:2]):
            files |= _files_around(place, f"around {steps}")
    if base:
        files |= _files_of(model_folder(base), "base")
    if lora:
        files["lora"] = lora_file(lora)
    read = {part: file_digest(path).hex() for part, path in sorted(files.items())}
    return "sha256:" + hashlib.sha256(json.dumps([name, subfolder, resolution, read]).encode()).hexdigest()


def _files_of(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of a pipeline, or of a network or a training state, by names that begin with `name`."""
    yield from _matching(folder, name)
    if (folder / "model_index.json").is_file():
        parts = [folder / part for part in (*NETWORKS, *AVERAGES, *FOLDERS)]
    else:
        parts = [path.parent for path in folder.glob("*/*config.json")]
    for part in parts:
        yield from _matching(part, f"{name}/{part.name}")


def _files_around(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of a pipeline that a folder inside it may need; other files may lie there too."""
    for file in ("model_index.json", "scheduler_config.json"):
        if (folder / file).is_file():
            yield f"{name}/{file}", folder / file
    for part in FOLDERS:
        yield from _matching(folder / part, f"{name}/{part}")


def _matching(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in PATTERNS):
            yield f"{name}/{path.name}", path


def model_folder(name: str, revision: str | None = None, subfolder: str | None = None) -> Path:
    """Return the local folder of a path, a hub id or a URL, of which the needed files are downloaded to a cache.

    Raises:
        ModelError: it is not there.
    """
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


def lora_file(name: str) -> Path:
    """Return the one safetensors file of low-rank weights.

    Raises:
        ModelError: there is none, or several.
    """
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
