"""The command line of `jobs/benchmark.py`."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.benchmark.cost.scale import ROWS, run_scale, worker_counts, write_scale
from jobs.benchmark.cost.soak import run_soak
from jobs.benchmark.cost.soak import write as write_soak
from jobs.benchmark.detection.bench_page import write
from jobs.benchmark.detection.compared_scores import choose_scores
from jobs.benchmark.detection.experiment import choose, run_bench
from jobs.benchmark.near_duplicates import run as run_duplicates
from jobs.benchmark.near_duplicates import write as write_duplicates
from volgrowth.errors import VolgrowthError


def detection(options: argparse.Namespace) -> None:
    """Every score on every case, as a table, a page and Markdown."""
    setups, scores = choose(options.data, options.cases), choose_scores(options.only, options.score)
    write(options.output, *run_bench(setups, options.seeds, options.data, options.output, scores))


def soak(options: argparse.Namespace) -> None:
    """The engine under many rows: the driver's memory, and CPU time beside that of a plain loop."""
    options.output.mkdir(parents=True, exist_ok=True)
    measured = run_soak(options.output, options.rows)
    write_soak(options.output, measured, _device())
    print((options.output / "soak.md").read_text())


def duplicates(options: argparse.Namespace) -> None:
    """Groups of near duplicates among many planted hashes: time, memory, and what is found of the truth."""
    write_duplicates(options.output, run_duplicates(options.rows), _device())
    print((options.output / "duplicates.md").read_text())


def scale(options: argparse.Namespace) -> None:
    """Audits from a thousand rows up, by one worker or several: time, the driver's memory, CPU a row, resuming."""
    sizes = [rows for rows in ROWS if rows <= options.rows] or [options.rows]
    write_scale(options.output, *run_scale(options.output, sizes, worker_counts()), _device())
    print((options.output / "scale.md").read_text())


def speed(options: argparse.Namespace) -> None:
    """Presets on networks of published configurations, beside the device's peak and the published algorithm."""
    from jobs.benchmark.cost.speed_run import run_speed

    options.output.mkdir(parents=True, exist_ok=True)
    run_speed(options.output, quick=options.quick)
    print((options.output / "speed.md").read_text())


def _device() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """What `jobs/benchmark.py` does: 0 done, 2 could not start."""
    parser = argparse.ArgumentParser(prog="benchmark", description="Measurements of detection, speed, scale.")
    commands = parser.add_subparsers(required=True)
    load = commands.add_parser("soak", description=soak.__doc__)
    load.set_defaults(run=soak)
    load.add_argument("--output", type=Path, required=True, help="where data, audit and numbers go")
    load.add_argument("--rows", type=int, default=1_000_000, help="images")
    many = commands.add_parser("scale", description=scale.__doc__)
    many.set_defaults(run=scale)
    many.add_argument("--output", type=Path, required=True, help="where data, audits and numbers go")
    many.add_argument("--rows", type=int, default=100_000, help="images of the largest audit")
    fast = commands.add_parser("speed", description=speed.__doc__)
    fast.set_defaults(run=speed)
    fast.add_argument("--output", type=Path, required=True, help="where the numbers go")
    fast.add_argument("--quick", action="store_true", help="the smallest network and a tenth of the work")
    near = commands.add_parser("duplicates", description=duplicates.__doc__)
    near.set_defaults(run=duplicates)
    near.add_argument("--output", type=Path, required=True, help="where the numbers go")
    near.add_argument("--rows", type=int, default=1_000_000, help="hashes")
    bench = commands.add_parser("detection", description=detection.__doc__)
    bench.set_defaults(run=detection)
    bench.add_argument("--output", type=Path, required=True, help="where tables, page and the cache go")
    bench.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of mnist12.npz, emoji32.npz")
    bench.add_argument("--cases", nargs="+", help="cases of the bench; all by default")
    bench.add_argument("--seeds", type=int, default=2, help="seeds of each case")
    bench.add_argument("--only", nargs="+", help="built-in scores; all by default")
    bench.add_argument("--score", nargs="+", default=[], help="scores of your own, as module:function")
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except VolgrowthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
