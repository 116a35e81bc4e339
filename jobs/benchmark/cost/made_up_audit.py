"""An audit with made-up scores that only has to be finished: `python FILE make FOLDER ROWS`, then `finish FOLDER`.

`python FILE command FOLDER NAME` runs a command on the finished audit, and measures its memory.

Any version of volgrowth can run this file, which imports nothing of `jobs`: PYTHONPATH chooses the version. So two can
be compared on one machine.

The output is frozen as `volgrowth audit` freezes it, and all its fragments are published. The made-up rows have the
properties that decide the work after that: scores that depend on complexity, one row in ten an exact copy of an earlier
row, a few memorized rows, one row in a thousand without a score.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy import stats

MODEL = "factory:jobs.benchmark.cost.engine_load:costless_denoiser"
SHARD_ROWS = 10_000
FILE_ROWS = 100_000
HELD_OUT = 20_000
LEVELS = 10
# the functions whose CPU seconds are shown, and the modules that may call them: older versions had no second one
STEPS = (
    ("analysis, CPU s", "analyse"),
    ("analysis, CPU s", "write_findings"),
    ("summary, CPU s", "summarize_audit"),
    ("report, CPU s", "write_report"),
)
CALLERS = ("volgrowth.commands.audit", "volgrowth.commands.measuring")


def make_scores(folder: Path, rows: int) -> Path:
    """Freeze an audit of so many rows and publish made-up fragments, if they are not there yet. Returns the folder."""
    from volgrowth.audit.output.fragments import publish_fragment
    from volgrowth.audit.output.freezing import freeze
    from volgrowth.audit.output.manifest import SCORES_FOLDER
    from volgrowth.commands.audit import inspect_inputs
    from volgrowth.storage.store import Store

    output = folder / "out"
    if (folder / "done").exists():
        return output
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data, held = _write_one_image(folder / "data.parquet", rows), _write_one_image(folder / "held.parquet", HELD_OUT)
    config, store = _config(output, data, held), Store(str(output))
    manifest = freeze(store, inspect_inputs(config))
    for shard in manifest.shards:
        held_out = shard.folder != SCORES_FOLDER
        table = made_up(shard.start, shard.rows, 1 if held_out else 0, memorized=0.0 if held_out else 1e-3)
        publish_fragment(store, manifest, shard, table, 1)
    (folder / "done").touch()
    return output


def made_up(start: int, count: int, seed: int, memorized: float) -> pa.Table:
    """Return made-up scores of `count` rows from `start` on, with the columns of `records.SCORES`."""
    from volgrowth.records import SCORES
    from volgrowth.sources import bytes_hash

    random = np.random.default_rng([seed, start])
    image = _images(random, start, count, seed)
    plain, light, tone = (_normal(image, salt) for salt in range(3))
    known = np.isin(np.arange(count), np.flatnonzero(random.uniform(size=count) < memorized))
    luck = 4.0 * known + np.stack([_normal(image, salt) for salt in (3, 4, 5)])
    variance = np.exp(-2 + 0.5 * light + 0.3 * plain).astype(np.float32)
    growth = 40 - 6 * plain + 2 * np.sin(3 * tone) + np.log(variance) + 0.8 * luck[0]
    failed = random.uniform(size=count) < 1e-3
    columns: dict[str, Any] = {
        "row": np.arange(start, start + count),
        "image_id": [f"sha256:{number:064x}" for number in image.tolist()],
        "source": [f"data.parquet:{row}" for row in range(start, start + count)],
        "status": np.where(failed, "non_finite", "ok"),
        "error": pa.array(["not finite: growth"] * count, mask=~failed),
        "png_bytes": np.exp(6 + 0.5 * plain + 0.1 * light).astype(np.int32),
        "variance": variance,
        "total_variation": (0.2 * np.exp(0.5 * plain + 0.2 * light)).astype(np.float32),
        "mean": (0.3 * tone).clip(-1, 1).astype(np.float32),
        "edge_density": (1 / (1 + np.exp(-plain - 0.5 * light))).astype(np.float32),
        "phash": _mixed(image, 7),
        "content_hash": _mixed(image, 8),
        "bytes_hash": np.full(count, bytes_hash(_one_image()), np.uint64),
        "nfe": np.full(count, 15),
        "batch": np.full(count, 256),
    }
    measured = {
        "growth": growth,
        "loss": np.exp(-2 + 0.4 * plain - 0.3 * luck[1]),
        "lid": growth / 2,
        "noise_norm": np.exp(1 + 0.2 * plain - 0.2 * luck[2]),
        "sharpness": growth * 0.1,
    }
    columns |= {name: pa.array(values, mask=failed) for name, values in measured.items()}
    rates = pa.array((growth[:, None] * np.linspace(0.5, 1.5, LEVELS)).astype(np.float32).ravel())
    ends = np.arange(count + 1) * LEVELS
    columns["rates"] = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), rates)
    columns["marks"] = pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.string()))
    return pa.table([columns.get(f.name, pa.nulls(count, f.type)) for f in SCORES], names=SCORES.names).cast(SCORES)


def _images(random: np.random.Generator, start: int, count: int, seed: int) -> np.ndarray:
    """Return the number of each row's image: its own, or for one row in ten that of an earlier row."""
    own = np.arange(start, start + count)
    earlier = random.integers(0, np.maximum(own, 1))
    drawn = np.where((random.uniform(size=count) < 0.1) & (own > 0), earlier, own)
    return drawn.astype(np.uint64) * np.uint64(50) + np.uint64(seed << 50)


