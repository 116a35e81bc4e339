r"""Expected scores: the score that an image of its complexity shows anyway, and the excess over it.

The expected score is a gradient-boosted regression on the image's complexity, with an absolute loss, so that the
memorized images it is meant to expose do not pull it up. Images are dealt to `FOLDS` folds by their content, copies
together, and count once; regression M_k has seen every image but those of fold k. No image is predicted by a regression
that has seen it:

    held-out      M_k are fitted on held-out images, less those that are audited as well. An audited image has the
                  excess s - M_k(x) in each fold k, a held-out image of fold k has s - M_k(x).
    cross-fitted  without held-out images M_k are fitted on the audited ones, and an image of fold k has s - M_k(x).

`p_values` makes p-values of these excesses, and `evidence` adds the excesses of several scores.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from volgrowth.analysis.calibration.boosted_trees import predict
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
class Excess:
    """What n audited and m distinct held-out images show beyond expectation, or n audited ones by themselves.

    Attributes:
        audited: excess of each audited image in each fold, (FOLDS, n), or in its own, (1, n), if it is cross-fitted.
        held: excess of each distinct held-out image in its own fold, (m,); empty if it is cross-fitted.
        fold: fold of each of these images, (m,).
    """

    audited: np.ndarray
    held: np.ndarray
    fold: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean excess of each audited image over the folds, (n,)."""
        return self.audited.mean(0)


@dataclass(frozen=True)
class Expectation:
    """Expected scores of n audited and, if there are any, of held-out images, and the quality of the regression.

    Attributes:
        excess: of the audited and of the distinct held-out images.
        expected: expected score of each audited image, (n,).
        holdout_expected: expected score of each held-out image, copies included; None without any.
        r2: share of the score's variance that the regression explains in images it has not seen.
        residual_spread: 1.4826 times the median absolute deviation of the excess of those images.
    """

    excess: Excess
    expected: np.ndarray
    holdout_expected: np.ndarray | None
    r2: float
    residual_spread: float


@dataclass(frozen=True)
class Passing:
    """Masks of the images that pass a screen.

    Attributes:
        audited: the audited images that pass in every fold, (n,).
        held: the distinct held-out images of `usable` that pass in their own fold, (m,).
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
    rows, _ = usable(audited, holdout)
    if len(rows) < MIN_IMAGES:
        return None
    held = holdout[rows]
    models = _fit_folds(held)
    excess = held.score - _own_fold(models, held)
    threshold = np.sort(excess)[-ceil(share * len(rows))]
    by_model = np.stack([predict(model, audited.features) for model in models])
    return Passing(np.all(audited.score - by_model >= threshold, axis=0), excess >= threshold)


def expect(audited: ScoredImages, holdout: ScoredImages | None, rows: np.ndarray) -> Expectation:
    """Fit the expected score of every image.

    Args:
        audited: the images to judge.
        holdout: images that the model was not trained on.
        rows: positions of the images to fit on, as `usable` returns them.
    """
    known = audited if holdout is None else holdout
    fitted, models = known[rows], _fit_folds(known[rows])
    own = _own_fold(models, known)
    quality = _quality(fitted.score, own[rows])
    if holdout is None:
        excess = Excess((audited.score - own)[None], np.empty(0), np.empty(0, int))
        return Expectation(excess, own, None, *quality)
    by_model = np.stack([predict(model, audited.features) for model in models])
    excess = Excess(audited.score - by_model, fitted.score - own[rows], _folds(fitted))
    return Expectation(excess, by_model.mean(0), own, *quality)


def usable(audited: ScoredImages, holdout: ScoredImages | None) -> tuple[np.ndarray, int]:
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
        expected[folds == fold] = predict(model, images.features[folds == fold])
    return expected


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


def _quality(score: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    residual = score - expected
    variance = score.var()
    return float(1 - residual.var() / variance) if variance > 0 else 0.0, spread_of(residual)


def spread_of(values: np.ndarray) -> float:
    """Return 1.4826 times the median absolute deviation: the standard deviation of a normal distribution."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))
