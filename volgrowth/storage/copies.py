"""Files of a store are copied to a folder of this machine: once for all of its processes, whole or not at all.

A copy is named by what is there (URL, names, sizes and tags of the files), so files that change make another copy.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from volgrowth.storage.failures import is_absent
from volgrowth.storage.whole import publish_whole

_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "updated", "created")


class Remote(NamedTuple):
    """A file of a store: its path in the file system, its size in bytes, and a tag that changes with its content."""

    path: str
    size: int
    tag: str

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Remote":
        """Return the file that an entry of `list_folder` describes."""
        return cls(entry["name"], entry["size"], tag_of(entry))


def tag_of(entry: dict[str, Any]) -> str:
    """Return what a store says of a file that changes with its content, such as its ETag; "" if it says nothing.

    Args:
        entry: the file as fsspec describes it.
    """
    return next((str(entry[key]).strip('"') for key in _TAGS if entry.get(key)), "")


def list_folder(files: Any, path: str) -> list[dict[str, Any]]:
    """Return the entries directly in a folder of a store, as fsspec describes them; none if the folder is missing.

    Args:
        files: a file system of `volgrowth.storage.urls.filesystem`.
        path: the folder in it, without a slash at its end.
    """
    files.invalidate_cache()
    try:
        return [entry for entry in files.ls(path, detail=True) if entry["name"].rstrip("/") != path]
    except Exception as error:
        if not is_absent(error):
            raise
        return []


def copy_here(files: Any, url: str, wanted: dict[str, Remote], again: Callable[[], object], kind: str) -> Path:
    """Return the folder of this machine that holds a copy of files of a store, downloading them if it is not there.

    Args:
        files: the file system that the files are in.
        url: the folder in the store that the copy stands for.
        wanted: the files by their names in the copy.
        again: lists the wanted files anew, after all are there: a store can change while they are downloaded.
        kind: the folder in volgrowth's cache (below `XDG_CACHE_HOME`, else ~/.cache), such as "models".

    Raises:
        OSError: the files changed or came short. The clients of stores raise errors of their own.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volgrowth" / kind
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / hashlib.sha256(json.dumps([url, wanted], sort_keys=True).encode()).hexdigest()[:32]
    if not folder.is_dir():
        with _alone(folder):
            _download(files, wanted, folder, again)
    return folder


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process of a machine at a time make a copy; the others wait for it."""
    with folder.with_suffix(".lock").open("w") as file:
        with suppress(OSError):  # a file system without locks: each downloads, and one copy stays
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(files: Any, wanted: dict[str, Remote], folder: Path, again: Callable[[], object]) -> None:
    if folder.is_dir():
        return
    try:
        with publish_whole(folder) as part:
            for name, remote in wanted.items():
                _fetch(files, remote, part / name)
            if again() != wanted:
                raise OSError("it changed while it was downloaded")
    except OSError:
        if not folder.is_dir():
            raise


def _fetch(files: Any, remote: Remote, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    files.get_file(remote.path, str(target))
    with target.open("rb") as file:
        os.fsync(file.fileno())
    size = target.stat().st_size
    if size != remote.size:
        raise OSError(f"of {remote.path} came {size} of {remote.size} bytes")
