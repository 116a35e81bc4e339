"""The theory as running code: models of which it is known what they memorize, and what an audit sees in them.

Each experiment is a section of its own under the output folder, written as soon as it is done, and the page shows
those that are there: a run that was stopped goes on with `--only` the rest.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from jobs.reproduce_paper.__main__ import provenance
from jobs.sections import Section, read, timed, write
from jobs.theory.flow_ends import flows, trained
from jobs.theory.mitigation import inertia, linear
from jobs.theory.seen import audit, mixtures
from jobs.theory.setting import Bench
from jobs.theory.theory_page import publish

EXPERIMENTS: dict[str, Callable[[Bench], Section]] = {
    "flows": flows,
    "trained": trained,
    "audit": audit,
    "mixtures": mixtures,
    "inertia": inertia,
    "linear": linear,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """What `jobs/theory.py` does."""
    parser = argparse.ArgumentParser(prog="theory", description="Models of which it is known what they memorize.")
    parser.add_argument("--output", type=Path, required=True, help="folder for tables, figures and the page")
    parser.add_argument("--quick", action="store_true", help="fewer samples, shorter training")
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), metavar="NAME", help=", ".join(EXPERIMENTS))
    given = parser.parse_args(arguments)
    command = shlex.join(["python", "jobs/theory.py", *(sys.argv[1:] if arguments is None else arguments)])
    bench = Bench(given.quick, say=lambda line: print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True))
    for name in given.only or EXPERIMENTS:
        bench.say(f"{name}: {EXPERIMENTS[name].__doc__}")
        section, seconds = timed(lambda name=name: EXPERIMENTS[name](bench))  # type: ignore[misc]
        write(section, given.output, seconds, provenance(command))
        page = publish(read(given.output, list(EXPERIMENTS)), given.output)
        bench.say(f"{name} took {seconds:.0f} s; page: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
