"""A model folder behind a URL becomes a local one, downloaded once a machine.

The copy is named by what is there (URL, names, sizes and tags of the files), so weights that change are another copy.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import PATTERNS, wanted_folders
from volgrowth.storage.urls import filesystem, fix, no_bucket, reason

TAGS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "updated", "created")


class Remote(NamedTuple):
    """A file as its store lists it."""

    path: str
    size: int
    tag: str


Listing = dict[str, Remote]


def local_folder(url: str, subfolder: str | None = None) -> Path:
    """The local copy of what is needed of a model folder, or of a subfolder of one.

    Raises:
        ModelError: it is not there, or cannot be read.
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
        raise ModelError(f"model {url} cannot be downloaded ({reason(error)}): {_advice(error, url)}") from None


def _listing(files: Any, root: str, subfolder: str | None) -> Listing:
    """What is needed, by name under the root: from the folder itself, its components, and a scheduler beside it."""
    base = (subfolder or "").strip("/")
    found: Listing = {}
    for place in wanted_folders(subfolder):
        for entry in _entries(files, f"{root}/{place}".rstrip("/")):
            name = entry["name"].rpartition("/")[2]
            if entry["type"] == "file" and any(fnmatch(name, pattern) for pattern in PATTERNS):
                tag = next((str(entry[key]) for key in TAGS if entry.get(key)), "")
                found[f"{place}/{name}".lstrip("/")] = Remote(entry["name"], entry["size"], tag)
    # a scheduler beside a subfolder that is not there is no model
    return found if any(name.startswith(f"{base}/") or not base for name in found) else {}


def _entries(files: Any, path: str) -> list[dict[str, Any]]:
    """What is directly in a folder; nothing where there is none."""
    files.invalidate_cache()
    try:
        return [entry for entry in files.ls(path, detail=True) if entry["name"].rstrip("/") != path]
    except (FileNotFoundError, NotADirectoryError) as error:
        if no_bucket(error):
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
    """Of the processes of a machine that want one copy, the first downloads and the others wait for it."""
    with folder.with_suffix(".lock").open("w") as file:
        with suppress(OSError):  # a file system without locks: each downloads, and one copy stays
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(files: Any, listing: Listing, folder: Path, again: Callable[[], Listing]) -> None:
    """All files of one state of the store or none, under another name until all are there."""
    if folder.is_dir():
        return
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        for name, remote in listing.items():
            _fetch(files, remote, part / name)
        if again() != listing:
            raise OSError("it changed while it was downloaded")
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fetch(files: Any, remote: Remote, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    files.get_file(remote.path, str(target))
    with target.open("rb") as file:
        os.fsync(file.fileno())
    size = target.stat().st_size
    if size != remote.size:
        raise OSError(f"of {remote.path} came {size} of {remote.size} bytes")


def _advice(error: Exception, url: str) -> str:
    here = getattr(error, "filename", None) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if here:
        return "make room in the cache folder, or set XDG_CACHE_HOME to one that you may write to"
    return fix(error, url, "check the URL, and try again")
