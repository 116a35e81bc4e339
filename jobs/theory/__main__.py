"""The theory as running code: models of which it is known what they memorize, and what an audit sees in them."""

import sys
from collections.abc import Callable, Sequence

from jobs.experiments import Outcome, experiment_parser, run_experiments
from jobs.theory.fall import fall
from jobs.theory.flow_ends import flow_ends
from jobs.theory.mitigation import inertia, linear
from jobs.theory.seen import mixtures, seen
from jobs.theory.setting import Laboratory
from jobs.theory.trained_networks import trained_networks

EXPERIMENTS: dict[str, Callable[[Laboratory], Outcome]] = {
    "flows": flow_ends,
    "trained": trained_networks,
    "fall": fall,
    "audit": seen,
    "mixtures": mixtures,
    "inertia": inertia,
    "linear": linear,
}


def run_theory(arguments: Sequence[str] | None = None) -> int:
    """Run `jobs/theory.py`. Returns the exit code 0."""
    parser = experiment_parser("theory", "Models of which it is known what they memorize.", list(EXPERIMENTS))
    given = parser.parse_args(arguments)
    run_experiments("theory", EXPERIMENTS, given.only, Laboratory(given.quick), given.output)
    return 0


if __name__ == "__main__":
    sys.exit(run_theory())
