"""How an audit on Ray ends from outside: by a signal, by a row that never ends, by the loss of its cluster's head."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import volgrowth as vg
from tests.conftest import start_volgrowth, volgrowth, wait_for
from tests.support.held_model import HELD_MODEL, caught, fragments, held_audit
from volgrowth.demo.cases import write_image_parquet

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = (
    HELD_MODEL
    + """
class Endless(Held):
    def noise(self, y, noise_level):
        while (y.flatten(1).mean(1) > 0.95).any():  # a white image
            time.sleep(0.1)
        return super().noise(y, noise_level)

def endless(device, dtype):
    return Endless(0.0, 0.3)
"""
)

# The command, whose patience with a task is three times the usual seconds and not ten times: four of the attempts at a
# row that never ends are the first task of a new worker, which takes a second.
HASTY = "from volgrowth.audit.engine import pace; pace.FACTOR = 3.0; from volgrowth.cli import main; main()"


@pytest.fixture
def typed(tmp_path: Path, digit_file: Path) -> list[Any]:
    """Arguments of an audit in 25 shards, in a folder with its model."""
    return held_audit(tmp_path, digit_file, "--workers", "1", model=MODEL)


def interrupted(process: Any, folder: Path) -> None:
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].endswith("the same command resumes")
    assert "Traceback" not in errors
    assert not (folder / "out/.driver.json").exists()


def test_sigterm_ends_an_audit_at_work_in_good_order(typed, tmp_path):
    with caught(typed, tmp_path) as process:
        process.terminate()
        interrupted(process, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_ray_starts(typed, tmp_path, ray_folder, number):
    before = set(ray_folder.glob("ray/session_*"))
    process = start_volgrowth(typed, tmp_path)
    wait_for(lambda: len(set(ray_folder.glob("ray/session_*")) - before) > 0, process)
    process.send_signal(number)
    interrupted(process, tmp_path)


def test_sigterm_while_ray_ends(typed, tmp_path):
    """Ray gives SIGTERM back its first meaning for these seconds, which ends a process without a word."""
    process = start_volgrowth(typed, tmp_path)
    wait_for(lambda: fragments(tmp_path) == 25, process)
    process.terminate()
    interrupted(process, tmp_path)


def test_a_row_that_never_ends_is_found_and_the_rest_is_scored(digits, tmp_path):
    images = digits[:70].copy()
    images[67] = 255
    write_image_parquet(tmp_path / "white.parquet", images, [str(row) for row in range(70)])
    command = held_audit(tmp_path, tmp_path / "white.parquet", "--workers", "1", model=MODEL, shard_size=2)
    command += ["--set", "hang_minutes=0.03", "--max-failed", "0.1"]
    command[1] = "factory:held_model:endless"
    started = [sys.executable, "-c", HASTY, *map(str, command)]
    finished = subprocess.run(started, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "rows 66 to 67 of scores: no answer for" in finished.stderr
    audit = vg.open_audit(str(tmp_path / "out"))
    rows = audit.scores.to_pylist()
    assert [row["row"] for row in rows] == list(range(70))
    assert [(row["row"], row["status"]) for row in rows if row["status"] != "ok"] == [(67, "timed_out")]
    assert rows[67]["error"].startswith("it did not end in ")
    assert audit.summary["counts"]["timed_out"] == 1


@pytest.fixture
def cluster(ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and a node; processes of both find the model."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


# the store of the cluster's state, and the process through which the driver reaches the cluster
@pytest.mark.parametrize(
    ("lost", "number", "said"),
    [
        ("gcs_server", signal.SIGKILL, "the head of "),
        ("gcs_server", signal.SIGSTOP, "the head of "),  # it takes connections and answers nothing
        ("raylet", signal.SIGKILL, "is connected to"),
    ],
)
def test_the_loss_of_the_head_is_a_sentence_and_the_audit_resumes(
    typed, cluster, tmp_path, monkeypatch, lost, number, said
):
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": "8"}
    with caught([*typed, "--ray-address", cluster.address], tmp_path, **patience) as process:
        for info in cluster.head_node.all_processes[lost]:
            os.kill(info.process.pid, number)
        _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert said in errors
    assert "the same command resumes on a cluster that answers" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out/.driver.json").exists()
    assert not (tmp_path / "out/noise-floor.json").exists()  # no task was blamed
    if number == signal.SIGSTOP:  # a head in this state is found before Ray is started, too
        monkeypatch.setenv("RAY_py_gcs_connect_timeout_s", "4")  # Ray's own patience where it first connects
        again = volgrowth(*typed, "--ray-address", cluster.address, cwd=tmp_path)
        assert again.returncode == 2
        assert f"Ray cannot be reached at {cluster.address} (RpcError: " in again.stderr
        for name, value in {**patience, "RAY_ADDRESS": cluster.address}.items():
            monkeypatch.setenv(name, value)
        again = volgrowth(*typed, "--ray-address", "auto", cwd=tmp_path)
        assert again.returncode == 2
        assert "Ray cannot be reached at auto (no answer for 8 seconds): expected the address of " in again.stderr
        os.kill(cluster.head_node.all_processes[lost][0].process.pid, signal.SIGCONT)
        return
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("out/scores/*.parquet")}
    resumed = volgrowth(*typed, "--engine", "local", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert fragments(tmp_path) == 25
    assert all((tmp_path / "out/scores" / name).read_bytes() == content for name, content in kept.items())
