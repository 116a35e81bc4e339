from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import HistGradientBoostingRegressor

from volgrowth.analysis.calibration import expected_scores as calibration
from volgrowth.analysis.calibration.evidence import Judged, judge_images
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES, ScoredImages


def images(count: int, noise: float = 0.3, seed: int = 0) -> ScoredImages:
    """Growth 10 sin(4 x_0) + 5 x_1 of features in [0, 1]^6, and noise."""
    random = np.random.default_rng(seed)
    features = random.uniform(size=(count, 6))
    growth = 10 * np.sin(4 * features[:, 0]) + 5 * features[:, 1] + noise * random.normal(size=count)
    return ScoredImages(features, growth, random.integers(2**64, size=count, dtype=np.uint64))


def calibrated(audited: ScoredImages, holdout: ScoredImages | None = None) -> Judged:
    found = judge_images(audited, holdout)
    assert found is not None
    return found


def quality(found: Judged) -> tuple[float, float]:
    return found.calibration.main.r2, found.calibration.main.residual_spread


def joined(*parts: ScoredImages) -> ScoredImages:
    columns = zip(*((p.features, p.score, p.content) for p in parts), strict=True)
    return ScoredImages(*(np.concatenate(column) for column in columns))


def test_growth_that_follows_complexity_is_expected() -> None:
    audited = images(600, noise=0.0)
    found = calibrated(audited)
    assert found.calibration.method == "cross-fitted"
    assert len(found.calibration.rows) == 600
    assert found.calibration.main.r2 > 0.95
    assert found.calibration.main.residual_spread < 0.1 * audited.score.std()


def test_growth_that_does_not_is_not() -> None:
    audited = images(400)
    random = np.random.default_rng(1).normal(size=400)
    found = calibrated(replace(audited, score=random))
    assert -0.4 < found.calibration.main.r2 < 0.1
    assert found.calibration.main.residual_spread == pytest.approx(1, rel=0.3)


def test_the_quality_is_that_of_its_own_excess() -> None:
    audited = images(300)
    found = calibrated(audited)
    excess = audited.score - found.first_expected
    assert found.calibration.main.r2 == pytest.approx(1 - excess.var() / audited.score.var())
    deviation = np.abs(excess - np.median(excess))
    assert found.calibration.main.residual_spread == pytest.approx(1.4826 * np.median(deviation))


def test_constant_growth_has_no_variance_to_explain() -> None:
    found = calibrated(replace(images(80), score=np.full(80, 3.0)))
    assert_allclose(found.first_expected, 3.0)
    assert (found.calibration.main.r2, found.calibration.main.residual_spread) == (0, 0)


def test_copies_of_an_outlier_keep_their_excess() -> None:
    """100 copies of one image, 20 nats above what its complexity explains, among 300 others.

    They would teach a regression that sees them that such growth is normal: min_samples_leaf is 10.
    """
    others = images(300)
    planted = ScoredImages(np.full((100, 6), 0.5), np.full(100, 40.0), np.full(100, 12345, np.uint64))
    audited = joined(others, planted)
    excess = audited.score - calibrated(audited).first_expected
    usual = 10 * np.sin(2.0) + 2.5
    assert_allclose(excess[300:], 40 - usual, atol=2.5)
    assert len(set(excess[300:])) == 1
    assert np.abs(excess[:300]).max() < 10


def test_copies_count_once() -> None:
    """However often an image comes, the regression and what it says of its quality are the same."""
    once = images(200)
    repeated = joined(once, *[once[np.arange(20)]] * 5)
    first, second = calibrated(once), calibrated(repeated)
    assert len(second.calibration.rows) == len(first.calibration.rows) == 200
    assert_array_equal(second.first_expected[:200], first.first_expected)
    assert_array_equal(second.first_expected[200:220], first.first_expected[:20])
    assert (second.calibration.main.r2, second.calibration.main.residual_spread) == (
        first.calibration.main.r2,
        first.calibration.main.residual_spread,
    )


def test_an_image_is_predicted_by_a_regression_that_did_not_see_it() -> None:
    """Changing the growth of one image, however much, leaves its own expectation as it was, to the bit."""
    audited = images(120)
    before = calibrated(audited).first_expected
    for row in (0, 57, 119):
        growth = audited.score.copy()
        growth[row] += 1000
        after = calibrated(replace(audited, score=growth)).first_expected
        assert after[row] == before[row]


@pytest.mark.parametrize("with_holdout", [False, True])
def test_the_order_of_rows_does_not_matter(with_holdout: bool) -> None:
    audited = joined(images(150), images(150)[np.arange(30)])
    holdout = images(90, seed=5) if with_holdout else None
    order = np.random.default_rng(3).permutation(180)
    shuffled = holdout and holdout[np.random.default_rng(4).permutation(90)]
    before, after = calibrated(audited, holdout), calibrated(audited[order], shuffled)
    assert_allclose(after.first_expected, before.first_expected[order], rtol=1e-12)
    assert (len(after.calibration.rows), after.calibration.main.r2) == (
        len(before.calibration.rows),
        pytest.approx(before.calibration.main.r2, rel=1e-12),
    )


