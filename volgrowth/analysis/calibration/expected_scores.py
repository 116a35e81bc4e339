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
from functools import cached_property
from math import ceil
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from volgrowth.analysis.calibration.boosted_trees import Predict, predictor
from volgrowth.analysis.chunks import for_chunks
from volgrowth.analysis.distinct import first_of_each

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

FOLDS = 5

# more distinct images make the regression slower, not better
FIT_ROWS = 100_000

# distinct images below which a regression on six columns says nothing
MIN_IMAGES = 50

# boosting rounds of a regression
ROUNDS = 200

# The unit of a part rests on the excess that one in a hundred of the held-out images exceeds, or ten of them if they
# are fewer than a thousand: one image alone must not decide it.
TAIL_SHARE, TAIL_IMAGES = 0.01, 10

# images on which a faster prediction is compared with scikit-learn's
SAMPLE = 256


class Features(Protocol):
    """Regressors of n images: an array (n, features) float64, or what gives such an array for some of the rows."""

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


@dataclass(frozen=True)
class ScoredImages:
    """A set of scored images, as calibration needs them.

    Attributes:
        features: regressors of each image, (n, features) float64; NaN where one is not known.
        score: of each image, (n,) float64; high is suspicious.
        content: hash of each image's pixels, (n,) uint64; copies share it.
    """

    features: Features
    score: np.ndarray
    content: np.ndarray

    @property
    def distinct(self) -> np.ndarray:
        """Positions of the first row of each distinct image, sorted."""
        return first_of_each(self.content)

    def __getitem__(self, rows: np.ndarray | slice) -> "ScoredImages":
        return ScoredImages(self.features[rows], self.score[rows], self.content[rows])


@dataclass(frozen=True)
class Excess:
    """What n audited and m distinct held-out images show beyond expectation.

    Attributes:
        audited: excess of each audited image in each fold, (FOLDS, n).
        held: excess of each distinct held-out image in its own fold, (m,).
        fold: fold of each of these images, (m,).
    """

    audited: np.ndarray
    held: np.ndarray
    fold: np.ndarray


@dataclass(frozen=True)
class Learnt:
    """What the images that calibrate say of one score: the regressions, and what these images show beyond them.

    Attributes:
        models: the regression of each fold.
        sample: features of some images of the set, (k, features).
        expected: expected score of each image of the set by the regression of its fold, copies included.
        held: excess of each distinct image that calibrates, in its own fold, (m,).
        fold: fold of each of these images, (m,).
        r2: share of the score's variance that the regression explains in images it has not seen.
        residual_spread: 1.4826 times the median absolute deviation of the excess of those images.
        unit: of the excess when parts are added up: the residual spread, or that of the upper tail if it is larger
            (`tail_spread`). Innocent images that stand out in one part would else hide memorized ones that stand out in
            another. For audited images that calibrate themselves it is the residual spread: their tail is what is
            looked for.
    """

    models: "list[HistGradientBoostingRegressor]"
    sample: np.ndarray
    expected: np.ndarray
    held: np.ndarray
    fold: np.ndarray
    r2: float
    residual_spread: float
    unit: float

    def predictors(self, count: int) -> "list[Predict]":
        """Return functions that predict `count` images, a chunk at a time, in each fold."""
        return [predictor(model, self.sample, count) for model in self.models]


@dataclass(frozen=True)
class Passing:
    """Masks of the images that pass a screen.

    Attributes:
        audited: the audited images that pass in every fold, (n,).
        held: the distinct held-out images of `usable` that pass in their own fold, (m,).
    """

    audited: np.ndarray
    held: np.ndarray


@dataclass(frozen=True)
class Screen:
    """A screen, fitted to held-out images, that may be pickled.

    Attributes:
        models: the regression of each fold.
        sample: as in `Learnt`.
        threshold: the excess from which on an image passes.
        held: the distinct held-out images that pass in their own fold, (m,).
        count: number of images that will be screened, about.
    """

    models: "list[HistGradientBoostingRegressor]"
    sample: np.ndarray
    threshold: float
    held: np.ndarray
    count: int

    @cached_property
    def _predictors(self) -> list[Predict]:
        return [predictor(model, self.sample, self.count) for model in self.models]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_predictors"}

    def passes(self, images: ScoredImages) -> np.ndarray:
        """Return a mask of the images that pass in every fold, (n,), with the screen as their score."""
        passed, by_fold = np.empty(len(images.score), bool), self._predictors

        def screen(chunk: slice) -> None:
            features, score = images.features[chunk], images.score[chunk]
            passed[chunk] = np.all([score - predict(features) >= self.threshold for predict in by_fold], axis=0)

        for_chunks(len(passed), screen)
        return passed


