"""The records of an audit's runs: workers count, the driver sums, and the output keeps one file for each run.

An audit that was resumed had several runs. No score depends on these records, and a driver that
is killed loses at most the last seconds of its own.
"""

import json
import os
import platform
import time
import uuid
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from volgrowth.audit.output.mending import SHAPES, kept_json
from volgrowth.errors import OutputError, UsageError
from volgrowth.storage.store import Store

RUNS_FOLDER = "runs"
SAVE_EVERY = 30.0
LOG_BEGINS = b'{"time": "'


@dataclass
class Tally:
    """Counts and seconds of one task or of many.

    Attributes:
        images: rows scored, `failed` of them without a score.
        failed: rows without a score.
        evaluations: network evaluations, summed over images.
        seconds: seconds that the workers were busy.
        decode_wait: seconds of these that the device waited for images to be read and decoded.
        device_wait: seconds that decoded images waited for the device.
        smallest_batch: images in the smallest micro-batch, 0 if nothing was measured.
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
    """The record of one run, and its log for machines: one JSON object a line.

    Attributes:
        log: the file that the log is appended to; None for no log.
        tally: the sum over all tasks.
        devices: kinds of the workers' devices: cpu, cuda.
        device_names: which devices these are, such as NVIDIA H100 80GB HBM3.
        workers: the most workers that were ready at a time.
        room: the workers that the cluster had room for.
        working_seconds: seconds that there were tasks, the start of workers included.
        worker_seconds: seconds that workers were there, busy or not, summed over workers.
        startup_seconds: seconds that the slowest worker took to start.

    Raises:
        UsageError: the log cannot be written, or would follow what is no log, such as a file of the audit itself.
    """

    store: Store
    log: str | None = None
    tally: Tally = field(default_factory=Tally)
    devices: set[str] = field(default_factory=set)
    device_names: set[str] = field(default_factory=set)
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
                if not _may_follow(Path(self.log)):
                    raise UsageError(
                        f"--log-json {self.log} is there, and is no log of an audit: give a new file, or an earlier log"
                    )
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
        """Write an event to the log, if there is one."""
        if self._log:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            print(json.dumps({"time": now, "event": kind, "run": self.name, **fields}), file=self._log, flush=True)

    def add(self, tally: Tally) -> None:
        """Add the tally of a task."""
        self.tally = self.tally + tally

    def pulse(self) -> None:
        """Save the record if the last time is long ago. It may be called often."""
        if time.monotonic() - self._saved >= SAVE_EVERY and self.tally.images:
            with suppress(OutputError):  # a store that is away for a moment must not end the run for this
                self.save()

    def save(self) -> None:
        """Write the record to the output."""
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
            "device_names": sorted(self.device_names),
            "lost_workers": self.lost_workers,
            "retries": self.retries,
        }


def total_effort(store: Store) -> dict[str, Any]:
    """Return the time and the workers of all runs of an audit together, from the records in its output.

    Returns:
        `seconds`: from start to end of each run, summed; `device_hours`: hours that workers were there, busy or not,
        which a cluster charges for; `workers`: the most workers at a time; `device`: kinds of the devices;
        `device_names`: which ones, none for runs of versions that did not note them; `images_per_second`: rows scored
        per second that there were tasks, the start of workers included; `decode_share`, `device_share`: shares of the
        workers' busy time that the device waited for images, and images for the device; `lost_workers`; `retries`:
        tasks that were tried again; `runs`: the number of runs.
    """
    names = [f"{RUNS_FOLDER}/{name}" for name in store.names(RUNS_FOLDER) if not name.startswith(".")]
    found = [kept_json(store, name, SHAPES[RUNS_FOLDER], "the time of that run is not counted") for name in names]
    runs = [run for run in found if run is not None]

    def total(name: str) -> Any:
        return sum(run[name] for run in runs)

    busy = max(total("seconds"), 1e-9)
    return {
        "seconds": total("wall_seconds"),
        "device_hours": total("worker_seconds") / 3600,
        "workers": max((run["workers"] for run in runs), default=0),
        "device": " and ".join(sorted({device for run in runs for device in run["devices"]})) or "none",
        "device_names": sorted({name for run in runs for name in run.get("device_names", [])}),
        "images_per_second": total("images") / max(total("working_seconds"), 1e-9),
        "decode_share": total("decode_wait") / busy,
        "device_share": total("device_wait") / busy,
        "lost_workers": total("lost_workers"),
        "retries": total("retries"),
        "runs": len(runs),
    }


def _may_follow(log: Path) -> bool:
    """Return whether a log may be appended to this file: it is not there, empty, no plain file, or a log already."""
    if not log.is_file() or not log.stat().st_size:
        return True
    with log.open("rb") as file:
        return file.read(len(LOG_BEGINS)) == LOG_BEGINS
