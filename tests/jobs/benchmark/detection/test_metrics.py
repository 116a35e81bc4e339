import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.benchmark.detection.metrics import METRICS, detect, draw_replicates, interval, mean_over_models, realised
from volgrowth.analysis.ranking import auroc, tpr_at_fpr


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60))
def test_estimates_are_those_of_scikit_learn_with_ties(rows):
    score, positive = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    found = detect(score, positive, np.ones((1, len(rows))))
    expected = auroc(score, positive), tpr_at_fpr(score, positive)
    np.testing.assert_allclose([found["auroc"][0], found["tpr_at_1_fpr"][0]], expected, rtol=1e-12)


def test_a_replicate_is_the_metric_of_the_images_drawn():
    random = np.random.default_rng(0)
    score, positive = random.integers(0, 40, 300).astype(float), random.random(300) < 0.2
    drawn = draw_replicates(positive, seed=3, replicates=20)
    found = detect(score, positive, drawn)
    for index, times in enumerate(drawn.astype(int)):
        rows = np.repeat(np.arange(300), times)
        assert found["auroc"][index] == pytest.approx(auroc(score[rows], positive[rows]))
        assert found["tpr_at_1_fpr"][index] == pytest.approx(tpr_at_fpr(score[rows], positive[rows]))


def test_replicates_keep_the_classes_and_the_seed():
    positive = np.arange(50) < 7
    drawn = draw_replicates(positive, seed=1, replicates=100)
    assert (drawn[0] == 1).all()
    assert (drawn[:, positive].sum(1) == 7).all()
    assert (drawn.sum(1) == 50).all()
    assert (drawn == draw_replicates(positive, seed=1, replicates=100)).all()
    assert (drawn != draw_replicates(positive, seed=2, replicates=100)).any()


def test_precision_at_k_by_hand_with_ties_broken_evenly():
    positive = np.array([True, True, True, False, False])
    once = np.ones((1, 5))
    assert detect(np.array([5.0, 4, 3, 2, 1]), positive, once)["precision_at_k"] == 1
    assert detect(np.array([5.0, 1, 1, 4, 3]), positive, once)["precision_at_k"] == pytest.approx(1 / 3)
    # first one positive, then two places for four images of which two are positives
    assert detect(np.array([5.0, 1, 1, 1, 1]), positive, once)["precision_at_k"] == pytest.approx(2 / 3)
    assert detect(np.zeros(5), positive, once)["precision_at_k"] == pytest.approx(3 / 5)


def test_the_interval_of_an_area_covers_what_more_data_shows():
    """Two normals one standard deviation apart: .76."""
    covered = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        positive = np.arange(240) < 40
        score = random.normal(size=240) + positive
        low, high = interval(detect(score, positive, draw_replicates(positive, seed, 300))["auroc"])
        covered += low <= 0.7602 <= high
    assert covered >= 34


@pytest.mark.parametrize("positive", [np.zeros(4, bool), np.ones(4, bool)])
def test_without_a_class_there_is_no_metric(positive):
    found = detect(np.arange(4.0), positive, draw_replicates(positive, 0, 5))
    assert all(np.isnan(found[name]).all() for name in METRICS)


def test_realised_rates_by_hand():
    q_value = np.array([0.01, 0.04, 0.08, 0.15, 0.6])
    positive, planted = np.array([True, False, True, False, True]), np.array([True, False, True, True, True])
    drawn = np.array([[1, 1, 1, 1, 1], [0, 2, 3, 0, 0]])
    found = realised(q_value, positive, planted, drawn, promised=(0.05, 0.2))
    expected = {
        **{"fdr_5": [1 / 2, 1], "fdr_clear_5": [1 / 2, 1], "power_5": [1 / 3, 0]},
        **{"fdr_20": [2 / 4, 2 / 5], "fdr_clear_20": [1 / 4, 2 / 5], "power_20": [2 / 3, 1]},
    }
    assert found.keys() == expected.keys()
    for name, rates in expected.items():
        assert found[name] == pytest.approx(rates), name
    nothing = realised(np.ones(3), np.array([True, False, False]), np.ones(3, bool), np.ones((1, 3)))
    assert nothing["fdr_20"] == nothing["fdr_clear_20"] == nothing["power_20"] == 0


def test_a_mean_over_models_varies_with_models_draws_and_images():
    constant = np.ones(201)
    assert mean_over_models([[constant], [constant * 3]])[0] == 2
    models = mean_over_models([[constant], [constant * 3]])
    assert set(models[1:]) == {1, 2, 3}
    draws = mean_over_models([[constant, constant * 3]])
    assert draws[0] == 2
    assert set(draws[1:]) == {1, 3}
    images = mean_over_models([[np.arange(201.0)]])
    assert images[0] == 0
    assert set(images[1:]) <= set(range(1, 201))
