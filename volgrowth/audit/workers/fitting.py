"""A batch size that fits the device: it is halved when memory runs out, and doubled again after a while."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from volgrowth.errors import EngineError
from volgrowth.numerics.memory import held_by_others, out_of_memory

# batches without trouble after which a halved size is doubled again
GROW_AFTER = 32

T = TypeVar("T")


class NoMemoryError(EngineError):
    """One image alone does not fit into the device's memory."""


class BatchSize:
    """The number of images that a device is given at a time.

    Attributes:
        size: the number now.
        largest: the number that the settings ask for.
    """

    def __init__(self, largest: int):
        self.size = self.largest = largest
        self._calm = 0

    def grow(self) -> None:
        """Count a batch that fitted, and double the size after `GROW_AFTER` of them."""
        self._calm += 1
        if self._calm >= GROW_AFTER and self.size < self.largest:
            self.size, self._calm = min(self.size * 2, self.largest), 0

    def halve(self) -> None:
        """Halve the size, and give memory that is cached but not used back to the device.

        Raises:
            NoMemoryError: the size was one image.
        """
        if self.size == 1:
            raise NoMemoryError(
                f"one image does not fit into the device's memory{held_by_others()}: use a device with more, a smaller "
                f"dtype, or a preset of forward passes (screen, standard), which keep less than backward ones"
            )
        self.size, self._calm = self.size // 2, 0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def each(self, items: Sequence[T], work: Callable[[Sequence[T]], None]) -> None:
        """Call `work` with runs of at most `size` items, in order, and again with fewer when memory runs out.

        Raises:
            NoMemoryError: one item does not fit.
        """
        start = 0
        while start < len(items):
            some = items[start : start + self.size]
            if _fits(work, some):
                start += len(some)
                self.grow()
            else:
                self.halve()


def _fits(work: Callable[[Sequence[T]], None], some: Sequence[T]) -> bool:
    try:
        work(some)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False  # leaves the block before anything is freed: the traceback holds the tensors
    return True
