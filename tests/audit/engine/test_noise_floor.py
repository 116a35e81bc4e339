"""One measurement of the noise floor in a session, however many shards are reported at once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from volgrowth.audit.engine.noise_floor import NOISE_FILE, NoiseFloor
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.manifest import Shard
from volgrowth.audit.output.runs import Tally
from volgrowth.records import Failure
from volgrowth.storage.store import Store

SHARDS = [Shard("scores", index, 10 * index, 10 * index + 10) for index in range(3)]


def noise_floor(folder: Path, events: list[dict[str, Any]]) -> NoiseFloor:
    run = SimpleNamespace(event=lambda kind, **fields: events.append(fields))
    return NoiseFloor(cast(Session, SimpleNamespace(store=Store(str(folder)), run=run)))


def test_shards_that_are_reported_before_the_answer_ask_for_no_second_one(tmp_path):
    floor = noise_floor(tmp_path, [])
    assert floor.tasks(SHARDS[0], Tally(images=10, failed=10)) == []  # no row of it has a score
    (task,) = floor.tasks(SHARDS[1], Tally(images=10))
    assert (task.method, task.arguments) == ("noise_floor", (SHARDS[1],))
    assert floor.tasks(SHARDS[2], Tally(images=10)) == []


def test_an_answer_and_a_failure_are_kept_and_end_it(tmp_path):
    for name, reason in (("answered", None), ("failed", "RuntimeError: out of memory")):
        events: list[dict[str, Any]] = []
        (task,) = noise_floor(tmp_path / name, events).tasks(SHARDS[0], Tally(images=10))
        assert task.divide is not None
        answer = {"rows": 8, "batch": 0.0, "dtype": None, "derivative": None, "problem": None}
        assert list(task.divide(Failure(reason)) if reason else task.done(answer)) == []
        kept = Store(str(tmp_path / name)).read_json(NOISE_FILE)
        assert events == [kept]
        assert kept["problem"] == reason
        assert noise_floor(tmp_path / name, []).tasks(SHARDS[0], Tally(images=10)) == []
