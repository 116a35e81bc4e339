"""Rows are read and decoded in threads ahead of the device: Pillow and its codecs release Python's lock.

One thread reads, since a source is a stream. Others decode, some rows at a time, since handing over a single row costs
as much as decoding a small one, and so do NumPy's calls; large ones are handed over before they are many. The decoded
rows are taken in the order in which they were read.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE, AT_ONCE_BYTES = 32, 1 << 20
"""Rows that are handed over together, or fewer if they have more bytes."""
MOST_THREADS = 16


def decoding_threads(device: torch.device, workers_here: int = 1, cores_here: int | None = None) -> int:
    """Return how many threads decode for one worker.

    Args:
        device: on a GPU the worker gets its share of this machine's cores, and on a CPU one thread, since every core
            has a worker that computes.
        workers_here: the workers on this machine. A process cannot see the others: Ray shows it only its own GPU.
        cores_here: how many cores of this machine may be used: a container sees all, and Ray knows its limit.
    """
    if device.type != "cuda":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, min(cores, cores_here or cores) // workers_here))


class Ahead(Generic[T, R]):
    """Applies `work` to the items of `source` in threads, at most about `depth` items ahead of the taker.

    Items of the source can be large: no more of them wait than the threads will work on next, and few of them are
    gathered if they have more than `AT_ONCE_BYTES` together. Errors of `source` and of `work` are raised to the taker.

    Args:
        source: the items.
        work: called with a few items at a time, in the threads; returns one result for each.
        threads: how many threads work.
        depth: how many results wait for the taker, about.
        weigh: the bytes of an item.

    Attributes:
        starved: seconds that the taker waited.
        held_up: seconds that the reader waited for room.
    """

    def __init__(
        self,
        source: Iterable[T],
        work: Callable[[list[T]], list[R]],
        threads: int = 1,
        depth: int = 2 * AT_ONCE,
        weigh: Callable[[T], int] = lambda item: 0,
    ):
        self.source, self.work, self.threads, self.weigh = source, work, threads, weigh
        self.starved = self.held_up = 0.0
        self._ready: queue.Queue[Future[list[R]] | None] = queue.Queue(-(-depth // AT_ONCE) + threads - 1)
        self._room, self._stopped = threading.Semaphore(threads + 1), threading.Event()

    def items(self) -> Generator[R, None, None]:
        """Yield the results in the order of the source. Closing the generator ends the threads."""
        pool = ThreadPoolExecutor(1 + self.threads, "volgrowth-decode")
        try:
            pool.submit(self._read, pool)
            while (some := self._next()) is not None:
                yield from some
        finally:  # also of a signal that came while a thread began
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def _next(self) -> list[R] | None:
        began = time.monotonic()
        try:
            future = self._ready.get()
            return None if future is None else future.result()
        finally:
            self.starved += time.monotonic() - began

    def _read(self, pool: ThreadPoolExecutor) -> None:
        """Hand over all items, and then None or, as a failed result, what ended this."""
        end: Future[list[R]] | None = None
        try:
            items, more = iter(self.source), True
            while more and not self._stopped.is_set():
                some = list[T]()
                try:
                    more = self._gather(items, some)
                finally:  # items that came before an error are kept
                    self._hand_over(some, pool)
        except BaseException as error:
            end = Future()
            end.set_exception(error)
        self._put(end)

    def _hand_over(self, some: list[T], pool: ThreadPoolExecutor) -> None:
        if some and self._patiently(lambda wait: self._room.acquire(timeout=wait)):
            began = time.monotonic()
            self._put(pool.submit(self._work, some))
            self.held_up += time.monotonic() - began

    def _gather(self, items: Iterator[T], some: list[T]) -> bool:
        """Add items to `some` until they are enough to be handed over. False if there are no more."""
        size = 0
        for item in items:
            some.append(item)
            size += self.weigh(item)
            if len(some) == AT_ONCE or size > AT_ONCE_BYTES:
                return True
        return False

    def _work(self, some: list[T]) -> list[R]:
        try:
            return [] if self._stopped.is_set() else self.work(some)
        finally:
            self._room.release()

    def _put(self, entry: "Future[list[R]] | None") -> None:
        def put(wait: float) -> bool:
            try:
                self._ready.put(entry, timeout=wait)
            except queue.Full:
                return False
            return True

        self._patiently(put)

    def _patiently(self, attempt: Callable[[float], bool]) -> bool:
        """Repeat an attempt until it succeeds (True) or nobody takes any more results (False)."""
        while not self._stopped.is_set():
            if attempt(0.1):
                return True
        return False
