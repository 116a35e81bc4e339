"""The Ray actor: a worker in a process of its own, and its counters among Ray's metrics."""

import os
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from volgrowth.audit.engine.device_faults import DeviceFailedError, device_failed
from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.output.runs import Tally
from volgrowth.audit.workers.loading import use_one_thread
from volgrowth.config import AuditConfig
from volgrowth.errors import kind_and_line
from volgrowth.models.user_code import note_line

# two shards are scored at a time where calls may overlap; no other method gives the device free before it ends
OVERLAPPING = "score"
# the group of calls that are answered while others are worked on
WATCH = "watch"


@dataclass(frozen=True)
class Home:
    """Where a worker is: its node, its device and the device's name, host and process."""

    node: str
    device: str
    device_name: str
    host: str
    pid: int


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={WATCH: 1})
class Actor:
    """Holds a worker. It is cheap to construct; `prepare` does what can fail."""

    def __init__(self, worker: Callable[..., Any], config: AuditConfig, manifest: Manifest, device: str):
        self.worker, self.meters = worker(config, manifest, device), Meters()

    def prepare(self) -> Home:
        """Load what the worker needs, and return where it lives: from then on it can take tasks."""
        context = ray.get_runtime_context()
        node, share = context.get_node_id(), context.get_assigned_resources().get("GPU", 0.0)
        self.worker.workers_here = workers_on(node, nodes := ray.nodes() if share else [], share)
        self.worker.cores_here, self.worker.gpu_share = cores_of(node, nodes), min(1.0, share or 1.0)
        try:
            self.worker.prepare()
        except Exception as error:  # whatever a library raises that finds a GPU out of order
            if not device_failed(error):
                raise
            raise DeviceFailedError(node, platform.node(), kind_and_line(error)) from None
        return Home(node, self.worker.device, self.worker.device_name, platform.node(), os.getpid())

    @ray.method(concurrency_group=WATCH)
    def measured(self) -> int:
        """Return how many rows are measured in calls that are not answered yet."""
        return int(self.worker.measured)

    def call(self, method: str, arguments: tuple[Any, ...], attempt: int) -> Any:
        """Call a method of the worker and return its answer, after counting it if it is a tally."""
        use_one_thread()
        self.worker.attempt = attempt
        try:
            with self.worker.counting(), nullcontext() if method == OVERLAPPING else self.worker.turn:
                answer = getattr(self.worker, method)(*arguments)
        except Exception as error:
            note_line(error)
            raise
        if isinstance(answer, Tally):
            self.meters.add(answer)
        return answer


def workers_on(node: str, nodes: list[dict[str, Any]], share: float) -> int:
    """Return how many workers a node has room for if each has a share of a GPU; 1 if they have none."""
    gpus = sum(each["Resources"].get("GPU", 0.0) for each in nodes if each["NodeID"] == node)
    return max(1, int(gpus / share)) if share else 1


def cores_of(node: str, nodes: list[dict[str, Any]]) -> int | None:
    """Return how many cores of a node Ray gives out, fewer than the machine has in a container; None if unknown."""
    cores = [int(each["Resources"].get("CPU", 0.0)) for each in nodes if each["NodeID"] == node]
    return max(1, *cores) if cores else None


class Meters:
    """Counters and gauges of `ray.util.metrics`. Ray adds the node and the worker to each."""

    def __init__(self) -> None:
        self.images = Counter("volgrowth_images", "Rows scored.")
        self.failures = Counter("volgrowth_failures", "Rows without a score.")
        self.evaluations = Counter("volgrowth_evaluations", "Network evaluations.")
        self.decode_wait = Counter("volgrowth_decode_wait_seconds", "The device waited for images.")
        self.device_wait = Counter("volgrowth_gpu_wait_seconds", "Decoded images waited for the device.")
        self.speed = Gauge("volgrowth_images_per_second", "Rows per second of the last shard.")
        self.batch = Gauge("volgrowth_batch_size", "Smallest micro-batch of the last shard.")

    def add(self, tally: Tally) -> None:
        """Count the rows and the seconds of a task."""
        counts = {
            self.images: tally.images,
            self.failures: tally.failed,
            self.evaluations: tally.evaluations,
            self.decode_wait: tally.decode_wait,
            self.device_wait: tally.device_wait,
        }
        for counter, amount in counts.items():
            if amount > 0:  # Ray refuses to add 0
                counter.inc(amount)
        self.speed.set(tally.images / max(tally.seconds, 1e-9))
        self.batch.set(tally.smallest_batch)
