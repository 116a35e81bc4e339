"""What this account made, so that it can be told from what somebody else made.

A file in the account's own state folder (`XDG_STATE_HOME`, by default `~/.local/state`) has a line with the sha256 of
each manifest and receipt that was made here. Nobody else can write to it, so that what it lists was not forged.
"""

import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

_FILE = "volgrowth/made-here"

_remembered: set[str] = set()
"""Digests of this process, which need no file: the state folder may be read-only."""


def remember_made(content: dict[str, Any]) -> None:
    """Note that this account made a JSON object; where no state folder can be written, this process alone knows."""
    digest = _digest(content)
    if made_here(content):
        return
    _remembered.add(digest)
    file = _state_file()
    if file is None:
        return
    with suppress(OSError):
        file.parent.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            if is_private(handle):
                os.write(handle, f"{digest}\n".encode())
        finally:
            os.close(handle)


def made_here(content: dict[str, Any]) -> bool:
    """Return whether this account made a JSON object, as far as is known here."""
    digest = _digest(content)
    return digest in _remembered or digest in _written()


def _written() -> set[str]:
    """Return the digests in the state file; none if it is not there, or others than this account may write to it."""
    file = _state_file()
    if file is None:
        return set()
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return set()
    with os.fdopen(handle, "rb") as stream:
        return set(stream.read().decode("ascii", "replace").split()) if is_private(handle) else set()


def is_private(handle: int) -> bool:
    """Return whether an open file is a regular file of this account that no other account may write to."""
    found = os.fstat(handle)
    own = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return own and stat.S_ISREG(found.st_mode)


def _state_file() -> Path | None:
    folder = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(folder):
        return Path(folder) / _FILE
    try:
        return Path.home() / ".local/state" / _FILE
    except RuntimeError:  # the account has no home
        return None


def _digest(content: dict[str, Any]) -> str:
    # as it is read back: keys become strings, tuples lists
    return hashlib.sha256(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode()).hexdigest()
