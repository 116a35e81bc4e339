import math
from collections.abc import Sequence

import numpy as np
import pytest

from volgrowth.analysis.ranking import Separation, auroc, tpr_at_fpr


def arrays(score: Sequence[float], positive: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(score, float), np.array(positive, bool)


@pytest.mark.parametrize(
    ("score", "positive", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),
        ([1, 2, 3, 4], [0, 1, 0, 1], 3 / 4),  # of four pairs only (3, 2) is the wrong way round
        ([5, 5, 5, 5], [0, 1, 0, 1], 1 / 2),
        ([1, 2, 2, 3], [0, 0, 1, 1], 7 / 8),  # a tie counts half
    ],
)
def test_auroc_by_counting_pairs(score: list[float], positive: list[int], expected: float) -> None:
    assert auroc(*arrays(score, positive)) == pytest.approx(expected)


def test_auroc_of_many() -> None:
    random = np.random.default_rng(0)
    score, positive = random.normal(size=200).round(1), random.random(200) < 0.3
    pairs = score[positive][:, None] - score[~positive]
    assert auroc(score, positive) == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())


def test_true_positives_above_the_threshold_that_few_negatives_pass() -> None:
    """100 negatives at 0..99; at 1% false positives one of them may pass, so the threshold is 99."""
    score, positive = arrays([*range(100), 98.5, 99.5, 99.5, 50], [0] * 100 + [1] * 4)
    assert tpr_at_fpr(score, positive, 0.0) == 2 / 4
    assert tpr_at_fpr(score, positive, 0.01) == 3 / 4
    assert tpr_at_fpr(score, positive) == 3 / 4
    assert tpr_at_fpr(score, positive, 0.4) == 3 / 4
    assert tpr_at_fpr(score, positive, 0.5) == 4 / 4


def test_a_tie_passes_with_the_negatives_it_is_tied_with() -> None:
    score, positive = arrays([0] * 98 + [5, 5] + [5] * 10 + [7] * 5, [0] * 100 + [1] * 15)
    assert tpr_at_fpr(score, positive, 0.01) == 5 / 15
    assert tpr_at_fpr(score, positive, 0.02) == 1


@pytest.mark.parametrize("positive", [[0, 0, 0], [1, 1, 1], []])
def test_one_class_says_nothing(positive: list[int]) -> None:
    assert math.isnan(auroc(*arrays(list(range(len(positive))), positive)))
    assert math.isnan(tpr_at_fpr(*arrays(list(range(len(positive))), positive)))


@pytest.mark.parametrize("step", [1e-9, 0.5])
def test_few_positives_are_told_from_negatives_that_come_in_parts(step: float) -> None:
    random = np.random.default_rng(0)
    score = np.round(random.normal(size=900) / step) * step
    positive = random.uniform(size=900) < 0.03
    score[positive] += 1.5
    found = Separation(score[positive])
    for some in np.array_split(score[~positive], 7):
        found.see(some)
    assert found.auroc() == pytest.approx(auroc(score, positive), abs=1e-12)
    for fpr in (0.001, 0.01, 0.2, 1.0):
        assert found.tpr_at_fpr(fpr) == pytest.approx(tpr_at_fpr(score, positive, fpr), abs=1e-12)
    assert np.isnan(Separation(np.empty(0)).auroc())
    assert np.isnan(Separation(np.ones(2)).tpr_at_fpr())
