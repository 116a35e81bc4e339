"""What running an audit took: counted by the workers, summed by the driver, kept in OUT, one file a run.

An audit that was resumed had several runs; `Effort` is the sum of them. Nothing here is part of a score, and a
driver that is killed loses the last seconds of its own record at most.
"""

import json
import os
import platform
import time
import uuid
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from volgrowth.errors import OutputError, UsageError
from volgrowth.storage.store import Store

RUNS_FOLDER = "runs"
SAVE_EVERY = 30.0


@dataclass
class Tally:
    """Of one task or of many: counts, and seconds of the workers' time.

    Attributes:
        images: rows scored, of which `failed` have no score.
        evaluations: of the network, summed over images.
        seconds: the workers were busy.
        decode_wait: of these, the device waited for images to be read and decoded.
        device_wait: decoded images waited for the device.
        smallest_batch: micro-batch that was measured with, 0 for none.
    """

    images: int = 0
    failed: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    decode_wait: float = 0.0
    device_wait: float = 0.0
    smallest_batch: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        batches = [batch for batch in (self.smallest_batch, other.smallest_batch) if batch]
        sums = {name: getattr(self, name) + getattr(other, name) for name in asdict(self)}
        return Tally(**{**sums, "smallest_batch": min(batches, default=0)})


@dataclass
class Run:
    """The record of one run, and its log for machines: one JSON object a line, appended to `log` where one is given.

    Raises:
        UsageError: the log cannot be written.
    """

    store: Store
    log: str | None = None
    tally: Tally = field(default_factory=Tally)
    devices: set[str] = field(default_factory=set)
    workers: int = 0
    room: int = 1
    working_seconds: float = 0.0
    worker_seconds: float = 0.0
    startup_seconds: float = 0.0
    lost_workers: int = 0
    retries: int = 0

    def __post_init__(self) -> None:
        self.started = datetime.now(UTC)
        self.name = f"{self.started:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self._began = self._saved = time.monotonic()
        self._log = None
        if self.log:
            try:
                self._log = open(self.log, "a")  # noqa: SIM115 - closed on exit
            except OSError as error:
                raise UsageError(f"--log-json {self.log} cannot be written ({error.strerror}): give a file") from None

    def __enter__(self) -> Self:
        self.event("started", output=self.store.url, host=platform.node(), pid=os.getpid())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.event(
            "ended", error=None if error is None else f"{type(error).__name__}: {error}".strip(), **self._totals()
        )
        if self._log:
            self._log.close()
        if self.tally.images:
            with suppress(OutputError) if error else nullcontext():
                self.save()

    def event(self, kind: str, **fields: Any) -> None:
        """Log what happened."""
        if self._log:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            print(json.dumps({"time": now, "event": kind, "run": self.name, **fields}), file=self._log, flush=True)

    def add(self, tally: Tally) -> None:
        """A task was done."""
        self.tally = self.tally + tally

    def pulse(self) -> None:
        """Called often: keeps the record in OUT up to date."""
        if time.monotonic() - self._saved >= SAVE_EVERY and self.tally.images:
            with suppress(OutputError):  # a store that is away for a moment must not end the run for this
                self.save()

    def save(self) -> None:
        """Write the record."""
        self._saved = time.monotonic()
        self.store.write_json(
            f"{RUNS_FOLDER}/{self.name}.json", {"started": self.started.isoformat(), **self._totals()}
        )

    def _totals(self) -> dict[str, Any]:
        return {
            **asdict(self.tally),
            "wall_seconds": time.monotonic() - self._began,
            "working_seconds": self.working_seconds,
            "worker_seconds": self.worker_seconds,
            "workers": self.workers,
            "startup_seconds": self.startup_seconds,
            "devices": sorted(self.devices),
            "lost_workers": self.lost_workers,
            "retries": self.retries,
        }


@dataclass(frozen=True)
class Effort:
    """What all runs of an audit took together.

    Attributes:
        seconds: from start to end of each run, summed.
        device_hours: that workers were there, busy or not: what a cluster charges for.
        workers: the most at a time.
        device: names of the devices.
        images_per_second: rows scored over the seconds that there were tasks, the start of workers included.
        decode_share, device_share: of the workers' busy time, how much the device waited for images, and images for
            the device.
    """

    seconds: float
    device_hours: float
    workers: int
    device: str
    images_per_second: float
    decode_share: float
    device_share: float
    lost_workers: int
    retries: int
    runs: int


def effort(store: Store) -> Effort:
    """The sum over the records in OUT."""
    runs = [store.read_json(f"{RUNS_FOLDER}/{name}") for name in store.names(RUNS_FOLDER)]

    def total(name: str) -> Any:
        return sum(run[name] for run in runs)

    busy = max(total("seconds"), 1e-9)
    return Effort(
        seconds=total("wall_seconds"),
        device_hours=total("worker_seconds") / 3600,
        workers=max((run["workers"] for run in runs), default=0),
        device=" and ".join(sorted({device for run in runs for device in run["devices"]})) or "none",
        images_per_second=total("images") / max(total("working_seconds"), 1e-9),
        decode_share=total("decode_wait") / busy,
        device_share=total("device_wait") / busy,
        lost_workers=total("lost_workers"),
        retries=total("retries"),
        runs=len(runs),
    )
