"""What the engine survives, done for real: several raylets on this machine, processes that are killed or stopped.

Every test ends alike: each row exactly once, and the same scores to the bit as an audit that nobody disturbed.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import volgrowth as vg
from jobs.benchmark.faults.held_model import hold_workers
from jobs.benchmark.processes import command_of
from tests.conftest import start_volgrowth, volgrowth, wait_for
from tests.support.held_model import HELD_MODEL

# how long anything takes is left to the machine; what never happens ends by this
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

# its workers leave their process ids
MODEL = (
    HELD_MODEL
    + """
class Deadly(Held):
    def noise(self, y, noise_level):
        if (y.flatten(1).mean(1) > 0.95).any():  # a white image
            os.kill(os.getpid(), signal.SIGKILL)
        return super().noise(y, noise_level)

def make_known(device, dtype, kind=Held):
    open(os.path.join(FOLDER, "pids", str(os.getpid())), "w").close()
    return kind(0.0, 0.3)

def deadly(device, dtype):
    return make_known(device, dtype, Deadly)
"""
)


@dataclass
class Machines:
    """Several raylets, a head without CPUs among them, and the folder where drivers run."""

    folder: Path
    cluster: Any
    nodes: list[Any] = field(default_factory=list)

    def add(self) -> Any:
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        return self.nodes[-1]

    def remove(self, node: Any) -> None:
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def home_of(self, worker: int) -> Any:
        """The node whose raylet started a process."""
        parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        raylets = {info.process.pid: node for node in self.nodes for info in node.all_processes["raylet"]}
        return raylets[parent]

    def nodes_up_to(self, count: int) -> None:
        while len(self.nodes) < count:
            self.add()
        while len(self.nodes) > count:
            self.remove(self.nodes[-1])


@pytest.fixture(scope="module")
def machines(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("cluster")
    (folder / "held_model.py").write_text(MODEL)
    (folder / "pids").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        yield Machines(folder, cluster)
        cluster.shutdown()


@dataclass
class Run:
    """An audit on the cluster, as a command in a process of its own."""

    machines: Machines
    out: Path
    arguments: list[Any]

    def start(self, *more: Any) -> subprocess.Popen[str]:
        return start_volgrowth([*self.arguments, *more], self.machines.folder)

    def finish(self) -> None:
        finished = volgrowth(*self.arguments, cwd=self.machines.folder)
        assert finished.returncode == 0, finished.stderr

    def fragments(self) -> int:
        return len(list(self.out.glob("scores/*.parquet")))

    @contextmanager
    def caught(self, count: int, *more: Any) -> Iterator[subprocess.Popen[str]]:
        """Start it; its driver while the workers are held up, when so many fragments are there."""
        with hold_workers(self.machines.folder, self.out, count):
            process = self.start(*more)
            wait_for(lambda: self.fragments() >= count, process)
            yield process

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    @property
    def log(self) -> Path:
        return self.out.with_suffix(".jsonl")

    @property
    def scores(self) -> pa.Table:
        return vg.open_audit(str(self.out)).scores


@pytest.fixture
def run(machines: Machines, digit_file: Path, tmp_path: Path) -> Run:
    """Two machines with a worker each; 25 shards."""
    machines.nodes_up_to(2)
    for left in (machines.folder / "pids").iterdir():
        left.unlink()
    out = tmp_path / "out"
    return Run(machines, out, arguments(machines, out, digit_file))


def arguments(machines: Machines, out: Path, data: Path, model: str = "make_known", *more: Any) -> list[Any]:
    return [
        "audit", f"factory:held_model:{model}", data, "--output", out, "--shard-size", 6, "--set", "batch_size=6",
        "--ray-address", machines.cluster.address, "--log-json", out.with_suffix(".jsonl"), "--trust-model",
        *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(machines: Machines, digit_file: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Scores of an audit by one worker in the driver's process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    quiet = Run(machines, out, [*arguments(machines, out, digit_file), "--engine", "local"])
    quiet.finish()
    assert quiet.scores["row"].to_pylist() == list(range(150))
    return quiet.scores


def ended_well(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def workers(run: Run, driver: subprocess.Popen[str]) -> list[int]:
    """Processes that hold the model, the driver left out: it looks at the model too."""
    pids = (int(path.name) for path in (run.machines.folder / "pids").iterdir())
    return [pid for pid in pids if pid != command_of(driver.pid) and Path(f"/proc/{pid}").exists()]


def test_a_driver_killed_five_times(run, undisturbed):
    """With workers of its own and as a worker itself: what one engine leaves, the other goes on with."""
    dice = random.Random(7)
    for engine in ("ray", "local", "local", "ray", "local"):
        with run.caught(run.fragments() + dice.randrange(1, 4), "--engine", engine) as driver:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            assert not (run.out / "_SUCCESS").exists()
    run.finish()
    assert run.scores.equals(undisturbed)


def test_workers_and_nodes_that_go_and_come(run, undisturbed):
    """A worker is killed, a node is lost, and two others join."""
    with run.caught(2) as driver:
        killed, other = workers(run, driver)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: len(run.events("worker_lost")) == 1, driver)
        run.machines.remove(run.machines.home_of(other))
        wait_for(lambda: len(run.events("worker_lost")) >= 2, driver)
        run.machines.nodes_up_to(3)
        new = {node.node_id for node in run.machines.nodes[1:]}
        wait_for(lambda: new <= {event["node"] for event in run.events("worker_ready")}, driver)
    ended_well(driver)
    blameless = [event["blameless"] for event in run.events("worker_lost")]
    assert blameless == [False, *[True] * (len(blameless) - 1)]
    assert run.scores.equals(undisturbed)


def test_a_draining_node_gets_nothing_more(run, undisturbed):
    with run.caught(3) as driver:
        going = run.machines.nodes[0]
        drain(run.machines, going)
        wait_for(lambda: bool(run.events("worker_leaving")), driver)
    assert [event["node"] for event in run.events("worker_leaving")] == [going.node_id]
    ended_well(driver)
    run.machines.remove(going)
    assert going.node_id not in [event["node"] for event in run.events("worker_lost")]
    assert run.scores.equals(undisturbed)


def drain(machines: Machines, node: Any) -> None:
    """What a cloud says of a spot machine that it is about to take."""
    command = Path(sys.executable).parent / "ray"
    subprocess.run(
        [
            command, "drain-node", "--address", machines.cluster.address, "--node-id", node.node_id,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
            "--deadline-remaining-seconds", "1800",
        ],
        check=True, capture_output=True,
    )  # fmt: skip


def test_a_worker_that_was_given_up_and_comes_back(run, undisturbed):
    with run.caught(3) as driver:
        zombie = workers(run, driver)[0]
        os.kill(zombie, signal.SIGSTOP)
        run.machines.remove(run.machines.home_of(zombie))
        wait_for(lambda: bool(run.events("worker_lost")), driver)
    ended_well(driver)
    if Path(f"/proc/{zombie}").exists():
        os.kill(zombie, signal.SIGCONT)
        wait_for(lambda: not Path(f"/proc/{zombie}").exists())
    assert run.scores.equals(undisturbed)


def test_a_row_that_kills_its_process_is_found_and_the_rest_is_scored(run, undisturbed, digits, tmp_path):
    import numpy as np

    from volgrowth.demo.cases import write_image_parquet

    images = digits[:30].copy()
    images[17] = 255
    data, out = tmp_path / "white.parquet", tmp_path / "poisoned"
    write_image_parquet(data, images, [str(row) for row in range(30)])
    poisoned = Run(run.machines, out, arguments(run.machines, out, data, "deadly", "--max-failed", 0.1))
    poisoned.finish()
    # the same images but one; in another file
    found, expected = (scores.drop_columns("source") for scores in (poisoned.scores, undisturbed.slice(0, 30)))
    crashed = found.slice(17, 1).to_pylist()[0]
    assert crashed["status"] == "crashed"
    assert crashed["error"].startswith("its process died")
    assert crashed["growth"] is None
    others = np.arange(30) != 17
    assert found.filter(pa.array(others)).equals(expected.filter(pa.array(others)))
    assert vg.open_audit(str(poisoned.out)).summary["counts"]["crashed"] == 1


def test_a_second_driver_refuses_and_the_first_goes_on(run, undisturbed):
    with run.caught(2) as driver:
        second = volgrowth(*run.arguments, cwd=run.machines.folder)
        assert f"is being written by another volgrowth (process {command_of(driver.pid)} on" in second.stderr
    assert second.returncode == 2
    assert "Traceback" not in second.stderr
    ended_well(driver)
    assert run.scores.equals(undisturbed)


def test_too_few_workers_for_too_long_is_a_resumable_stop(run, undisturbed):
    run.machines.nodes_up_to(1)
    stopped = volgrowth(
        *run.arguments, "--workers", 2, "--min-workers", 2, "--set", "wait_minutes=0.01", cwd=run.machines.folder
    )
    assert stopped.returncode == 2
    assert "workers were ready of the 2 asked for" in stopped.stderr
    assert not (run.out / "_SUCCESS").exists()
    run.machines.nodes_up_to(2)
    run.finish()
    assert run.scores.equals(undisturbed)


def on_cluster(machines: Machines, code: str) -> str:
    """What a program prints that is connected to the cluster."""
    connect = f"import ray; ray.init({machines.cluster.address!r}, logging_level=40, log_to_driver=False)\n"
    command = [sys.executable, "-c", connect + code]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return finished.stdout.strip()


def test_workers_may_share_a_gpu_and_none_is_hired_for_a_draining_node(machines):
    nodes = [machines.cluster.add_node(num_cpus=1, num_gpus=gpus) for gpus in (2, 1)]
    try:
        code = f"""
