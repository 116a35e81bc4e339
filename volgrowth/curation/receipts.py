"""The receipt of a curated data set, which lies in it and lists each file that was written, with size and hash.

A receipt is as easily forged as any file: by one that this account did not write (`volgrowth.storage.made_here`),
nothing is removed unless its writer is trusted.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, Self

from volgrowth.errors import OutputError
from volgrowth.storage.failures import store_reason
from volgrowth.storage.made_here import remember_made
from volgrowth.version import VERSION

RECEIPT = ".curation.json"
"""Name of the receipt in the destination; it is hidden, so that no loader takes it for data."""

Files = dict[str, tuple[int, str]]
"""Size and sha256 of each file, by its path below the folder."""
NO_RECEIPT = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What bytes raise that are no receipt."""


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
        tags: what the object store that holds the files said of each, such as its ETag; empty on a disk.
    """

    audit: str
    data: str
    kind: str
    rows: int
    actions: dict[str, int]
    files: Files
    volgrowth: str = VERSION
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parsed(cls, data: bytes) -> Self:
        """Return the receipt in the bytes of its file.

        Raises:
            ValueError, TypeError, KeyError, AttributeError or RecursionError: that is no receipt.
        """
        content = json.loads(data)
        files = {name: (int(size), str(sha256)) for name, (size, sha256) in content["files"].items()}
        return cls(**{**content, "files": files})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the receipt in the folder of a curated data set.

        Raises:
            OutputError: the folder holds no receipt, or none that `volgrowth curate` can have written.
        """
        try:
            with open_regular(folder / RECEIPT) as stream:
                return cls.parsed(stream.read())
        except (FileNotFoundError, NotADirectoryError):
            raise OutputError(
                f"{folder} holds no {RECEIPT}: expected a folder that `volgrowth curate --apply` wrote; nothing was "
                "removed"
            ) from None
        except (OSError, *NO_RECEIPT) as error:
            raise unreadable_receipt(f"{folder / RECEIPT}", f"{folder}", error) from None

    @property
    def content(self) -> dict[str, Any]:
        """What the file holds; receipts of a disk are what they were before stores were written to."""
        content = asdict(self)
        if not self.tags:
            del content["tags"]
        return content

    def to_json(self) -> bytes:
        """Return the bytes of the file, and note that this account wrote it."""
        remember_made(self.content)
        return f"{json.dumps(self.content, indent=2)}\n".encode()

    def write(self, folder: Path) -> None:
        """Write the receipt into the folder of the data set, and note that this account did."""
        (folder / RECEIPT).write_bytes(self.to_json())


def unreadable_receipt(file: str, folder: str, error: Exception) -> OutputError:
    """Return the error that the receipt in a folder cannot be read."""
    return OutputError(f"{file} cannot be read ({store_reason(error)}): nothing was removed; remove {folder} yourself")


def refuse_strange(folder: str, name: str, made: bool) -> None:
    """Raise an OutputError unless this account made what lists the files that are to be removed.

    Args:
        folder: path or URL of the data set.
        name: the file in it that lists them.
        made: whether this account made that file, or whoever did is trusted.
    """
    if not made:
        raise OutputError(
            f"{folder} was not written by `volgrowth curate --apply` of this account on this machine, so its {name} "
            "may be forged: nothing was removed; add --trust-output if you trust who wrote it, or remove "
            "the folder yourself"
        )


def not_as_written(folder: str, name: str, change: str) -> OutputError:
    """Return the error that something in a curated data set is missing, changed, or not of its writing."""
    return OutputError(
        f"{folder} is not what `volgrowth curate` wrote, {name.rstrip('/')!r} is {change}: nothing was "
        "removed; take out what you need and remove the folder yourself"
    )


def sealed_files(folder: Path) -> Files:
    """Return size and sha256 of every file that was written to a folder, each written through to the disk."""
    return {name: seal_file(folder / name) for name in files_below(folder) if not name.endswith("/")}


def files_below(folder: Path, prefix: str = "") -> Iterator[str]:
    """Yield the names of everything in a folder and below, folders with a slash at the end; links are not followed."""
    with os.scandir(folder / prefix) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield f"{name}/"
                yield from files_below(folder, f"{name}/")
            else:
                yield name


def seal_file(path: Path) -> tuple[int, str]:
    """Return size and sha256 of a file, after writing it through to the disk."""
    with open_regular(path) as stream:
        os.fsync(stream.fileno())
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return os.fstat(stream.fileno()).st_size, sha256


def open_regular(path: Path) -> BufferedReader:
    """Open a file, or raise an OSError if it is a link, a pipe or a device."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("it is not a regular file")
    return os.fdopen(handle, "rb")
