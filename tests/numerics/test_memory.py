"""Out of memory: known by its words, and met with smaller slices."""

import pytest
import torch
from torch import Tensor

from volgrowth.numerics.memory import Sliced, out_of_memory


@pytest.mark.parametrize(
    "words",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
    ],
)
def test_errors_of_memory_are_known_by_their_words(words: str) -> None:
    assert out_of_memory(RuntimeError(words))


def test_errors_of_memory_are_known_by_their_kind() -> None:
    assert out_of_memory(torch.OutOfMemoryError("no words"))
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shape mismatch"))


class Small:
    """Work on a device on which only so many images fit."""

    def __init__(self, fits: int):
        self.fits, self.seen = fits, list[int]()

    def __call__(self, batch: Tensor) -> Tensor:
        self.seen.append(len(batch))
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch + 1


def test_slices_are_halved_and_stay_so() -> None:
    batch, work = torch.arange(7.0), Small(3)
    sliced = Sliced(work)
    assert sliced(batch).equal(batch + 1)
    assert work.seen == [7, 3, 3, 1]
    assert sliced(batch).equal(batch + 1)
    assert work.seen[4:] == [3, 3, 1]


def test_a_whole_batch_is_one_call_and_an_empty_one_too() -> None:
    work = Small(9)
    for count in (5, 0):
        assert Sliced(work)(torch.zeros(count, 2)).shape == (count, 2)
    assert work.seen == [5, 0]
    assert Sliced(work, 2)(torch.zeros(5)).equal(torch.ones(5))
    assert work.seen[2:] == [2, 2, 1]


def test_one_image_that_does_not_fit_and_other_errors_are_raised() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Sliced(Small(0))(torch.zeros(4))

    def wrong(batch: Tensor) -> Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Sliced(wrong)(torch.zeros(4))
