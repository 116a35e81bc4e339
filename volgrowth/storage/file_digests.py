"""sha256 of large local files, computed once for all processes of a machine: a node's workers share one model.

A digest is noted in volgrowth's cache folder under what tells the file and its state apart: machine, path, device,
inode, size, and the times of its last change. A process that finds the note does not read the file; while one process
computes a digest, the others wait for it. A note counts for an hour, and only if this account alone can write to it. A
file that was changed within the last seconds gets none, since times of file systems are coarse.
"""

import fcntl
import hashlib
import json
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from volgrowth.storage.made_here import is_private

# smaller files are read each time, which takes less than a tenth of a second
SMALL_BYTES = 1 << 26
SETTLED_SECONDS = 2.0
COUNTS_SECONDS = 3600.0


def file_digest(path: Path) -> bytes:
    """Return the sha256 of a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        before = os.fstat(file.fileno())
        if before.st_size < SMALL_BYTES:
            return hashlib.file_digest(file, "sha256").digest()
        note = _open_note(_mark(path, before))
        if note is None:
            return hashlib.file_digest(file, "sha256").digest()
        with note:
            with suppress(OSError):  # a file system without locks: each process computes the digest
                fcntl.flock(note, fcntl.LOCK_EX)
            if known := _noted(note):
                return known
            digest = hashlib.file_digest(file, "sha256").digest()
            settled = time.time() - max(before.st_mtime, before.st_ctime) > SETTLED_SECONDS
            if settled and _mark(path, os.fstat(file.fileno())) == _mark(path, before):
                with suppress(OSError):  # a full disk: the next process computes it again
                    note.truncate(0)
                    note.seek(0)
                    note.write(digest)
                    note.flush()
            return digest


def _mark(path: Path, found: os.stat_result) -> str:
    """Return the name of the note for a file in its present state."""
    state = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    return hashlib.sha256(json.dumps([platform.node(), str(path.resolve()), state]).encode()).hexdigest()[:32]


def _open_note(name: str) -> BinaryIO | None:
    """Open a note for reading and writing, empty if it is new; None where this account can keep no notes."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volgrowth" / "digests"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _forget_old(folder)
        handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except (OSError, RuntimeError):  # no home, or one that is read-only
        return None
    if is_private(handle):
        return os.fdopen(handle, "r+b")
    os.close(handle)
    return None


def _noted(note: BinaryIO) -> bytes | None:
    """Return the digest in a note; None if it is empty, cut off, or too old."""
    age = time.time() - os.fstat(note.fileno()).st_mtime
    digest = note.read(hashlib.sha256().digest_size + 1)
    return digest if len(digest) == hashlib.sha256().digest_size and 0 <= age < COUNTS_SECONDS else None


def _forget_old(folder: Path) -> None:
    for note in folder.iterdir():
        with suppress(OSError):  # another process was faster
            if time.time() - note.stat().st_mtime > 24 * COUNTS_SECONDS:
                note.unlink()
