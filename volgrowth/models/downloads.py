"""A model folder behind a URL becomes a local one, downloaded once a machine."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from volgrowth.credentials import hide
from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import PATTERNS, wanted_folders
from volgrowth.storage.copies import Remote, copy_here, list_folder
from volgrowth.storage.failures import is_of_this_disk, store_error
from volgrowth.storage.urls import filesystem

_ROOM = "make room in the cache folder, or set XDG_CACHE_HOME to one that you may write to"


def local_folder(url: str, subfolder: str | None = None) -> Path:
    """Return a local copy of the files that are needed of a model folder.

    Args:
        url: the folder; a `file://` URL needs no copy.
        subfolder: the folder in it that the model is in, if it is not in `url` itself.

    Returns:
        The folder that stands for `url`.

    Raises:
        ModelError: the folder is not there, or cannot be read.
    """
    url = hide(url)
    try:
        files, root = filesystem(url)
        if isinstance(files, LocalFileSystem):
            return Path(root)
        wanted = _wanted(files, root, subfolder)
        if not wanted:
            raise _nothing(files, root, url, subfolder)
        return copy_here(files, url, wanted, lambda: _wanted(files, root, subfolder), "models")
    except ModelError:
        raise
    except Exception as error:  # the client of each store raises its own kinds
        name, otherwise = ("", _ROOM) if is_of_this_disk(error) else (url, "check the URL, and try again")
        raise store_error(ModelError, f"model {url} cannot be downloaded", name, error, otherwise) from None


def _wanted(files: Any, root: str, subfolder: str | None) -> dict[str, Remote]:
    """Return the needed files by their names below the root: the model's, its components', a scheduler beside it."""
    base = (subfolder or "").strip("/")
    found = {}
    for folder in wanted_folders(subfolder):
        for entry in list_folder(files, f"{root}/{folder}".rstrip("/")):
            name = entry["name"].rpartition("/")[2]
            if entry["type"] == "file" and any(fnmatch(name, pattern) for pattern in PATTERNS):
                found[f"{folder}/{name}".lstrip("/")] = Remote.of(entry)
    # a scheduler beside a subfolder that is not there is no model
    return found if any(name.startswith(f"{base}/") or not base for name in found) else {}


def _nothing(files: Any, root: str, url: str, subfolder: str | None) -> ModelError:
    there = list_folder(files, root)
    if subfolder and there:
        folders = sorted(entry["name"].rpartition("/")[2] for entry in there if entry["type"] == "directory")
        return ModelError(f"{url} has no subfolder {subfolder!r} with a model: it holds {', '.join(folders) or 'none'}")
    if files.isfile(root):
        return ModelError(f"{url} is a file: expected the URL of the diffusers folder it belongs to")
    return ModelError(
        f"model {url} does not exist or holds no JSON file: expected the URL of a diffusers folder, as "
        f"pipeline.save_pretrained(...) writes it"
    )
