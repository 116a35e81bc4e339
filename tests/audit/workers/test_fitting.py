"""A batch size that is halved when memory runs out and grows back."""

import pytest
import torch

from volgrowth.audit.workers.fitting import GROW_AFTER, BatchSize, NoMemoryError


def test_a_batch_size_is_halved_down_to_one_and_grows_back_to_the_largest():
    batch = BatchSize(6)
    batch.halve()
    batch.halve()
    assert batch.size == 1
    with pytest.raises(NoMemoryError, match="one image does not fit"):
        batch.halve()
    for size in (2, 4, 6, 6):
        for _ in range(GROW_AFTER):
            batch.grow()
        assert batch.size == size


def test_every_item_is_worked_on_once_in_order():
    done, tried = [], []

    def work(some):
        tried.append(len(some))
        if len(some) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.extend(some)

    batch = BatchSize(8)
    batch.each(list(range(7)), work)
    assert done == list(range(7))
    assert tried == [7, 4, 2, 2, 2, 1]
    batch.each([], work)
