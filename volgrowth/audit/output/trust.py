"""Whether a command may use the model and the data sets that an output names.

A manifest names a model, which may be code that is run, and data sets, which are opened and shown. Somebody else's
manifest may name anything. So they are used only if this account ran `volgrowth audit` on the output, where the user
named both, or if the user says that the output is trusted.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from volgrowth.audit.output.manifest import MANIFEST
from volgrowth.errors import OutputError
from volgrowth.storage.made_here import made_here, remember_made
from volgrowth.storage.store import Store


def remember_output(store: Store) -> None:
    """Note that this account audited into an output, with the model and the data sets that its manifest names."""
    remember_made(store.read_json(MANIFEST))


def refuse_strangers(url: str, manifest: dict[str, Any], trusted: bool, purpose: str) -> None:
    """Raise an OutputError if the model and the data sets that a manifest names must not be used.

    Args:
        url: the output.
        manifest: its manifest.
        trusted: True if the user said that the output is trusted.
        purpose: what they are wanted for, such as "drawing samples".
    """
    if trusted or made_here(manifest):
        return
    model, data, held_out = (manifest.get(name) or {} for name in ("model", "data", "holdout"))
    named = [f"the model {model.get('name')}", f"the data {data.get('name')}"]
    if held_out:
        named.append(f"the held-out data {held_out.get('name')}")
    raise OutputError(
        f"{url} was not audited by this account on this machine, and {purpose} would use what it names "
        f"({', '.join(named)}): if you trust who made it, add --trust-output (in Python trust_output=True), or repeat "
        f"its `volgrowth audit`, which names them"
    )


def refuse_ways_out(store: Store, manifest: dict[str, Any], trusted: bool) -> None:
    """Raise an OutputError if somebody else's output on this disk holds a link that leads out of it, or a pipe.

    Its tables are read and its pages are written without trust, and through a link these would be other files.

    Args:
        store: the output.
        manifest: its manifest.
        trusted: True if the user said that the output is trusted.
    """
    if not store.local or trusted or made_here(manifest):
        return
    root = Path(store.root).resolve()
    for entry in _entries(store.root):
        inside = Path(os.path.realpath(entry.path)).is_relative_to(root)
        if not inside or not (os.path.isfile(entry.path) or os.path.isdir(entry.path)):
            found = f"a link to {os.readlink(entry.path)}" if entry.is_symlink() else "neither a file nor a folder"
            raise OutputError(
                f"{store.url} was not audited by this account on this machine, and {entry.path} in it is {found}: "
                f"put a file in its place, or repeat the same `volgrowth audit`, which makes the output yours"
            )


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield everything in a folder and below; links to folders are not followed."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError as error:
        raise OutputError(f"{folder} cannot be listed ({error.strerror}): check its permissions") from None
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path)
