r"""Expected scores: the score that an image of its complexity shows anyway, and p-values of the excess over it.

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
from volgrowth.analysis.distinct import first_of_each

FOLDS = 5

# more distinct images make the regression slower, not better
FIT_ROWS = 100_000

# distinct images below which a regression on six columns says nothing
MIN_IMAGES = 50

# boosting rounds of a regression
ROUNDS = 200


@dataclass(frozen=True)
class ScoredImages:
    """A set of scored images, as calibration needs them.

    Attributes:
        features: regressors of each image, (n, features) float64; NaN where one is not known.
        score: of each image, (n,) float64; high is suspicious.
        content: hash of each image's pixels, (n,) uint64; copies share it.
    """

    features: np.ndarray
    score: np.ndarray
    content: np.ndarray

    @property
    def distinct(self) -> np.ndarray:
        """Positions of the first row of each distinct image, sorted."""
        return first_of_each(self.content)

    def __getitem__(self, rows: np.ndarray) -> "ScoredImages":
        return ScoredImages(self.features[rows], self.score[rows], self.content[rows])


@dataclass(frozen=True)
class Calibration:
    """Expected scores of n audited and m held-out images, p-values, and the quality of the regression.

    Attributes:
        method: `held-out`, or `cross-fitted` without enough held-out images.
        expected: expected score of each audited image, (n,).
        p_value: of each audited image, (n,): conformal with held-out images, otherwise of an assumed tail.
        holdout_expected: expected score of each held-out image, (m,); None without any.
        rows: number of distinct images that the regressions were fitted on.
        shared: number of distinct held-out images that were left out because they are audited as well.
        r2: share of the score's variance that the regression explains in images it has not seen.
        residual_spread: 1.4826 times the median absolute deviation of the excess of those images.
        outside: mask of the audited images outside the range of complexity that was fitted, (n,).
        unscreened_p_value: p-values without the screen, (n,), 1 without a score; None without a screen.
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
    """Masks of the images that pass a screen.

    Attributes:
        audited: the audited images that pass in every fold, (n,).
        held: the distinct held-out images of `_usable` that pass in their own fold, (m,).
    """

    audited: np.ndarray
    held: np.ndarray


def pass_screen(audited: ScoredImages, holdout: ScoredImages, share: float) -> Passing | None:
    """Decide which images pass a screen: those whose excess is as high as that of a share of the held-out images.

    Args:
        audited: with the screen as their score.
        holdout: with the screen as their score.
        share: of the held-out images that passes.

    Returns:
        None with fewer than `MIN_IMAGES` usable held-out images.
    """
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
    """Fit the expected score of every image, and compute p-values.

    Args:
        audited: the images to judge.
        holdout: images that the model was not trained on. With fewer than `MIN_IMAGES` usable ones the audited images
            calibrate themselves.
        passing: result of a screen of the same images; the score of images that do not pass may be -infinity.

    Returns:
        None if the audited images would calibrate themselves and are fewer than `MIN_IMAGES` distinct ones.
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
    """Return the first rows of the distinct images that calibrate, and how many held-out ones are audited as well."""
    if holdout is None:
        return audited.distinct, 0
    distinct = holdout.distinct
    shared = np.isin(holdout.content[distinct], audited.content)
    return distinct[~shared], int(shared.sum())


def _folds(images: ScoredImages) -> np.ndarray:
    """Deal images to folds, (n,): content hashes are uniform, so that their remainder does not depend on the order."""
    return (images.content % np.uint64(FOLDS)).astype(int)


def _fit_folds(images: ScoredImages) -> list[HistGradientBoostingRegressor]:
    """Fit one regression per fold, on the images of all other folds."""
    folds = _folds(images)
    return [_fit(images[folds != fold]) for fold in range(FOLDS)]


def _own_fold(models: list[HistGradientBoostingRegressor], images: ScoredImages) -> np.ndarray:
    """Predict each image by the regression of its own fold, (n,)."""
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
    """Return cross-conformal p-values, (n,).

    `by_model` is the expected score of each audited image by each fold's regression, (FOLDS, n), and `held_expected`
    that of each held-out image by its own fold's, (m,).
    """
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
        images = images[np.argsort(images.content, kind="stable")[:FIT_ROWS]]  # a random choice, since hashes are
    model = HistGradientBoostingRegressor(
        loss="absolute_error",
        max_iter=ROUNDS,
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
