"""Processes that end, stop or never answer: drivers, workers, and rows that take their process with them."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np

from jobs.benchmark.faults.small_audit import ROWS, SHARD_ROWS, FaultLine, SmallAudit, end_all, fragments, wait_until
from jobs.benchmark.processes import in_repository
from volgrowth.audit.output.lock import LOCK
from volgrowth.demo.cases import write_image_parquet
from volgrowth.records import Status

ON_RAY = ("--engine", "ray", "--workers", "1")
# the row of the white image: beyond those on which the model is checked
WHITE_ROW = 9 * SHARD_ROWS + 3
# the least age of a task that counts as hung, instead of five minutes
HANG_MINUTES = 0.05
# seconds after which Ray gives up a head that does not answer, instead of a minute
HEAD_PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "8"}


def drivers_killed(audit: SmallAudit) -> FaultLine:
    """Kill drivers at any moment, again and again, by either engine; then resume."""
    line = FaultLine(
        "the driver is killed (SIGKILL)", "at random moments, several times in one audit, by either engine; resumed"
    )
    random = np.random.default_rng(3)
    for engine in ("local",) if audit.quick else ("local", "local", "ray"):
        output, done = audit.new("killed"), 0
        for _ in range(1 if audit.quick else 2):
            done += int(random.integers(1, 6))
            with audit.caught(output, done, *(ON_RAY if engine == "ray" else ())) as driver:
                end_all(driver)
        audit.resumed(line, output, interrupted_well=not (output / "_SUCCESS").exists())
    return line


def drivers_told_to_end(audit: SmallAudit, number: signal.Signals, sender: str) -> FaultLine:
    """Send a driver a signal that asks it to end, by either engine; then resume."""
    line = FaultLine(
        f"the driver gets {number.name} ({sender})",
        "by either engine: exit code 130, the lock given up, a sentence that says how to resume; resumed",
    )
    for engine in ("local",) if audit.quick else ("local", "ray"):
        output = audit.new(f"told-{number.name}-{engine}")
        with audit.caught(output, 4, *(ON_RAY if engine == "ray" else ())) as driver:
            driver.send_signal(number)
            said, _ = driver.communicate()
        sentence = "the same command resumes" in said and "Traceback" not in said
        free = not (output / LOCK).exists()
        audit.resumed(line, output, driver.returncode == 130 and sentence and free, f"{driver.returncode}: {said}")
    return line


def workers_killed(audit: SmallAudit) -> FaultLine:
    """Kill workers of a driver that goes on."""
    line = FaultLine("a worker is killed (SIGKILL)", "several in one audit; the driver goes on with others")
    for _ in range(2):
        output = audit.new("workers-killed")
        with audit.caught(output, 3, *ON_RAY) as driver:
            killed = audit.worker(driver)
            os.kill(killed, signal.SIGKILL)
        said, _ = driver.communicate()
        line.count(driver.returncode == 0, audit.difference(output), said)
    return line


def rows_that_end_workers(audit: SmallAudit) -> FaultLine:
    """Audit a row that ends whatever process scores it."""
    line = FaultLine("a row ends its process", "found by halving its shard: status crashed, all other rows scored")
    return _white_row(audit, line, "ending", Status.CRASHED.value)


def rows_that_hang(audit: SmallAudit) -> FaultLine:
    """Audit a row from which no worker returns."""
    line = FaultLine("a row hangs", "its worker is ended; found by halving its shard: status timed_out, others scored")
    return _white_row(audit, line, "hanging", "timed_out", "--set", f"hang_minutes={HANG_MINUTES}")


def heads_lost(audit: SmallAudit) -> FaultLine:
    """Kill the processes of a cluster's head while an audit is at work; then resume without a cluster."""
    from ray.cluster_utils import Cluster

    line = FaultLine(
        "the cluster's head is lost",
        "its store of the cluster's state, and the process that a driver talks to, are killed: exit code 2, a "
        "sentence that says how to resume; resumed",
    )
    os.environ["PYTHONPATH"] = in_repository()["PYTHONPATH"]  # of the cluster's processes
    for part in ("gcs_server", "raylet"):
        output = audit.new(f"head-{part}")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        try:
            on_cluster = (*ON_RAY, "--ray-address", cluster.address)
            with audit.caught(output, 3, *on_cluster, environment=HEAD_PATIENCE) as driver:
                for process in cluster.head_node.all_processes[part]:
                    os.kill(process.process.pid, signal.SIGKILL)
                said, _ = driver.communicate()
        finally:
            cluster.shutdown()
        sentence = "the same command resumes" in said and "Traceback" not in said
        audit.resumed(line, output, driver.returncode == 2 and sentence, f"{driver.returncode}: {said}")
    return line


def late_writers(audit: SmallAudit) -> FaultLine:
    """Stop a driver, let another one take over and finish, and let the first go on."""
    line = FaultLine(
        "a late writer wakes up (SIGSTOP, SIGCONT)",
        "stopped while scoring and in its last phase, taken over as from another machine: it ends with exit code 2 "
        "and writes nothing",
    )
    for moment in ("scoring",) if audit.quick else ("scoring", "last phase"):
        output = audit.new("late")
        if moment == "scoring":
            with audit.caught(output, 5) as first:
                os.killpg(first.pid, signal.SIGSTOP)
        else:
            first = audit.start(output)
            wait_until((output / "findings.parquet").exists, first)
            os.killpg(first.pid, signal.SIGSTOP)
        seen_elsewhere(output)
        second = audit.audit(output)  # watches for a while if the first one still writes
        before = digests(output)
        os.killpg(first.pid, signal.SIGCONT)
        said, _ = first.communicate()
        silent = digests(output) == before and first.returncode == 2 and "taken over by another" in said
        line.count(silent and second.code == 0, audit.difference(output), f"{first.returncode}: {said} {second.said}")
    return line


def seen_elsewhere(output: Path) -> None:
    """Make the lock that of a machine whose processes cannot be seen from here."""
    lock = json.loads((output / LOCK).read_text())
    partial = output / ".lock.partial"
    partial.write_text(json.dumps({**lock, "boot": "another machine"}))
    partial.replace(output / LOCK)


def digests(output: Path) -> dict[str, str]:
    """Return the sha256 of every file of an output."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _white_row(audit: SmallAudit, line: FaultLine, factory: str, status: str, *more: str) -> FaultLine:
    """Audit the images, one of them white, and count the try by that row's status and by all other rows."""
    images, data, output = audit.images.copy(), audit.folder / f"white-{factory}", audit.new(f"out-{factory}")
    images[WHITE_ROW] = 255
    data.mkdir(exist_ok=True)
    write_image_parquet(data / "0.parquet", images, [f"image-{row}" for row in range(ROWS)])
    began = time.monotonic()
    driver = audit.start(output, *ON_RAY, "--max-failed", "0.1", *more, data=data, factory=factory)
    said, _ = driver.communicate()
    found = fragments(output)
    right = found.num_rows > WHITE_ROW and found["status"][WHITE_ROW].as_py() == status
    said = f"{driver.returncode} after {time.monotonic() - began:.0f} s: {said}"
    line.count(driver.returncode == 0 and right, audit.difference(output, (WHITE_ROW,)), said)
    return line
