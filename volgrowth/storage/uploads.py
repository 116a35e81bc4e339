"""Uploads to an object store: one object, whole or not at all, with an end to the wait for a silent server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.exceptions import FSTimeoutError

# seconds that an upload may take whatever its size, and the bytes a second that come on top of them
UPLOAD_SECONDS, SLOWEST_UPLOAD = 90.0, 100_000
# bytes of a part of a file, and the parts that are under way at once: s3fs would hold ten of 50 MB
PART_BYTES, PARTS, MOST_PARTS = 8 << 20, 4, 5_000


def upload_bytes(files: AbstractFileSystem, path: str, data: bytes, **how: Any) -> None:
    """Put bytes into a store by one upload. Clients wait for ever for a server that does not take the bytes."""
    if not isinstance(files, AsyncFileSystem):
        return files.pipe_file(path, data, **how)
    with _timed(len(data)) as seconds:
        return files.pipe_file(path, data, timeout=seconds, **how)


def upload_file(files: AbstractFileSystem, path: str, file: IO[bytes]) -> None:
    """Put a file of the local disk, which stands at its end, into a store, in parts that appear together."""
    file.flush()
    size, how = file.tell(), dict[str, Any]()
    if "s3" in files.protocol:
        how = {"chunksize": max(PART_BYTES, size // MOST_PARTS), "max_concurrency": PARTS}
    if not isinstance(files, AsyncFileSystem):
        return files.put_file(file.name, path, **how)
    with _timed(size) as seconds:
        return files.put_file(file.name, path, timeout=seconds, **how)


@contextmanager
def _timed(size: int) -> Iterator[float]:
    """Give the seconds that an upload of so many bytes may take; raise a TimeoutError if it takes longer."""
    seconds = UPLOAD_SECONDS + size / SLOWEST_UPLOAD
    try:
        yield seconds
    except FSTimeoutError:
        raise TimeoutError(f"{size} bytes were not taken in {seconds:.0f} seconds") from None
