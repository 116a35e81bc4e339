r"""The score that an image of this complexity shows anyway, the excess over it, and how unusual that is.

The expected score is a gradient-boosted regression on the image's complexity, with an absolute loss, so that the
memorized images it is meant to expose do not pull it up. Images are dealt to `FOLDS` folds by their content, copies
together, and count once; regression M_k has seen every image but those of fold k. No image is predicted by a regression
that has seen it:

    held-out      M_k are fitted on held-out images, less those that are audited as well. An audited image is expected
                  to show the mean of all M_k, a held-out image of fold k shows M_k.
    cross-fitted  without held-out images M_k are fitted on the audited ones, and an image of fold k shows M_k.

excess = score - expected. With m distinct held-out images of folds k(j), the p-value of an audited image i is cross-
conformal (Vovk, arXiv 1208.0806): how many held-out images exceed what the same regression expects of them by as much,

    p_i = (1 + #{j: s_j - M_k(j)(x_j) >= s_i - M_k(j)(x_i)}) / (1 + m)

which is uniform or larger, up to the dependence of the folds, for an image exchangeable with the held-out ones. Without
held-out images p-values are those of `error_rates.tail_p_values`.

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
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from volgrowth.analysis.calibration.error_rates import tail_p_values

FOLDS = 5

# more distinct images make the regression slower, not better
FIT_ROWS = 100_000

# distinct images below which a regression on six columns says nothing
MIN_IMAGES = 50


@dataclass(frozen=True)
class ScoredImages:
    """What calibration knows of a set of scored images: (n, features), (n,) with high for suspicious, and (n,).

    A feature may be NaN where it is not known.
    """

    features: np.ndarray
    score: np.ndarray
    content: np.ndarray

    @property
    def distinct(self) -> np.ndarray:
        """Index of the first row of each distinct image."""
        return np.sort(np.unique(self.content, return_index=True)[1])

    def __getitem__(self, rows: np.ndarray) -> "ScoredImages":
        return ScoredImages(self.features[rows], self.score[rows], self.content[rows])


@dataclass(frozen=True)
class Calibration:
    """Expected scores of the audited and the held-out images, and how good the regression is.

    Attributes:
        expected: (n,) of the audited images.
        p_value: (n,) of the audited images; with held-out images conformal, otherwise of an assumed tail.
        holdout_expected: (m,) of the held-out images; None without any.
        rows: distinct images the regressions were fitted on.
        shared: distinct held-out images left out, since they are audited as well.
        r2: share of the score's variance that is explained in images not seen.
        residual_spread: of their excess, 1.4826 times the median absolute deviation.
        outside: (n,) audited images outside the range of complexity that was fitted.
        unscreened_p_value: (n,) what p-values would be without the screen, 1 without a score; None without a screen.
    """

    method: Literal["held-out", "cross-fitted"]
    expected: np.ndarray
    p_value: np.ndarray
    holdout_expected: np.ndarray | None
    rows: int
    shared: int
    r2: float
    residual_spread: float
    outside: np.ndarray
    unscreened_p_value: np.ndarray | None = None


@dataclass(frozen=True)
class Passing:
    """What a screen lets through: (n,) audited images in all folds, (m,) the distinct held-out images of `_usable`."""

    audited: np.ndarray
    held: np.ndarray


def pass_screen(audited: ScoredImages, holdout: ScoredImages, share: float) -> Passing | None:
    """Images whose excess of the screen is among so large a share of the held-out ones'; None with too few of those."""
    rows, _ = _usable(audited, holdout)
    if len(rows) < MIN_IMAGES:
        return None
    held = holdout[rows]
    models = _fit_folds(held)
    excess = held.score - _own_fold(models, held)
    threshold = np.sort(excess)[-ceil(share * len(rows))]
    by_model = np.stack([_predict(model, audited.features) for model in models])
    return Passing(np.all(audited.score - by_model >= threshold, axis=0), excess >= threshold)


