"""The Ray actor: a worker in a process of its own, and what it tells Ray's metrics."""

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from volgrowth.audit.output.manifest import Manifest
from volgrowth.audit.output.runs import Tally
from volgrowth.config import AuditConfig


@dataclass(frozen=True)
class Home:
    """Where a worker lives."""

    node: str
    device: str


@ray.remote(max_restarts=0, max_task_retries=0)
class Actor:
    """Holds a worker. Construction is cheap; `prepare` does what can fail."""

    def __init__(self, worker: type, config: AuditConfig, manifest: Manifest, device: str):
        self.worker, self.meters = worker(config, manifest, device), Meters()

    def prepare(self) -> Home:
        """Load what the worker needs. An answer means that it can take tasks."""
        self.worker.prepare()
        return Home(ray.get_runtime_context().get_node_id(), self.worker.device)

    def call(self, method: str, arguments: tuple[Any, ...], attempt: int) -> Any:
        """The worker's own method."""
        self.worker.attempt = attempt
        answer = getattr(self.worker, method)(*arguments)
        if isinstance(answer, Tally):
            self.meters.add(answer)
        return answer


class Meters:
    """Counters and gauges of `ray.util.metrics`; Ray adds node and worker."""

    def __init__(self) -> None:
        self.images = Counter("volgrowth_images", "Rows scored.")
        self.failures = Counter("volgrowth_failures", "Rows without a score.")
        self.evaluations = Counter("volgrowth_evaluations", "Network evaluations.")
        self.decode_wait = Counter("volgrowth_decode_wait_seconds", "The device waited for images.")
        self.device_wait = Counter("volgrowth_gpu_wait_seconds", "Decoded images waited for the device.")
        self.speed = Gauge("volgrowth_images_per_second", "Of the last shard.")
        self.batch = Gauge("volgrowth_batch_size", "Smallest micro-batch of the last shard.")
        self._last = time.monotonic()

    def add(self, tally: Tally) -> None:
        """Count a task."""
        counts = {
            self.images: tally.images,
            self.failures: tally.failed,
            self.evaluations: tally.evaluations,
            self.decode_wait: tally.decode_wait,
            self.device_wait: tally.device_wait,
        }
        for counter, amount in counts.items():
            if amount > 0:  # Ray refuses others
                counter.inc(amount)
        self.speed.set(tally.images / max(tally.seconds, 1e-9))
        self.batch.set(tally.smallest_batch)
