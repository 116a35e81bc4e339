"""Measurements on models trained on the spot: `python jobs/benchmark.py detection --output DIR`.

`detection` compares memorization scores, raw and calibrated, with what the models reproduce when sampled. It runs in
this process, without Ray: its cases are small. Models, samples and scores are cached under DIR, so a rerun is quick.
"""

import argparse
import sys
from pathlib import Path

from volgrowth.errors import VolgrowthError
from volgrowth.lab.bench import choose, run_bench
from volgrowth.lab.bench_page import write
from volgrowth.lab.scores import choose_scores


def detection(options: argparse.Namespace) -> None:
    """Every score on every case, as a table, a page and Markdown."""
    setups, scores = choose(options.data, options.cases), choose_scores(options.only, options.score)
    write(options.output, *run_bench(setups, options.seeds, options.data, options.output, scores))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bench = parser.add_subparsers(required=True).add_parser("detection", description=detection.__doc__)
    bench.set_defaults(run=detection)
    bench.add_argument("--output", type=Path, required=True, help="where tables, page and the cache go")
    bench.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of mnist12.npz, emoji32.npz")
    bench.add_argument("--cases", nargs="+", help="cases of the bench; all by default")
    bench.add_argument("--seeds", type=int, default=2, help="seeds of each case")
    bench.add_argument("--only", nargs="+", help="built-in scores; all by default")
    bench.add_argument("--score", nargs="+", default=[], help="scores of your own, as module:function")
    try:
        (given := parser.parse_args()).run(given)
    except VolgrowthError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