def calibrate(
    audited: ScoredImages, holdout: ScoredImages | None = None, passing: Passing | None = None
) -> Calibration | None:
    """Expected score of every image.

    With fewer than `MIN_IMAGES` usable held-out images the audited ones calibrate themselves; None with fewer of
    those.

    Args:
        passing: of a screen of the same images; others may lack a score, which is -infinity then.
    """
    known = audited if holdout is None else holdout
    rows, shared = _usable(audited, holdout)
    if len(rows) < MIN_IMAGES:
        return None if holdout is None else calibrate(audited)
    models = _fit_folds(known[rows])
    own, fitted = _own_fold(models, known), known[rows]
    low, high = np.nanmin(fitted.features, 0), np.nanmax(fitted.features, 0)
    unscreened = None
    if holdout is None:
        expected, p_value = own, tail_p_values(audited.score - own, rows)
    else:
        by_model = np.stack([_predict(model, audited.features) for model in models])
        expected, p_value = by_model.mean(0), _p_values(audited, by_model, fitted, own[rows], passing)
        unscreened = _p_values(audited, by_model, fitted, own[rows]) if passing else None
    return Calibration(
        method="cross-fitted" if holdout is None else "held-out",
        expected=expected,
        p_value=p_value,
        holdout_expected=None if holdout is None else own,
        rows=len(rows),
        shared=shared,
        **_quality(fitted.score, own[rows]),
        outside=((audited.features < low) | (audited.features > high)).any(1),
        unscreened_p_value=unscreened,
    )


def _usable(audited: ScoredImages, holdout: ScoredImages | None) -> tuple[np.ndarray, int]:
    """First rows of the distinct images that calibrate, and how many held-out ones do not since they are audited."""
    if holdout is None:
        return audited.distinct, 0
    distinct = holdout.distinct
    shared = np.isin(holdout.content[distinct], audited.content)
    return distinct[~shared], int(shared.sum())


def _folds(images: ScoredImages) -> np.ndarray:
    """(n,) content hashes are uniform, so their remainder deals images to folds, whatever the order of rows."""
    return (images.content % np.uint64(FOLDS)).astype(int)


def _fit_folds(images: ScoredImages) -> list[HistGradientBoostingRegressor]:
    """One regression per fold, on the images of all others."""
    folds = _folds(images)
    return [_fit(images[folds != fold]) for fold in range(FOLDS)]


def _own_fold(models: list[HistGradientBoostingRegressor], images: ScoredImages) -> np.ndarray:
    """(n,) each image predicted by the regression of its fold."""
    folds = _folds(images)
    expected = np.empty(len(folds))
    for fold, model in enumerate(models):
        expected[folds == fold] = _predict(model, images.features[folds == fold])
    return expected


def _p_values(
    audited: ScoredImages,
    by_model: np.ndarray,
    held: ScoredImages,
    held_expected: np.ndarray,
    passing: Passing | None = None,
) -> np.ndarray:
    """(n,) cross-conformal p-values from the audited images' expectations (FOLDS, n) and the held-out images' own."""
    folds, exceeding = _folds(held), np.zeros(len(audited.score))
    excess, held_excess = audited.score - by_model, held.score - held_expected
    if passing:
        excess, held_excess = (
            np.where(passing.audited, excess, -np.inf),
            np.where(passing.held, held_excess, -np.inf),
        )
    for fold, own in enumerate(excess):
        reference = np.sort(held_excess[folds == fold])
        exceeding += len(reference) - np.searchsorted(reference, own, side="left")
    return (1 + exceeding) / (1 + len(held.score))


def _fit(images: ScoredImages) -> HistGradientBoostingRegressor:
    if len(images.score) > FIT_ROWS:
        images = images[np.argsort(images.content, kind="stable")[:FIT_ROWS]]  # hashes are random: so is this choice
    model = HistGradientBoostingRegressor(
        loss="absolute_error",
        max_iter=200,
        learning_rate=0.05,
        min_samples_leaf=10,
        early_stopping=False,
        random_state=0,
    )
    # boosting threads spin while they wait: on a busy machine several are slower than one by orders of magnitude
    with threadpool_limits(1, user_api="openmp"):
        return model.fit(images.features, images.score)


def _predict(model: HistGradientBoostingRegressor, features: np.ndarray) -> np.ndarray:
    if not len(features):  # no row may have been scored
        return np.empty(0)
    with threadpool_limits(1, user_api="openmp"):
        return model.predict(features)


def _quality(score: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    residual = score - expected
    spread = 1.4826 * np.median(np.abs(residual - np.median(residual)))
    variance = score.var()
    return {"r2": float(1 - residual.var() / variance) if variance > 0 else 0.0, "residual_spread": float(spread)}
