"""Measure by sampling which images a small model really reproduces: the truth that scores are compared with."""

import numpy as np

from volgrowth.analysis.verification.proof import Reproduced, decide_reproduced
from volgrowth.audit.sampling.hits import NEIGHBOURS, hit_groups
from volgrowth.audit.sampling.neighbours import Neighbours


def find_reproduced(
    samples: np.ndarray,
    images: np.ndarray,
    holdout: np.ndarray,
    family: np.ndarray | None = None,
    held_family: np.ndarray | None = None,
) -> Reproduced:
    """Decide which training images the samples reproduce, by the rule of `volgrowth.analysis.verification.proof`.

    Args:
        samples: images drawn from the model, (S, *image).
        images: training images, (N, *image).
        holdout: images that the model was not trained on, (M, *image).
        family: number, from 0, of the image that each training image is a copy of, (N,); by default every training
            image is its own family.
        held_family: the same of each held-out image, numbered from 0 again, (M,).

    Returns:
        Hits of each family and of each held-out image, and the number of hits that makes a family reproduced.
    """
    family = np.arange(len(images)) if family is None else family
    families = int(family.max(initial=-1)) + 1
    held_family = np.arange(len(holdout)) if held_family is None else held_family
    hit = hit_families(samples, images, holdout, family, held_family)
    counts = np.bincount(hit[hit >= 0], minlength=families + int(held_family.max(initial=-1)) + 1)
    return decide_reproduced(counts[:families], counts[families:], len(samples))


def hit_families(
    samples: np.ndarray,
    images: np.ndarray,
    holdout: np.ndarray,
    family: np.ndarray,
    held_family: np.ndarray | None = None,
) -> np.ndarray:
    """Return the number of the family that each sample hits, (S,): those of held-out images come last; -1 for none."""
    families = int(family.max(initial=-1)) + 1
    held_family = np.arange(len(holdout)) if held_family is None else held_family
    found = Neighbours(samples, min(NEIGHBOURS, families + int(held_family.max(initial=-1)) + 1))
    found.add(images, family)
    found.add(holdout, families + held_family)
    return hit_groups(np.sqrt(found.squared), found.group)
