import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.ensemble import HistGradientBoostingRegressor

from volgrowth.analysis.calibration import boosted_trees
from volgrowth.analysis.calibration.boosted_trees import TreeTables, predict


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


def test_chunks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosted_trees, "FEW", 100)
    monkeypatch.setattr(boosted_trees, "CHUNK", 64)
    model = fitted(np.random.default_rng(0).normal(size=(500, 3)))
    for count in (0, 1, 100, 101, 128, 1000):
        some = asked(model, count)
        assert_array_equal(predict(model, some), model.predict(some) if count else np.empty(0))


def test_trees_that_no_table_holds_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosted_trees, "FEW", 100)
    features = np.random.default_rng(0).normal(size=(2000, 3))
    model = fitted(features, max_leaf_nodes=60)
    with pytest.raises(ValueError, match="leaves"):
        TreeTables(model)
    assert_array_equal(predict(model, features), model.predict(features))
