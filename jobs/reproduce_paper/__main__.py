"""The experiments of Hasegawa & Yasuda (arXiv 2503.19429) on data at hand, and those that their paper leaves open.

Without a data file they use scikit-learn's digits: as they are for the planted case, enlarged to 12x12 for the overfit
experiment.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.experiments import Outcome, experiment_parser, run_experiments
from jobs.reproduce_paper.ablation import ablation
from jobs.reproduce_paper.overfit import degrees, overfit
from jobs.reproduce_paper.planted import memorized, other_scores
from jobs.reproduce_paper.retraining import curation
from jobs.reproduce_paper.stochastic import stochastic
from jobs.reproduce_paper.trajectory import trajectory
from jobs.reproduce_paper.workshop import FULL, QUICK, Workshop, planted_setup
from volgrowth.errors import VolgrowthError
from volgrowth.plain import plain, print_plain

EXPERIMENTS: dict[str, Callable[[Workshop], Outcome]] = {
    "overfit": overfit,
    "degrees": degrees,
    "memorized": memorized,
    "ablation": ablation,
    "trajectory": trajectory,
    "scores": other_scores,
    "stochastic": stochastic,
    "curation": curation,
}

DATA_HELP = (
    "an .npz with `x`, uint8 (n, H, W) or (n, H, W, 3), such as those that `python jobs/benchmark.py images` makes; "
    "scikit-learn's digits by default"
)


def reproduce_paper(arguments: Sequence[str] | None = None) -> int:
    """Run `jobs/reproduce_paper.py`. Returns the exit code: 0 done, 2 could not start."""
    parser = experiment_parser("paper", "The experiments of arXiv 2503.19429.", list(EXPERIMENTS))
    parser.add_argument("--data", type=Path, help=DATA_HELP)
    parser.add_argument("--models", type=Path, default=Path("artifacts/paper"), help="where trained models are kept")
    given = parser.parse_args(arguments)
    try:
        shop = Workshop(QUICK if given.quick else FULL, planted_setup(given.data), given.data, given.models)
        run_experiments("paper", EXPERIMENTS, given.only, shop, given.output)
    except VolgrowthError as error:
        print_plain(f"error: {plain(str(error))}", error=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(reproduce_paper())
