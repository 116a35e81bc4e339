"""Rows become pixels and the columns that pixels alone give, here or in a process that does nothing else.

`python -c "from volgrowth.sources.pixels.described import serve; serve()"` answers requests on its standard input until
that is closed. It needs no torch, and none of its decoders can end or slow down the process that asks.
"""

import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from volgrowth.records import Failure, Status
from volgrowth.sources.base import Row, bytes_hash
from volgrowth.sources.pixels.bad_image import BadImage
from volgrowth.sources.pixels.decoding import decode_image
from volgrowth.sources.pixels.features import features_of_each

LENGTH_BYTES = 8

Described = tuple[np.ndarray | None, dict[str, Any]]
"""The uint8 pixels (C, H, W) of a row, None if it has none, and its columns: features, or status and error."""


def describe_rows(
    rows: Sequence[Row],
    failures: Mapping[int, Failure],
    problems: Mapping[int, str],
    shape: tuple[int, int, int],
    max_pixels: int,
    png_method: int,
) -> list[Described]:
    """Decode rows, or note why they have no pixels that the model can be shown, and measure their features.

    Args:
        rows: the rows.
        failures: rows that are recorded with the failure, and not looked at.
        problems: why the model cannot be given the conditions of rows.
        shape: (C, H, W) of the model's images.
        max_pixels: the largest width * height that is decoded.
        png_method: how `png_bytes` is measured: see `volgrowth.sources.pixels.features`.
    """
    found = [_decode(row, failures.get(row.row), problems.get(row.row), shape, max_pixels) for row in rows]
    measured = iter(features_of_each([pixels for pixels, _ in found if pixels is not None], png_method))
    return [(pixels, known if pixels is None else {**known, **next(measured)}) for pixels, known in found]


def _decode(
    row: Row, failure: Failure | None, problem: str | None, shape: tuple[int, int, int], max_pixels: int
) -> Described:
    known: dict[str, Any] = {"row": row.row, "image_id": row.image_id, "source": row.source}
    known["bytes_hash"] = bytes_hash(row.data or b"")
    if failure:
        return None, {**known, "status": failure.status.value, "error": failure.reason}
    try:
        if row.data is None:
            raise BadImage(row.status, row.error or "no image")
        pixels = decode_image(row.data, shape, max_pixels)
        if problem:
            raise BadImage(Status.WRONG_CONDITION, problem)
    except BadImage as bad:
        return None, {**known, "status": bad.status.value, "error": bad.message}
    return pixels, {**known, "status": Status.OK.value}


def serve() -> None:
    """Answer requests, which are pickled arguments of `describe_rows`, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks, which ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints must not get among the answers
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, asked), daemon=True).start()
    while True:
        try:
            answer: Any = describe_rows(*pickle.loads(asked.get()))
        except Exception as error:  # such as MemoryError: raised where the rows were wanted
            answer = error
        send(answers, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))


def _listen(stream: IO[bytes], asked: "queue.SimpleQueue[bytes]") -> None:
    """Take requests, and end the process with the one that asks, also in the middle of an image."""
    while (message := receive(stream)) is not None:
        asked.put(message)
    os._exit(0)


def send(stream: IO[bytes], message: bytes) -> None:
    """Write a message, with its length before it."""
    stream.write(len(message).to_bytes(LENGTH_BYTES, "little"))
    stream.write(message)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes | None:
    """Read a message, or None if the other end is closed."""
    length = stream.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    size = int.from_bytes(length, "little")
    message = stream.read(size)
    return message if len(message) == size else None
