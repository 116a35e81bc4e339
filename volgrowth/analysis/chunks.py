"""Chunks of rows, worked on by as many threads as there are cores: NumPy frees the interpreter while it computes."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

CHUNK = 16_384
"""Rows of a chunk: few enough that what is computed of them stays in a core's own memory."""


def for_chunks(count: int, work: Callable[[slice], None]) -> None:
    """Call `work` with slices that divide `count` rows; each call may only write what belongs to its own rows."""
    chunks = [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    if len(chunks) < 2:
        for chunk in chunks:
            work(chunk)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(work, chunks):  # raises what a chunk raised
            pass
