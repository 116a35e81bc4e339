"""What a small model really reproduces, by sampling: the truth that scores are compared with."""

import numpy as np

from volgrowth.analysis.proof import NEIGHBOURS, Reproduced, hit_groups, judge
from volgrowth.audit.sampling.neighbours import Neighbours
from volgrowth.demo.setups import Trained


def measure_truth(trained: Trained) -> Reproduced:
    """Which families of a case its model's samples reproduce; a family is hit in any of its forms."""
    case = trained.case
    return find_reproduced(trained.samples, case.train, case.holdout, case.family)


def find_reproduced(
    samples: np.ndarray, images: np.ndarray, holdout: np.ndarray, family: np.ndarray | None = None
) -> Reproduced:
    """The rule of `analysis.verification` on samples (S, ...), training images (N, ...) and held-out ones (M, ...).

    Without `family` (N,), which counts from 0, every training image is its own; held-out images always are.
    """
    family = np.arange(len(images)) if family is None else family
    families = int(family.max(initial=-1)) + 1
    found = Neighbours(samples, min(NEIGHBOURS, families + len(holdout)))
    found.add(images, family)
    found.add(holdout, families + np.arange(len(holdout)))
    hit = hit_groups(np.sqrt(found.squared), found.group)
    counts = np.bincount(hit[hit >= 0], minlength=families + len(holdout))
    return judge(counts[:families], counts[families:], len(samples))
