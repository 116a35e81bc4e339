r"""Predictions of boosted trees for very many images: scikit-learn's to the bit, in a quarter of the time.

scikit-learn walks each tree for each image, and every step waits for the one before. Here the trees are looked up
instead (QuickScorer: Lucchese et al., SIGIR 2015). The leaves of a tree are numbered from left to right. A test of the
tree that an image fails, x > threshold, rules out the leaves below its left branch. The image's leaf is the first one
that no failed test rules out. All tests of one feature fail or pass by the place of x among the thresholds of that
feature, so that a table gives the leaves that remain for each place, as a bit mask, and the leaf is the lowest bit of
the masks of all features together. Leaf values are added in the order of the trees, as scikit-learn adds them.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor

FEW = 8192
"""Images up to which the tables would take longer to make than scikit-learn takes to predict."""
LEAVES = 32
"""Leaves of one tree, at most: a bit mask has so many bits. scikit-learn grows 31 unless it is told otherwise."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Returns predictions, (n,), for features (n, k); NaN is a missing one."""


def predictor(model: "HistGradientBoostingRegressor", sample: np.ndarray, count: int) -> Predict:
    """Return the fastest function that predicts `count` images to the bit as a regression with numeric features does.

    Args:
        model: the regression.
        sample: features of some images, (m, k), on which the function is compared with scikit-learn.
        count: number of images that will be predicted, in one call or in several.
    """
    if count > FEW and (trees := _looked_up(model, sample)) is not None:
        return trees.predict
    return partial(_walked, model)


def _walked(model: "HistGradientBoostingRegressor", features: np.ndarray) -> np.ndarray:
    if not len(features):  # no row may have been scored
        return np.empty(0)
    # boosting threads spin while they wait: on a busy machine several are slower than one by orders of magnitude
    with threadpool_limits(1, user_api="openmp"):
        return model.predict(features)


def _looked_up(model: "HistGradientBoostingRegressor", sample: np.ndarray) -> "TreeTables | None":
    """Return the tables of a model; None if this version of scikit-learn keeps its trees in another way."""
    try:
        trees = TreeTables(model)
    except (AttributeError, IndexError, KeyError, ValueError):
        return None
    return trees if np.array_equal(trees.predict(sample), _walked(model, sample)) else None


class TreeTables:
    """The trees of a fitted regression as tables."""

    def __init__(self, model: "HistGradientBoostingRegressor"):
        grown = [tree.nodes for (tree,) in model._predictors]
        self.first = float(model._baseline_prediction.item())
        tests = np.concatenate(grown)
        tests = tests[tests["is_leaf"] == 0]
        self.thresholds = [
            np.unique(tests["num_threshold"][tests["feature_idx"] == feature])
            for feature in range(model.n_features_in_)
        ]
        self.trees = [self._tables(nodes) for nodes in grown]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Return the predictions, (n,), for features (n, k)."""
        places = [self._places(feature, values) for feature, values in enumerate(features.T)]
        total = np.full(len(features), self.first)
        for masks, values in self.trees:
            left = np.full(len(features), 2**LEAVES - 1, np.uint32)
            for feature, mask in masks:
                left &= mask.take(places[feature])
            lower = ~left & (left - np.uint32(1))  # the bits below the lowest one
            total += values.take(np.bitwise_count(lower))
        return total

    def _places(self, feature: int, values: np.ndarray) -> np.ndarray:
        """Return the number of thresholds below each value, (n,); the place behind all for a missing value."""
        thresholds = self.thresholds[feature]
        places = np.searchsorted(thresholds, values, side="left")
        places[np.isnan(values)] = len(thresholds) + 1
        return places

    def _tables(self, nodes: np.ndarray) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
        """Return the masks by place of each feature that a tree tests, and the values of its leaves."""
        values, below = list[float](), list[tuple[int, int, int]]()

        def descend(node: int) -> None:
            if nodes["is_leaf"][node]:
                values.append(float(nodes["value"][node]))
                return
            begin = len(values)
            descend(int(nodes["left"][node]))
            below.append((node, begin, len(values)))
            descend(int(nodes["right"][node]))

        descend(0)
        if len(values) > LEAVES or nodes["is_categorical"].any():
            raise ValueError(f"a tree of {len(values)} leaves, or one that tests categories")
        masks: dict[int, np.ndarray] = {}
        for node, begin, end in below:
            feature = int(nodes["feature_idx"][node])
            thresholds = self.thresholds[feature]
            mask = masks.setdefault(feature, np.full(len(thresholds) + 2, 2**LEAVES - 1, np.uint32))
            kept = np.uint32((2**LEAVES - 1) ^ ((1 << end) - (1 << begin)))
            failing = int(np.searchsorted(thresholds, nodes["num_threshold"][node])) + 1
            mask[failing : len(thresholds) + 1] &= kept
            if not nodes["missing_go_to_left"][node]:
                mask[-1] &= kept
        return list(masks.items()), np.array(values)
