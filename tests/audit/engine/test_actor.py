"""The facts that an actor tells its worker."""

import contextlib
import time
from pathlib import Path
from typing import Any

import ray

from volgrowth.audit.engine.actor import Actor, cores_of, workers_on

NODES = [
    {"NodeID": "large", "Resources": {"CPU": 64.0, "GPU": 8.0}},
    {"NodeID": "small", "Resources": {"CPU": 4.0}},
]


def test_workers_of_a_node_are_its_gpus_over_the_share_of_each():
    assert workers_on("large", NODES, 1.0) == 8
    assert workers_on("large", NODES, 0.5) == 16
    assert workers_on("large", NODES, 2.0) == 4
    assert workers_on("small", NODES, 0.0) == 1
    assert workers_on("gone", NODES, 1.0) == 1


def test_cores_of_a_node_are_those_that_ray_gives_out():
    assert cores_of("large", NODES) == 64
    assert cores_of("small", NODES) == 4
    assert cores_of("gone", NODES) is None


def test_an_actor_tells_how_many_rows_it_has_measured_while_it_works(ray_session: None, tmp_path: Path) -> None:
    """The question is answered beside the call that is worked on; after the call nothing is left of its rows."""
    marker = tmp_path / "go on"

    class Counting:
        turn, attempt, measured = contextlib.nullcontext(), 1, 0

        @contextlib.contextmanager
        def counting(self) -> Any:
            yield
            self.measured = 0

        def work(self) -> int:
            self.measured = 5
            while not marker.exists():
                time.sleep(0.02)
            return 7

    remote: Any = Actor
    made = remote.options(num_cpus=0).remote(lambda *_: Counting(), None, None, "cpu")
    working = made.call.remote("work", (), 1)
    while ray.get(made.measured.remote(), timeout=60) != 5:
        time.sleep(0.05)
    marker.touch()
    assert ray.get(working, timeout=60) == 7
    assert ray.get(made.measured.remote(), timeout=60) == 0
    ray.kill(made)
