import threading
import time

import pytest
import torch

from tests.conftest import wait_for
from volgrowth.audit.scoring import prefetch
from volgrowth.audit.scoring.prefetch import AT_ONCE, Ahead, decoding_threads


def threads():
    """Those of reading and decoding; tests of locks leave one behind, as a driver does that dies."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("volgrowth-decode")]


def same(items):
    return items


def each(function):
    """Work that does the same to each of a few items."""
    return lambda items: [function(item) for item in items]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("count", [0, 1, AT_ONCE, 5 * AT_ONCE + 3])
def test_everything_comes_once_and_in_order(workers, count):
    def slowly(item):
        time.sleep(0.002 * (item % 3))
        return -item

    assert list(Ahead(range(count), each(slowly), workers).items()) == [-k for k in range(count)]
    assert not threads()


def test_several_threads_work_at_once():
    together = threading.Barrier(3, timeout=30)

    def meet(item):
        if item % AT_ONCE == 0:
            together.wait()
        return item

    assert len(list(Ahead(range(3 * AT_ONCE), each(meet), 3).items())) == 3 * AT_ONCE


def test_it_stays_ahead_by_so_much_and_closing_ends_it():
    made, read = list[int](), list[int]()

    def items():
        for k in range(10_000):
            read.append(k)
            yield k

    ahead = Ahead(items(), each(made.append), threads=2, depth=4 * AT_ONCE)
    taken = ahead.items()
    next(taken)
    time.sleep(0.5)
    assert 4 * AT_ONCE <= len(made) <= 10 * AT_ONCE
    assert len(read) <= 10 * AT_ONCE
    taken.close()
    assert not threads()
    assert ahead.held_up > ahead.starved


def test_what_waits_to_be_worked_on_is_little_however_deep_it_is():
    """Encoded images may be large, decoded ones are as the model sees them."""
    read, gate = [], threading.Event()

    def items():
        for k in range(10_000):
            read.append(k)
            yield k

    ahead = Ahead(items(), each(lambda item: gate.wait(30)), threads=2, depth=10_000)
    taken = ahead.items()
    threading.Timer(0.5, gate.set).start()
    waiting = threading.Thread(target=lambda: next(taken))
    waiting.start()
    time.sleep(0.3)
    assert len(read) <= 5 * AT_ONCE
    waiting.join()
    taken.close()
    assert not threads()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_exception_of_the_source_is_raised_after_what_came_before_it(workers):
    def items():
        yield from range(AT_ONCE + 2)
        raise OSError("disk gone")

    taken = list[int]()
    with pytest.raises(OSError, match="disk gone"):
        taken.extend(Ahead(items(), same, workers).items())
    assert taken == list(range(AT_ONCE + 2))
    assert not threads()


def test_an_exception_of_the_work_is_raised_where_it_is_taken():
    def work(item):
        if item == 3 * AT_ONCE:
            raise MemoryError("so large")
        return item

    taken = list[int]()
    with pytest.raises(MemoryError, match="so large"):
        taken.extend(Ahead(range(1000), each(work), 2).items())
    assert taken == list(range(3 * AT_ONCE))
    assert not threads()


@pytest.mark.parametrize("nth", [1, 2])
def test_a_signal_that_comes_while_a_thread_begins_ends_them_all(monkeypatch, nth):
    """The reader of an audit said in a traceback that it could not go on, since its threads were over."""
    began, errors, start = list[str](), list[object](), threading.Thread.start

    def interrupted(thread):
        start(thread)
        began.append(thread.name)
        if len(began) == nth:
            raise KeyboardInterrupt

    def items():
        for item in range(10 * AT_ONCE):
            time.sleep(0.001)
            yield item

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr(threading, "excepthook", errors.append)
    with pytest.raises(KeyboardInterrupt):
        list(Ahead(items(), same, 2).items())
    wait_for(lambda: not threads())
    assert len(began) == nth
    assert not errors


def test_a_thread_that_cannot_begin_is_an_error_and_no_wait_without_end(monkeypatch):
    began, start = list[str](), threading.Thread.start

    def full(thread):
        began.append(thread.name)
        if len(began) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", full)
    with pytest.raises(RuntimeError, match="can't start"):
        list(Ahead(range(10 * AT_ONCE), same, 2).items())
    assert not threads()


def test_the_workers_of_a_machine_share_its_cores(monkeypatch):
    """A worker of eight sees one GPU, and would take all cores if it went by that."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(prefetch.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    gpu = torch.device("cuda")
    assert [decoding_threads(gpu, workers) for workers in (1, 2, 8, 100)] == [16, 16, 8, 1]
    assert decoding_threads(torch.device("cpu"), 8) == 1


def test_large_items_are_handed_over_before_they_are_many():
    """While the first is worked on, one waits, and one more was read."""
    taken, seen, ready = list[int](), list[int](), threading.Event()

    def source():
        for item in range(40):
            taken.append(item)
            if item == 2:
                ready.set()
            yield item

    def work(item):
        if item == 0:
            ready.wait(30)
            time.sleep(0.1)  # for the reader to go on, if it would
            seen.append(len(taken))
        return item

    ahead = Ahead(source(), each(work), threads=1, weigh=lambda item: prefetch.AT_ONCE_BYTES + 1)
    assert list(ahead.items()) == list(range(40))
    assert seen[0] <= 4