def _mixed(number: np.ndarray, salt: int) -> np.ndarray:
    """Return a hash of each number, (n,) uint64 (splitmix64)."""
    mixed = (number + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _normal(image: np.ndarray, salt: int) -> np.ndarray:
    """Return a standard normal number for each image, the same for its copies."""
    return stats.norm.ppf((_mixed(image, 100 * (salt + 1)) >> np.uint64(11)) / 2.0**53 + 2.0**-54)


def _write_one_image(path: Path, rows: int) -> Path:
    """Write a Parquet file in which every row is the same image, and which is small however many rows it has."""
    images = pa.array([{"bytes": _one_image(), "path": None}])
    with pq.ParquetWriter(path, pa.schema({"image": images.type})) as writer:
        for start in range(0, rows, FILE_ROWS):
            some = images.take(pa.array(np.zeros(min(FILE_ROWS, rows - start), int)))
            writer.write_table(pa.table({"image": some}))
    return path


def _one_image() -> bytes:
    stream = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _config(output: Path, data: Path, held: Path) -> Any:
    from volgrowth.config import AuditConfig

    named: dict[str, Any] = {"model": MODEL, "data": str(data), "holdout": str(held), "output": str(output)}
    return AuditConfig.build(**named, shard_size=SHARD_ROWS, engine="local", max_failed=0.01)


def finish_here(folder: Path) -> dict[str, Any]:
    """Finish the audit of a folder in this process, which should do nothing else; forget what came of it before."""
    output = folder / "out"
    for name in ("findings.parquet", "holdout-findings.parquet", "summary.json", "report.html", "_SUCCESS"):
        (output / name).unlink(missing_ok=True)
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return function(*given, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - began

        return call

    for caller in [import_module(name) for name in CALLERS if find_spec(name)]:
        for name, function in STEPS:
            if hasattr(caller, function):
                setattr(caller, function, timed(name, getattr(caller, function)))
    config = _config(output, folder / "data.parquet", folder / "held.parquet")
    started, began, cpu = _memory("VmRSS"), time.monotonic(), time.process_time()
    with _temporary_files(folder / "temporary") as most:
        import_module("volgrowth.commands.audit").run_audit(config, quiet=True)
    seconds = time.monotonic() - began
    return {
        "seconds": seconds,
        "CPU, s": time.process_time() - cpu,
        **{name: spent.get(name) for name, _ in STEPS},
        "at start, MiB": started,
        "above it, MiB": _memory("VmHWM") - started,
        "temporary files, MiB": most[0] / 2**20,
    }


@contextmanager
def _temporary_files(folder: Path) -> Iterator[list[int]]:
    """Put temporary files into a folder of their own meanwhile. The list holds the most bytes that were there."""
    most, over = [0], Event()

    def watch() -> None:
        while not over.wait(0.2):
            sizes = [_size(path) for path in folder.rglob("*")]
            most[0] = max(most[0], sum(sizes))

    folder.mkdir(exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    thread = Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()
        tempfile.tempdir = before


def _size(path: Path) -> int:
    """Return the bytes of a file; 0 if it has just gone, or is a folder."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def command_here(folder: Path, name: str) -> dict[str, Any]:
    """Run one of `COMMANDS` on the finished audit of a folder in this process, which should do nothing else."""
    command, output = COMMANDS[name](), str(folder / "out")
    started, cpu = _memory("VmRSS"), time.process_time()
    command(output)
    return {"command": name, "CPU, s": time.process_time() - cpu, "above it, MiB": _memory("VmHWM") - started}


def _check() -> Callable[[str], Any]:
    from volgrowth.commands.check import check_audit

    return lambda output: check_audit(output, 0.05, 0.01)


def _curate() -> Callable[[str], Any]:
    from volgrowth.analysis.policy import CurationPolicy
    from volgrowth.commands.curate import write_curation

    def curate(output: str) -> None:
        file = Path(output).parent / "list.csv"
        file.unlink(missing_ok=True)
        write_curation(output, CurationPolicy("fdr", 0.1, "dedupe"), str(file), None)

    return curate


def _report() -> Callable[[str], Any]:
    import matplotlib.figure  # noqa: F401

    from volgrowth.commands.report import report_audit

    def report(output: str) -> None:
        (Path(output) / "report.html").unlink()  # a page that is whole is left as it is
        report_audit(output, redact=True)

    return report


def _check_output() -> Callable[[str], Any]:
    from volgrowth.audit.output.checking import verify_files
    from volgrowth.storage.store import Store

    return lambda output: verify_files(Store(output))


def _apply() -> Callable[[str], Any]:
    from volgrowth.commands.curate import write_curation

    def apply(output: str) -> None:
        copy = Path(output).parent / "curated"
        shutil.rmtree(copy, ignore_errors=True)
        write_curation(output, None, str(Path(output).parent / "list.csv"), str(copy))

    return apply


COMMANDS = {
    "check": _check,
    "curate --list": _curate,
    "curate --apply": _apply,
    "report": _report,
    "check-output": _check_output,
}
"""Commands on a finished audit, by name: each function imports what a command needs, and returns the command."""


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        print(make_scores(Path(sys.argv[2]), int(sys.argv[3])))
    elif sys.argv[1] == "command":
        print(json.dumps(command_here(Path(sys.argv[2]), sys.argv[3])))
    else:
        print(json.dumps(finish_here(Path(sys.argv[2]))))
