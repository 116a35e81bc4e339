import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.ensemble import HistGradientBoostingRegressor

from volgrowth.analysis.calibration import boosted_trees
from volgrowth.analysis.calibration.boosted_trees import TreeTables, predictor


def fitted(features: np.ndarray, **settings: int) -> HistGradientBoostingRegressor:
    score = np.sin(4 * np.nan_to_num(features[:, 0])) + np.isnan(features[:, 1]) + features[:, 2].round(1)
    model = HistGradientBoostingRegressor(loss="absolute_error", max_iter=40, random_state=0, **settings)
    return model.fit(features, score)


def asked(model: HistGradientBoostingRegressor, count: int, seed: int = 1) -> np.ndarray:
    """Features of which some are missing, infinite, equal to a threshold, or beyond all that was fitted."""
    random = np.random.default_rng(seed)
    features = random.normal(scale=2, size=(count, 3))
    features[random.uniform(size=features.shape) < 0.1] = np.nan
    features[::17, 0], features[5::17, 1] = np.inf, -np.inf
    for feature, thresholds in enumerate(TreeTables(model).thresholds):
        some = features[:: feature + 2, feature]
        some[:] = random.choice(thresholds, len(some)) if len(thresholds) else 0.0
    return features


@pytest.mark.parametrize("missing", [0.0, 0.2], ids=["all known", "some missing"])
@pytest.mark.parametrize("leaves", [2, 31, 32])
def test_predictions_are_those_of_scikit_learn_to_the_bit(missing: float, leaves: int) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(2000, 3))
    features[:, :2][random.uniform(size=(2000, 2)) < missing] = np.nan
    model = fitted(features, max_leaf_nodes=leaves)
    some = asked(model, 3000)
    assert_array_equal(TreeTables(model).predict(some), model.predict(some))


def test_few_images_are_predicted_by_scikit_learn_and_many_by_tables() -> None:
    model = fitted(np.random.default_rng(0).normal(size=(500, 3)))
    some = asked(model, 100)
    for count in (100, boosted_trees.FEW + 1):
        predict = predictor(model, some, count)
        assert (getattr(predict, "__self__", None) is not None) is (count > boosted_trees.FEW)
        assert_array_equal(predict(some), model.predict(some))
        assert predict(some[:0]).shape == (0,)


def test_trees_that_no_table_holds_are_walked() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 3))
    model = fitted(features, max_leaf_nodes=60)
    with pytest.raises(ValueError, match="leaves"):
        TreeTables(model)
    assert_array_equal(predictor(model, features[:9], 10**6)(features), model.predict(features))
