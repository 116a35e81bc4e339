r"""p-values of the excess over the expected score, against held-out images.

With m distinct held-out images of folds k(j), the conformal p-value of an audited image i is cross-conformal (Vovk,
arXiv 1208.0806): how many held-out images exceed what the same regression expects of them by as much,

    p_i = (1 + #{j: s_j - M_k(j)(x_j) >= s_i - M_k(j)(x_i)}) / (1 + m)

which is uniform or larger, up to the dependence of the folds, for an image exchangeable with the held-out ones. It is
never below 1 / (1 + m). Where the tail of the held-out excess can be fitted (`tails`), an image beyond its threshold
in any fold gets the mean over folds, weighted by the held-out images in them, of the tail's upper limit at its excess
in that fold.

A cascade measures s only where a cheap score, the screen z, is high. The screen's own regressions N_k give an excess
z_i - N_k(x_i) in each fold, and image i passes fold k where that is at least t, the K-th largest of the held-out
images' own excesses z_j - N_k(j)(x_j), K = ceil(share * m). The screened score in fold k is

    s_i - M_k(x_i) where i passes fold k, else -infinity

for audited and held-out images alike, and p_i is as above with it: the screen is a part of the score and no choice of
tests, and what it loses it loses to p = 1. That t is one of the held-out values costs nothing. In one fold, N and M
given, let T be the K + 1 images of highest screen among i and the held-out ones. If i passes, it is in T and the others
that pass are the rest of T; so p_i <= a / (1 + m) asks i to be in T and among its a highest in s, which has the chance
(K + 1) / (1 + m) * a / (K + 1) for an exchangeable image. An image that fails one fold is behind all held-out images of
it, so that its p-value is 1 / FOLDS or so at best and flags nothing. It is taken as 1, and the image is not measured.
The tail is fitted without the screen: to pass and to exceed a value is no more likely than to exceed it.
"""

from dataclasses import dataclass, replace

import numpy as np

from volgrowth.analysis.calibration.expected_scores import FOLDS, Excess, Passing
from volgrowth.analysis.calibration.tails import Tail


@dataclass(frozen=True)
class PValues:
    """p-values of n audited images.

    Attributes:
        used: those that decide, (n,): of the tail where there is one, else conformal.
        conformal: (n,).
    """

    used: np.ndarray
    conformal: np.ndarray


def held_out_p_values(excess: Excess, tail: Tail | None, passing: Passing | None = None) -> PValues:
    """Return p-values against held-out images.

    Args:
        excess: of the audited and the held-out images.
        tail: of the held-out images' excess, if it could be fitted.
        passing: result of a screen of the same images.
    """
    screened = excess
    if passing:
        audited = np.where(passing.audited, excess.audited, -np.inf)
        screened = replace(excess, audited=audited, held=np.where(passing.held, excess.held, -np.inf))
    conformal = _conformal(screened)
    if tail is None:
        return PValues(conformal, conformal)
    beyond = np.any(screened.audited > tail.threshold, axis=0)
    used = conformal.copy()
    used[beyond] = _tail_p_values(excess, tail, beyond)
    return PValues(used, conformal)


def _conformal(excess: Excess) -> np.ndarray:
    exceeding = np.zeros(excess.audited.shape[1])
    for fold, own in enumerate(excess.audited):
        reference = np.sort(excess.held[excess.fold == fold])
        exceeding += len(reference) - np.searchsorted(reference, own, side="left")
    return (1 + exceeding) / (1 + len(excess.held))


def _tail_p_values(excess: Excess, tail: Tail, beyond: np.ndarray) -> np.ndarray:
    """Return p-values of the images in the mask `beyond`."""
    held, rows = np.sort(excess.held), len(excess.held)
    weights = np.bincount(excess.fold, minlength=FOLDS) / rows
    p_value = np.zeros(int(beyond.sum()))
    for weight, own in zip(weights, excess.audited[:, beyond], strict=True):
        empirical = (1 + rows - np.searchsorted(held, own, side="left")) / (1 + rows)
        p_value += weight * np.where(own > tail.threshold, tail.p_values(own), empirical)
    return p_value
