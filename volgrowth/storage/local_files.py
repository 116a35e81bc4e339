"""Files on a local disk: folders are walked once, and a file is known under whatever name leads to it."""

import fnmatch
import os
from collections.abc import Callable, Iterator
from glob import has_magic
from heapq import heappop, heappush
from pathlib import Path
from typing import NamedTuple

from volgrowth.errors import DataError


class Found(NamedTuple):
    """A file that a listing shows.

    Attributes:
        name: relative to the place, with slashes; a folder that a pattern stands for has one at its end.
        size: in bytes.
        tag: what changes when the file is written again, if the place tells: its time on a disk, its ETag in a store.
        identity: what two names of one file have in common (device and inode); None in a store, and of a dangling link.
        link: "soft" for a name that leads through a symbolic link, "hard" for one of several names, else empty.
    """

    name: str
    size: int
    tag: str = ""
    identity: tuple[int, int] | None = None
    link: str = ""


def walk_folder(root: str, repeated: Callable[[str], None]) -> Iterator[Found]:
    """Yield the files in a folder and below: first those below real folders, then those behind links, by their names.

    Each folder is walked once, so that links in circles end.

    Args:
        root: the folder's path, without links in it.
        repeated: called with the name of each link to a folder that is walked anyway, or that holds this one.

    Raises:
        DataError: a folder cannot be listed.
    """
    links: list[tuple[str, str]] = []
    seen = {root}
    yield from _below(root, "", root, seen, links, repeated)
    while links:
        name, path = heappop(links)
        real = os.path.realpath(path)
        if real in seen or f"{root}/".startswith(f"{real.rstrip('/')}/"):
            repeated(name)
        else:
            seen.add(real)
            yield from _below(path, f"{name}/", real, seen, links, repeated)


def matching_paths(folder: str, pattern: str) -> Iterator[str]:
    """Yield the paths in a folder that match a pattern of `*`, `?` and `[...]`, hidden ones if it names them.

    Raises:
        DataError: a folder that the pattern leads to cannot be listed; `glob` of Python would leave it out.
    """
    part, _, rest = pattern.partition("/")
    if not has_magic(part):
        found = [os.path.join(folder, part)] if os.path.lexists(os.path.join(folder, part)) else []
    else:
        hidden = part.startswith(".")
        try:
            names = [name for name in os.listdir(folder) if hidden or not name.startswith(".")]
        except OSError as error:
            raise _unlisted(folder, error) from None
        found = [os.path.join(folder, name) for name in fnmatch.filter(names, part)]
    for path in found:
        if not rest:
            yield path
        elif os.path.isdir(path):
            yield from matching_paths(path, rest)


def _unlisted(folder: str, error: OSError) -> DataError:
    return DataError(f"{folder} cannot be listed: {error.strerror}. Check its permissions")


def _below(
    folder: str, prefix: str, real: str, seen: set[str], links: list[tuple[str, str]], repeated: Callable[[str], None]
) -> Iterator[Found]:
    """Yield the files in a folder and below, and put links to folders on a heap.

    Args:
        folder: the folder's path.
        prefix: what names of files in it begin with.
        real: its path without links.
        seen: the real paths of folders that were walked, to which those below this one are added.
        links: name and path of each link to a folder.
        repeated: called with the name of each folder that was walked already.
    """
    waiting = [(folder, prefix, real)]
    while waiting:
        folder, prefix, real = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if not _is_folder(entry):
                        yield found_file(entry.path, name, entry.is_symlink() or folder != real)
                    elif entry.is_symlink():
                        heappush(links, (name, entry.path))
                    elif (below := f"{real.rstrip('/')}/{entry.name}") in seen:
                        repeated(name)
                    else:
                        seen.add(below)
                        waiting.append((entry.path, f"{name}/", below))
        except OSError as error:
            raise _unlisted(folder, error) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # links that lead to each other


def found_file(path: str | Path, name: str, linked: bool) -> Found:
    """Return a file as a listing shows it; `linked` says that its path leads through a link."""
    try:
        stat = os.stat(path)
    except OSError:
        return Found(name, 0)  # a broken link: a row, whose error says so
    link = "soft" if linked else "hard" if stat.st_nlink > 1 else ""
    return Found(name, stat.st_size, str(stat.st_mtime_ns), (stat.st_dev, stat.st_ino), link)
