"""The receipt of a curated data set, and how the data set is removed again by it.

The receipt lies in the folder of the data set and lists each file that was written, with size and hash. It is as easily
forged as any file. So `undo_list` removes a folder only if this account wrote its receipt
(`volgrowth.storage.made_here`) and if nothing lies in it but the files of the receipt, as they were written. Links are
not followed, and pipes are not opened.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path, PurePath
from typing import Self

from volgrowth.errors import OutputError
from volgrowth.storage.failures import store_reason
from volgrowth.storage.made_here import made_here, remember_made
from volgrowth.storage.whole import hidden_name
from volgrowth.version import VERSION

RECEIPT = ".curation.json"
"""Name of the receipt in the destination; it is hidden, so that no loader takes it for data."""

Files = dict[str, tuple[int, str]]
"""Size and sha256 of each file, by its path below the folder."""


@dataclass(frozen=True)
class Receipt:
    """Record of a curated data set, kept in its folder.

    Attributes:
        audit: name of the audit that the list was made from.
        data: name of the audited data set.
        kind: form in which the data set was written, a key of `WRITERS`.
        rows: number of rows of the curated data set.
        actions: number of rows of each action in the list.
        files: size and sha256 of each file, by its path.
        volgrowth: version that wrote the data set.
    """

    audit: str
    data: str
    kind: str
    rows: int
    actions: dict[str, int]
    files: Files
    volgrowth: str = VERSION

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the receipt in the folder of a curated data set.

        Raises:
            OutputError: the folder holds no receipt, or none that `volgrowth curate` can have written.
        """
        try:
            with _open_regular(folder / RECEIPT) as stream:
                content = json.load(stream)
            files = {name: (int(size), str(sha256)) for name, (size, sha256) in content["files"].items()}
            return cls(**{**content, "files": files})
        except (FileNotFoundError, NotADirectoryError):
            raise OutputError(
                f"{folder} holds no {RECEIPT}: expected a folder that `volgrowth curate --apply` wrote; nothing was "
                "removed"
            ) from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise OutputError(
                f"{folder / RECEIPT} cannot be read ({store_reason(error)}): nothing was removed; remove "
                f"{folder} yourself"
            ) from None

    def write(self, folder: Path) -> None:
        """Write the receipt into the folder of the data set, and note that this account did."""
        content = asdict(self)
        (folder / RECEIPT).write_text(json.dumps(content, indent=2) + "\n")
        remember_made(content)


def sealed_files(folder: Path) -> Files:
    """Return size and sha256 of every file that was written to a folder, each written through to the disk."""
    return {name: _sealed(folder / name) for name in _below(folder) if not name.endswith("/")}


def undo_list(destination: str, *, trust_output: bool = False) -> Receipt:
    """Remove a data set that `apply_list` wrote, if nothing in it has changed since.

    Args:
        destination: its folder.
        trust_output: remove it although another account, or another machine, wrote it.

    Returns:
        The receipt of what was removed.

    Raises:
        OutputError: the folder is a link or has no receipt, this account did not write it, or something in it has
            changed; nothing is removed then.
    """
    folder = Path(destination).expanduser().absolute()
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link to {os.readlink(folder)}: name the folder itself; nothing was removed")
    receipt = Receipt.read(folder)
    if not trust_output and not made_here(asdict(receipt)):
        raise OutputError(
            f"{folder} was not written by `volgrowth curate --apply` of this account on this machine, so its {RECEIPT} "
            "may be forged: nothing was removed; add --trust-output if you trust who wrote it, or remove "
            "the folder yourself"
        )
    try:
        _refuse_others(folder, receipt)
        hidden = hidden_name(folder)
        os.rename(folder, hidden)
    except OSError as error:
        raise OutputError(f"{folder} cannot be read ({store_reason(error)}): nothing was removed") from None
    _remove(hidden, receipt)
    return receipt


def _refuse_others(folder: Path, receipt: Receipt) -> None:
    """Raise an OutputError if a folder holds anything but its receipt and the files of that, as they were written."""
    expected = {*receipt.files, RECEIPT}
    folders = {f"{parent}/" for name in expected for parent in PurePath(name).parents} - {"./"}
    found = set(_below(folder))
    for name in sorted(expected | found):
        if name not in found:
            change = "missing"
        elif name.endswith("/"):
            change = "" if name in folders else "not of its writing"
        elif name not in expected or not stat.S_ISREG((folder / name).lstat().st_mode):
            change = "not of its writing"
        else:
            change = "" if name == RECEIPT or _sealed(folder / name) == receipt.files[name] else "changed"
        if change:
            raise OutputError(
                f"{folder} is not what `volgrowth curate` wrote, {name.rstrip('/')!r} is {change}: nothing was "
                "removed; take out what you need and remove the folder yourself"
            )


def _remove(folder: Path, receipt: Receipt) -> None:
    """Remove the files of a receipt, and the folders that are empty then."""
    try:
        for name in (*receipt.files, RECEIPT):
            os.unlink(folder / name)
        for name in sorted((name for name in _below(folder) if name.endswith("/")), key=len, reverse=True):
            os.rmdir(folder / name)
        os.rmdir(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} still holds something ({store_reason(error)}), which came while the files of the receipt were "
            "removed: take out what you need and remove the folder yourself"
        ) from None


def _below(folder: Path, prefix: str = "") -> Iterator[str]:
    """Yield the names of everything in a folder and below, folders with a slash at the end; links are not followed."""
    with os.scandir(folder / prefix) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield f"{name}/"
                yield from _below(folder, f"{name}/")
            else:
                yield name


def _sealed(path: Path) -> tuple[int, str]:
    """Return size and sha256 of a file, after writing it through to the disk."""
    with _open_regular(path) as stream:
        os.fsync(stream.fileno())
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return os.fstat(stream.fileno()).st_size, sha256


def _open_regular(path: Path) -> BufferedReader:
    """Open a file, or raise an OSError if it is a link, a pipe or a device."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("it is not a regular file")
    return os.fdopen(handle, "rb")
