import numpy as np

from volgrowth.analysis.controls import match_controls


def test_controls_are_the_nearest_and_none_is_given_twice() -> None:
    features = np.array([[0.0, 0], [0.1, 0], [0.2, 0], [5, 5], [9, 9]])
    assert match_controls(features, np.array([0, 1]), np.array([2, 3, 4])).tolist() == [2, 3]


def test_regressors_count_in_units_of_their_spread() -> None:
    """1000 bytes are little where sizes spread over tens of thousands; half a unit of variance is a lot."""
    sizes, variances = np.linspace(20_000, 90_000, 40), np.linspace(3, 3.4, 40)
    features = np.vstack([[0, 0], [1000, 0], [0, 0.5], np.column_stack([sizes, variances])])
    assert match_controls(features, np.array([0]), np.arange(1, 43)).tolist() == [1]


def test_too_few_images_leave_some_without() -> None:
    features = np.arange(5.0)[:, None]
    assert match_controls(features, np.array([0, 1, 2]), np.array([3])).tolist() == [3, -1, -1]
    assert match_controls(features, np.array([0, 1]), np.array([], int)).tolist() == [-1, -1]
    assert match_controls(features, np.array([], int), np.array([1])).tolist() == []