def test_held_out_images_decide_where_there_are_any() -> None:
    """The audited images are 7 nats above held-out ones throughout: only these can say so."""
    holdout, audited = images(300, seed=1), images(200, seed=2)
    audited = replace(audited, score=audited.score + 7)
    found = calibrated(audited, holdout)
    assert found.calibration.method == "held-out"
    assert len(found.calibration.rows) == 300
    assert np.median(audited.score - found.first_expected) == pytest.approx(7, abs=0.5)
    assert np.median(audited.score - calibrated(audited).first_expected) == pytest.approx(0, abs=0.3)


def test_audited_growth_does_not_touch_what_held_out_images_say() -> None:
    holdout, audited = images(100, seed=1), images(80, seed=2)
    before = calibrated(audited, holdout)
    after = calibrated(replace(audited, score=audited.score[::-1] * 3), holdout)
    assert_array_equal(after.first_expected, before.first_expected)
    assert (after.calibration.main.r2, after.calibration.main.residual_spread) == (
        before.calibration.main.r2,
        before.calibration.main.residual_spread,
    )


def test_held_out_images_are_cross_fitted_among_themselves() -> None:
    holdout, audited = images(150, seed=1), images(80, seed=2)
    found = calibrated(audited, holdout)
    assert found.calibration.main.expected is not None
    assert_array_equal(found.calibration.main.expected, calibrated(holdout).first_expected)
    assert len(found.first_expected) == 80


def test_held_out_copies_of_audited_images_teach_nothing() -> None:
    """A held-out set that shares 60 memorized images with the audited one: they keep their excess."""
    random = np.random.default_rng(7)
    shared = ScoredImages(
        random.normal(0.5, 0.005, (60, 6)), np.full(60, 40.0), random.integers(2**64, size=60, dtype=np.uint64)
    )
    holdout, audited = joined(images(300, seed=1), shared), joined(images(100, seed=2), shared)
    found = calibrated(audited, holdout)
    usual = 10 * np.sin(2.0) + 2.5
    assert_allclose(audited.score[100:] - found.first_expected[100:], 40 - usual, atol=3)
    assert len(found.calibration.rows) == 300
    assert found.calibration.main.expected is not None
    assert len(found.calibration.main.expected) == 360


def test_too_few_images_to_learn_from() -> None:
    few, enough = images(MIN_IMAGES - 1), images(MIN_IMAGES)
    copied = joined(few, few)  # copies are no further images
    assert judge_images(few) is None
    assert judge_images(copied) is None
    assert judge_images(enough) is not None


def test_too_few_held_out_images_leave_it_to_the_audited_ones() -> None:
    audited, few, enough = images(200, seed=8), images(MIN_IMAGES - 1), images(MIN_IMAGES)
    alone = calibrated(audited)
    for holdout in (few, joined(few, few)):
        found = calibrated(audited, holdout)
        assert found.calibration.method == "cross-fitted"
        assert found.used.tolist() == alone.used.tolist()
        np.testing.assert_array_equal(found.first_expected, alone.first_expected)
    assert calibrated(audited, enough).calibration.method == "held-out"
    assert judge_images(few, few) is None


def test_no_images_at_all() -> None:
    nothing = images(3)[np.arange(0)]
    assert judge_images(nothing) is None
    found = calibrated(nothing, images(60))
    assert found.first_expected.shape == found.outside.shape == (0,)


def test_images_outside_the_range_that_was_fitted_are_told() -> None:
    holdout, audited = images(100, seed=1), images(60, seed=2)
    assert isinstance(audited.features, np.ndarray)
    audited.features[:] = holdout.features[:60]
    audited.features[3, 2] = 1.5
    audited.features[8, 0] = -0.1
    assert np.flatnonzero(calibrated(audited, holdout).outside).tolist() == [3, 8]
    assert not calibrated(audited).outside.any()


def test_a_choice_of_the_rows_is_fitted_where_there_are_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Counting(HistGradientBoostingRegressor):
        def fit(self, features: np.ndarray, growth: np.ndarray) -> object:
            seen.append(len(growth))
            return super().fit(features, growth)

    monkeypatch.setattr("sklearn.ensemble.HistGradientBoostingRegressor", Counting)
    monkeypatch.setattr(calibration, "FIT_ROWS", 120)
    audited = images(400)
    found = calibrated(audited)
    assert seen == [120] * 5
    assert len(found.calibration.rows) == 400
    assert found.calibration.main.r2 > 0.8
    order = np.random.default_rng(3).permutation(400)  # the choice is by content, not by row
    assert_allclose(calibrated(audited[order]).first_expected, found.first_expected[order], rtol=1e-12)
