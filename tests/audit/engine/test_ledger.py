"""The ledger by itself: workers that fail are played by the test, so that every order of events can be."""

import weakref
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volgrowth.audit.engine.ledger import ATTEMPTS, LOSSES, Ledger, Task
from volgrowth.audit.engine.shard_tasks import ShardTasks
from volgrowth.audit.output.manifest import Shard
from volgrowth.audit.output.runs import Tally
from volgrowth.errors import EngineError, OutputError
from volgrowth.records import Failure, Status


def task(name: str = "it", answers: list[object] | None = None) -> Task:
    def done(answer: object) -> list[Task]:
        if answers is not None:
            answers.append(answer)
        return []

    return Task(name, "method", (), done)


def test_a_task_that_is_done_is_forgotten():
    """However many shards an audit has, the driver holds those that are not done."""
    alive = []

    def coming():
        for number in range(1000):
            made = task(str(number))
            alive.append(weakref.ref(made))
            yield made

    ledger, count = Ledger(coming()), 0
    while ledger:
        work = take(ledger)
        if count % 3 == 0 and ledger.attempt(work) == 1:
            ledger.failed(work, Failure("once"))
        elif count % 3 == 1:
            ledger.lost(work, "its node went")
            ledger.done(take(ledger), None)
        else:
            ledger.done(work, None)
        count += 1
        del work
        assert sum(known() is not None for known in alive) <= 2
    assert len(alive) == 1000
    assert not vars(ledger)["_failures"]
    assert not vars(ledger)["_losses"]


def take(ledger: Ledger, worker: str | None = None, at_once: int = 1) -> Task:
    work = ledger.take(worker, at_once)
    assert work
    return work


def test_a_worker_gets_tasks_that_follow_one_another():
    ledger = Ledger(task(str(number)) for number in range(10))
    names: dict[str, list[str]] = {worker: [] for worker in "ab"}
    for worker in "abababab":
        names[worker].append(take(ledger, worker, 3).name)
    assert names == {"a": ["0", "1", "2", "6"], "b": ["3", "4", "5", "9"]}
    assert [take(ledger, "b", 3).name for _ in range(2)] == ["8", "7"]  # what the other has in reserve, from its end
    assert ledger.take("b", 3) is None
    assert not ledger


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 4), st.integers(1, 7)), max_size=60))
def test_every_task_is_handed_out_once_whoever_takes_it(count, takes):
    ledger, taken = Ledger(task(str(number)) for number in range(count)), list[str]()
    for worker, at_once in takes:
        assert bool(ledger) == (len(taken) < count)
        taken += [each.name for each in [ledger.take(worker, at_once)] if each]
    while ledger:  # the workers are gone, and what they had in reserve is not
        taken.append(take(ledger, "last", 5).name)
    assert sorted(map(int, taken)) == list(range(count))


def score(ledger: Ledger, poison: set[int], status: Status = Status.CRASHED) -> None:
    """Do every task as workers would whose process ends, or hangs, at a poisoned row."""
    while work := ledger.take():
        shard, rows, *crashed = work.arguments
        tried = range(shard.start, shard.stop) if rows is None else rows
        bad = [row for row in tried if row in poison and not (crashed and row in crashed[0])]
        if bad:
            ledger.failed(work, Failure(f"died at {bad[0]}", status))
        else:
            ledger.done(work, Tally(len(tried), len(crashed[0]) if crashed else 0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.sampled_from([Status.CRASHED, Status.TIMED_OUT]), st.data())
def test_bisection_finds_exactly_the_rows_that_fail(rows, status, data):
    poison = data.draw(st.sets(st.integers(100, 99 + rows), max_size=4))
    published: list[tuple[Shard, Tally]] = []

    def report(shard: Shard, tally: Tally) -> list[Task]:
        published.append((shard, tally))
        return []

    case = ShardTasks(Shard("scores", 0, 100, 100 + rows), report)
    score(Ledger(iter([case.task()])), poison, status)
    assert set(case.failures) == poison
    assert [(tally.images, tally.failed) for _, tally in published] == [(rows, len(poison))]
    assert all(failure == Failure(f"died at {row}", status) for row, failure in case.failures.items())


def test_only_the_rows_asked_for_are_bisected():
    case = ShardTasks(Shard("scores", 0, 0, 1000), lambda *_: [], rows=[3, 500, 999])
    score(Ledger(iter([case.task()])), {500, 7})
    assert set(case.failures) == {500}


def test_when_every_row_fails_it_stops_and_says_why():
    case = ShardTasks(Shard("scores", 0, 0, 1000), lambda *_: [])
    with pytest.raises(EngineError, match=r"5 rows failed, with none scored between them \(died at 4\)"):
        score(Ledger(iter([case.task()])), set(range(1000)))


def test_a_shard_that_fails_whole_and_not_in_parts_stops():
    case = ShardTasks(Shard("scores", 0, 0, 10), lambda *_: [])
    ledger = Ledger(iter([case.task()]))

    def fail_whole() -> None:
        while work := ledger.take():
            if work.method == "score":
                ledger.failed(work, Failure("too much at once"))
            else:
                ledger.done(work, Tally())

    with pytest.raises(EngineError, match="fail together and not apart"):
        fail_whole()


def test_what_cannot_be_divided_is_tried_three_times():
    ledger = Ledger(iter([task()]))
    for attempt in range(1, ATTEMPTS):
        work = take(ledger)
        assert ledger.attempt(work) == attempt
        ledger.failed(work, Failure("no"))
    work = take(ledger)
    with pytest.raises(EngineError, match=r"it failed 3 times \(no\)"):
        ledger.failed(work, Failure("no"))


def test_losses_without_blame_do_not_count_until_they_are_a_habit():
    ledger = Ledger(iter([task()]))
    for _ in range(LOSSES - 1):
        work = take(ledger)
        assert not ledger.lost(work, "preempted")
        assert ledger.attempt(work) == 1
    work = take(ledger)
    assert ledger.lost(work, "preempted")
    assert ledger.attempt(work) == 2


def test_a_store_that_refuses_is_tried_again_and_its_own_error_raised():
    ledger, error = Ledger(iter([task()])), OutputError("the bucket is gone")
    for _ in range(ATTEMPTS - 1):
        work = take(ledger)
        ledger.refused(work, error)
    work = take(ledger)
    with pytest.raises(OutputError, match="the bucket is gone"):
        ledger.refused(work, error)


def test_tasks_come_back_in_order_before_new_ones_and_are_taken_one_by_one():
    taken: list[int] = []

    def endless():
        for number in range(10**9):
            taken.append(number)
            yield task(str(number))

    ledger = Ledger(endless())
    first = [ledger.take() for _ in range(3)]
    ledger.give_back([work for work in first if work])
    again = [ledger.take() for _ in range(4)]
    assert [work.name for work in again if work] == ["0", "1", "2", "3"]
    assert taken == [0, 1, 2, 3]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_whatever_happens_every_task_is_answered_once(count, random):
    answers: list[object] = []
    ledger = Ledger(task(str(number), answers) for number in range(count))
    in_flight: list[Task] = []
    losses: Counter[str] = Counter()
    while ledger or in_flight:
        if ledger and random.random() < 0.6:
            in_flight.append(take(ledger))
        elif in_flight:
            work = in_flight.pop(random.randrange(len(in_flight)))
            if random.random() < 0.3 and losses[work.name] < LOSSES - 1:
                losses[work.name] += 1
                ledger.lost(work, "preempted")
            else:
                ledger.done(work, work.name)
    assert Counter(answers) == Counter(str(number) for number in range(count))
