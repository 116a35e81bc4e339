"""The facts that an actor tells its worker."""

from volgrowth.audit.engine.actor import cores_of, workers_on

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
