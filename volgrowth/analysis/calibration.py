r"""Growth that an image of this complexity shows anyway, and the excess over it.

expected_growth is a gradient-boosted regression of growth on the image's complexity, with an absolute loss, so that the
memorized images it is meant to expose do not pull it up. It never predicts an image it has seen:

    held-out      fitted on held-out images when there are any, less those that are audited as well;
    cross-fitted  otherwise on the audited images, in folds. Copies of one image share a fold, and count once.

excess_growth = growth - expected_growth.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

FOLDS = 5

# more distinct images make the regression slower, not better
FIT_ROWS = 100_000

# distinct images below which a regression on six columns says nothing
MIN_IMAGES = 50


@dataclass(frozen=True)
class Images:
    """What calibration knows of a set of scored images: (n, features), (n,) and (n,)."""

    features: np.ndarray
    growth: np.ndarray
    content: np.ndarray

    @property
    def distinct(self) -> np.ndarray:
        """Index of the first row of each distinct image."""
        return np.sort(np.unique(self.content, return_index=True)[1])

    def __getitem__(self, rows: np.ndarray) -> "Images":
        return Images(self.features[rows], self.growth[rows], self.content[rows])


@dataclass(frozen=True)
class Calibration:
    """Expected growth of the audited and the held-out images, and how good the regression is.

    Attributes:
        expected: (n,) of the audited images.
        holdout_expected: (m,) of the held-out images, cross-fitted among themselves; None without any.
        rows: distinct images the regression was fitted on.
        r2: share of their growth's variance that it explains in images it has not seen.
        residual_spread: of their excess growth, 1.4826 times the median absolute deviation.
        outside: (n,) audited images outside the range of complexity that it was fitted on.
    """

    method: Literal["held-out", "cross-fitted"]
    expected: np.ndarray
    holdout_expected: np.ndarray | None
    rows: int
    r2: float
    residual_spread: float
    outside: np.ndarray


def calibrate(audited: Images, holdout: Images | None = None) -> Calibration | None:
    """Expected growth for every image; None with fewer than `MIN_IMAGES` distinct images to learn from."""
    known = audited if holdout is None else holdout
    rows = known.distinct
    if holdout is not None:
        rows = rows[~np.isin(holdout.content[rows], audited.content)]
    if len(rows) < MIN_IMAGES:
        return None
    own = _cross_fitted(known, rows)
    fitted = known[rows]
    low, high = fitted.features.min(0), fitted.features.max(0)
    return Calibration(
        method="cross-fitted" if holdout is None else "held-out",
        expected=own if holdout is None else _predict(_fit(fitted), audited.features),
        holdout_expected=None if holdout is None else own,
        rows=len(rows),
        **_quality(fitted.growth, own[rows]),
        outside=((audited.features < low) | (audited.features > high)).any(1),
    )


def _fit(images: Images) -> HistGradientBoostingRegressor:
    if len(images.growth) > FIT_ROWS:
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
        return model.fit(images.features, images.growth)


def _predict(model: HistGradientBoostingRegressor, features: np.ndarray) -> np.ndarray:
    return model.predict(features) if len(features) else np.empty(0)  # no row may have been scored


def _cross_fitted(images: Images, rows: np.ndarray) -> np.ndarray:
    """(n,) each image predicted by a regression on the distinct images `rows`, less itself and its copies."""
    # content hashes are uniform, so their remainder deals images to folds, whatever the order of rows
    folds = (images.content % np.uint64(FOLDS)).astype(int)
    usable = np.zeros(len(folds), bool)
    usable[rows] = True
    expected = np.empty(len(folds))
    for fold in np.unique(folds):
        inside = folds == fold
        expected[inside] = _fit(images[usable & ~inside]).predict(images.features[inside])
    return expected


def _quality(growth: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    residual = growth - expected
    spread = 1.4826 * np.median(np.abs(residual - np.median(residual)))
    variance = growth.var()
    return {"r2": float(1 - residual.var() / variance) if variance > 0 else 0.0, "residual_spread": float(spread)}
