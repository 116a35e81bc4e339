"""A device that has no memory left: how that is told from other errors, and work that goes on in smaller slices."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from volgrowth.numerics.forward import say_once

# what torch says of the CPU's allocator; of cuBLAS, cuDNN and cuSOLVER; and of memory that its own allocator never had
SAID = (
    "can't allocate memory",
    "ALLOC_FAILED",
    "CUDA error: out of memory",
    "CUDACachingAllocator",
    "MPS backend out of memory",
)

# share of a GPU's memory outside this process's allocator that is not its own context any more
OTHERS = 0.1


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the device, or this machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in SAID)


def held_by_others() -> str:
    """Say how much of the GPU's memory other processes hold, in brackets, if that is a tenth of it or more."""
    if not torch.cuda.is_available():
        return ""
    free, whole = torch.cuda.mem_get_info()
    others = whole - free - torch.cuda.memory_reserved()
    if others < OTHERS * whole:
        return ""
    return f" ({others / 2**30:.1f} of {whole / 2**30:.1f} GiB are held by other processes, which nvidia-smi names)"


class Sliced:
    """A function of a batch, called with slices of it, which are halved for good when memory runs out.

    Args:
        work: function from a batch (B, ...) to a batch (B, ...), image by image.
        size: images in a slice; by default the whole batch.
        called: how the log calls the function.
    """

    def __init__(self, work: Callable[[Tensor], Tensor], size: int = sys.maxsize, called: str = "this part"):
        self.work, self.size, self.called = work, size, called

    def __call__(self, batch: Tensor) -> Tensor:
        """Return the results of all slices as one batch.

        Raises:
            RuntimeError: one image alone does not fit, or what `work` raises otherwise.
        """
        done, start = list[Tensor](), 0
        while not done or start < len(batch):
            some = batch[start : start + self.size]
            result = self._attempt(some)
            if result is None:
                self.size = len(some) // 2
                if batch.is_cuda:
                    torch.cuda.empty_cache()
                say_once(f"{self.called} ran out of memory: it gets {self.size} images at a time from now on")
            else:
                done.append(result)
                start += len(some)
        return done[0] if len(done) == 1 else torch.cat(done)

    def _attempt(self, some: Tensor) -> Tensor | None:
        try:
            return self.work(some)
        except (RuntimeError, MemoryError) as error:
            if len(some) <= 1 or not out_of_memory(error):
                raise
        return None  # leaves the block before anything is freed: the traceback holds the tensors
