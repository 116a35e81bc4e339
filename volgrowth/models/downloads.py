"""A model folder behind a URL becomes a local one, downloaded once a machine.

The copy is named by what is there (URL, names, sizes and tags of the files), so weights that change are another copy.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import PATTERNS, wanted_folders
from volgrowth.storage.failures import is_absent, store_error
from volgrowth.storage.urls import filesystem
from volgrowth.storage.whole import publish_whole

_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "updated", "created")
_HERE = "make room in the cache folder, or set XDG_CACHE_HOME to one that you may write to"


class _Remote(NamedTuple):
    """A file as its store lists it; `tag` changes with its content."""

    path: str
    size: int
    tag: str


def local_folder(url: str, subfolder: str | None = None) -> Path:
    """Return a local copy of the files that are needed of a model folder.

    Args:
        url: the folder; a `file://` URL needs no copy.
        subfolder: the folder in it that the model is in, if it is not in `url` itself.

    Returns:
        The folder that stands for `url`, in the cache of this machine (`XDG_CACHE_HOME`, else ~/.cache).

    Raises:
        ModelError: the folder is not there, or cannot be read.
    """
    try:
        files, root = filesystem(url)
        if isinstance(files, LocalFileSystem):
            return Path(root)
        listing = _listing(files, root, subfolder)
        if not listing:
            raise _nothing(files, root, url, subfolder)
        digest = hashlib.sha256(json.dumps([url, listing], sort_keys=True).encode()).hexdigest()
        folder = _cache() / digest[:32]
        if not folder.is_dir():
            with _alone(folder):
                _download(files, listing, folder, lambda: _listing(files, root, subfolder))
        return folder
    except ModelError:
        raise
    except Exception as error:  # the client of each store raises its own kinds
        here = getattr(error, "filename", None) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        where, otherwise = ("", _HERE) if here else (url, "check the URL, and try again")
        raise store_error(ModelError, f"model {url} cannot be downloaded", where, error, otherwise) from None


def _listing(files: Any, root: str, subfolder: str | None) -> dict[str, _Remote]:
    """Return the needed files by their names below the root: the model's, its components', a scheduler beside it."""
    base = (subfolder or "").strip("/")
    found = {}
    for place in wanted_folders(subfolder):
        for entry in _entries(files, f"{root}/{place}".rstrip("/")):
            name = entry["name"].rpartition("/")[2]
            if entry["type"] == "file" and any(fnmatch(name, pattern) for pattern in PATTERNS):
                tag = next((str(entry[key]) for key in _TAGS if entry.get(key)), "")
                found[f"{place}/{name}".lstrip("/")] = _Remote(entry["name"], entry["size"], tag)
    # a scheduler beside a subfolder that is not there is no model
    return found if any(name.startswith(f"{base}/") or not base for name in found) else {}


def _entries(files: Any, path: str) -> list[dict[str, Any]]:
    """Return the entries directly in a folder; none if it is missing."""
    files.invalidate_cache()
    try:
        return [entry for entry in files.ls(path, detail=True) if entry["name"].rstrip("/") != path]
    except Exception as error:
        if not is_absent(error):
            raise
        return []


def _nothing(files: Any, root: str, url: str, subfolder: str | None) -> ModelError:
    there = _entries(files, root)
    if subfolder and there:
        folders = sorted(entry["name"].rpartition("/")[2] for entry in there if entry["type"] == "directory")
        return ModelError(f"{url} has no subfolder {subfolder!r} with a model: it holds {', '.join(folders) or 'none'}")
    if files.isfile(root):
        return ModelError(f"{url} is a file: expected the URL of the diffusers folder it belongs to")
    return ModelError(
        f"model {url} does not exist or holds no JSON file: expected the URL of a diffusers folder, as "
        f"pipeline.save_pretrained(...) writes it"
    )


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "volgrowth" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process of a machine at a time download a copy; the others wait for it."""
    with folder.with_suffix(".lock").open("w") as file:
        with suppress(OSError):  # a file system without locks: each downloads, and one copy stays
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(files: Any, listing: dict[str, _Remote], folder: Path, again: Callable[[], object]) -> None:
    """Fetch all files of one state of the store, unless another process has; `again` lists the store anew."""
    if folder.is_dir():
        return
    try:
        with publish_whole(folder) as part:
            for name, remote in listing.items():
                _fetch(files, remote, part / name)
            if again() != listing:
                raise OSError("it changed while it was downloaded")
    except OSError:
        if not folder.is_dir():
            raise


def _fetch(files: Any, remote: _Remote, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    files.get_file(remote.path, str(target))
    with target.open("rb") as file:
        os.fsync(file.fileno())
    size = target.stat().st_size
    if size != remote.size:
        raise OSError(f"of {remote.path} came {size} of {remote.size} bytes")
