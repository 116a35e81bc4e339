"""A store that does not answer is named on stderr while a command waits for it, so that no wait is silent."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from volgrowth.plain import print_plain
from volgrowth.storage.urls import is_url

SLOW_SECONDS = 10.0
"""Seconds that a request may take before the wait is said."""
AGAIN_SECONDS = 30.0
"""Seconds between two lines about the same host."""
LOOK_SECONDS = 1.0

_waits: dict[int, tuple[float, str]] = {}
"""When each request that is under way began, and its URL."""
_said: dict[str, float] = {}
_starting = threading.Lock()
_watch: threading.Thread | None = None


@contextmanager
def said_if_slow(name: str) -> Iterator[None]:
    """Say on stderr if the block takes long, which waits for the store of a URL; paths are not watched."""
    if not is_url(name):
        yield
        return
    _start()
    token = object()
    _waits[id(token)] = time.monotonic(), name
    try:
        yield
    finally:
        del _waits[id(token)]


def host_of(url: str) -> str:
    """Return the host that answers for a URL, without a user's name and password."""
    parts = urlsplit(url)
    if parts.scheme in ("s3", "s3a") and os.environ.get("AWS_ENDPOINT_URL"):
        parts = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _start() -> None:
    global _watch
    if _watch is None or not _watch.is_alive():  # in a forked process there is none
        with _starting:
            if _watch is None or not _watch.is_alive():
                _watch = threading.Thread(target=_look, name="volgrowth-waiting", daemon=True)
                _watch.start()


def _look() -> None:
    while True:
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        for began, url in list(_waits.values()):
            host = host_of(url)
            if now - began >= SLOW_SECONDS and now - _said.get(host, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                _said[host] = now
                said = f"waiting for {host}, which has not finished its answer for {now - began:.0f} seconds"
                print_plain(said, error=True)