from volgrowth.audit.engine.driver import room
print(room(1.0), room(0.5), room(0.4), room(1.0, {{"{nodes[0].node_id}"}}), room(2.0))
"""
        assert on_cluster(machines, code) == "3 6 7 1 1"
    finally:
        for node in nodes:
            machines.cluster.remove_node(node)


def test_a_cluster_of_another_version_is_named(run, machines):
    key, namespace = "CLUSTER_METADATA", "cluster"
    code = f"""
import json
from ray.experimental import internal_kv as kv
found = json.loads(kv._internal_kv_get({key!r}, namespace={namespace!r}))
print(found["ray_version"])
found["ray_version"] = VERSION or found["ray_version"]
kv._internal_kv_put({key!r}, json.dumps(found), overwrite=True, namespace={namespace!r})
"""
    true = on_cluster(machines, code.replace("VERSION", "'1.2.3'"))
    try:
        refused = volgrowth(*run.arguments, cwd=machines.folder)
    finally:
        subprocess.run(
            [sys.executable, "-c", RESTORE.format(address=machines.cluster.address, version=true)],
            check=True, capture_output=True,
        )  # fmt: skip
    assert refused.returncode == 2
    assert "Version mismatch" in refused.stderr
    assert f"expected the address of a running cluster with this version of Ray, {true}" in refused.stderr
    assert "Traceback" not in refused.stderr


# past ray.init, which would refuse
RESTORE = """
import json
from ray._raylet import GcsClient
gcs = GcsClient(address="{address}")
found = json.loads(gcs.internal_kv_get(b"CLUSTER_METADATA", b"cluster"))
found["ray_version"] = "{version}"
gcs.internal_kv_put(b"CLUSTER_METADATA", json.dumps(found).encode(), True, b"cluster")
"""