def fit_screen(holdout: ScoredImages, rows: np.ndarray, share: float, count: int) -> Screen | None:
    """Fit a screen, which images pass whose excess is as high as that of a share of the held-out images.

    Args:
        holdout: with the screen as their score.
        rows: positions of the images to fit on, as `usable` returns them.
        share: of these images that passes.
        count: number of images that will be screened, about.

    Returns:
        None with fewer than `MIN_IMAGES` usable held-out images.
    """
    if len(rows) < MIN_IMAGES:
        return None
    held = holdout[rows]
    models = _fit_folds(held)
    excess = held.score - _own_fold(models, held)
    threshold = float(np.sort(excess)[-ceil(share * len(rows))])
    return Screen(models, held.features[:SAMPLE], threshold, excess >= threshold, count)


def learn(known: ScoredImages, rows: np.ndarray, held_out: bool = True) -> Learnt:
    """Fit the expected score of an image.

    Args:
        known: images with their scores.
        rows: positions of the images to fit on, as `usable` returns them.
        held_out: whether these are held-out images, and none of them is memorized.
    """
    fitted = known[rows]
    models = _fit_folds(fitted)
    own = _own_fold(models, known)
    held, sample = fitted.score - own[rows], fitted.features[:SAMPLE]
    r2, spread = _quality(fitted.score, own[rows])
    unit = max(spread, tail_spread(held)) if held_out else spread
    return Learnt(models, sample, own, held, deal_folds(fitted.content), r2, spread, unit or 1.0)


@dataclass(frozen=True)
class Usable:
    """The images that calibrate.

    Attributes:
        rows: first rows of the distinct ones.
        shared: number of distinct held-out images that do not, because they are audited as well.
        alike: number of those that do not because they look like an audited one.
        flat: number of distinct images that do not because they are of one colour, and not for a reason above.
    """

    rows: np.ndarray
    shared: int = 0
    alike: int = 0
    flat: int = 0


def usable(
    known: ScoredImages,
    shared: np.ndarray | None = None,
    alike: np.ndarray | None = None,
    flat: np.ndarray | None = None,
) -> Usable:
    """Choose the images that calibrate: the distinct ones that the model cannot have seen among the audited.

    Args:
        known: the held-out images, or the audited ones if they calibrate themselves.
        shared: mask of the held-out images that are audited as well, (m,).
        alike: mask of the held-out images that look like audited ones, (m,); None if that is not known.
        flat: mask of the images of one colour, (m,), which models make whether or not they have seen them; None if
            that is not known.
    """
    distinct = known.distinct
    none = np.zeros(len(distinct), bool)
    both = none if shared is None else shared[distinct]
    near = none if alike is None else alike[distinct] & ~both
    plain = none if flat is None else flat[distinct] & ~both & ~near
    return Usable(distinct[~(both | near | plain)], int(both.sum()), int(near.sum()), int(plain.sum()))


def deal_folds(content: np.ndarray) -> np.ndarray:
    """Deal images to folds, (n,): content hashes are uniform, so that their remainder does not depend on the order."""
    return (content % np.uint64(FOLDS)).astype(int)


def _fit_folds(images: ScoredImages) -> "list[HistGradientBoostingRegressor]":
    """Fit one regression per fold, on the images of all other folds."""
    folds = deal_folds(images.content)
    return [_fit(images[folds != fold]) for fold in range(FOLDS)]


def _own_fold(models: "list[HistGradientBoostingRegressor]", images: ScoredImages) -> np.ndarray:
    """Predict each image by the regression of its own fold, (n,)."""
    folds = deal_folds(images.content)
    expected = np.empty(len(folds))
    sample = images.features[: min(len(folds), SAMPLE)]
    by_fold = [predictor(model, sample, len(folds)) for model in models]

    def fill(chunk: slice) -> None:
        features, fold = images.features[chunk], folds[chunk]
        for number, predict in enumerate(by_fold):
            expected[chunk][fold == number] = predict(features[fold == number])

    for_chunks(len(folds), fill)
    return expected


def _fit(images: ScoredImages) -> "HistGradientBoostingRegressor":
    from sklearn.ensemble import HistGradientBoostingRegressor  # a second to import, and only an analysis needs it

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


def tail_spread(values: np.ndarray) -> float:
    """Return how far an upper quantile lies above the median, over that distance of the standard normal distribution.

    That is the standard deviation of a normal distribution, and more where the upper tail is heavier. The quantile is
    exceeded by `TAIL_SHARE` of the values, or by `TAIL_IMAGES` of them if these are more.
    """
    share = max(TAIL_SHARE, min(TAIL_IMAGES / len(values), 0.25))
    return float((np.quantile(values, 1 - share) - np.median(values)) / NormalDist().inv_cdf(1 - share))
