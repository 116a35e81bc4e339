import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import kstest

from volgrowth.analysis.calibration import expected_scores
from volgrowth.analysis.calibration.error_rates import FDR, AssumedTail, fewest_flags, q_values, rows_needed
from volgrowth.analysis.calibration.evidence import judge_images
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES, ScoredImages
from volgrowth.analysis.findings import analyse
from volgrowth.records import SCORES


def exchangeable(count: int, random: np.random.Generator) -> ScoredImages:
    """Images whose score follows their complexity, with noise that grows with it."""
    features = random.uniform(0, 1, (count, 3))
    score = 5 * features[:, 0] + (0.2 + features[:, 1]) * random.standard_normal(count)
    return ScoredImages(features, score, random.integers(0, 2**63, count, dtype=np.uint64))


@pytest.fixture
def few_rounds(monkeypatch):
    """Regressions that are fitted less closely: the promise holds for any regression, and power still shows."""
    monkeypatch.setattr(expected_scores, "ROUNDS", 60)


@pytest.mark.usefixtures("few_rounds")
def test_p_values_are_uniform_on_exchangeable_images():
    """One p-value a seed, so that they are independent of each other."""
    p_values = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        calibration = judge_images(exchangeable(1, random), exchangeable(2 * MIN_IMAGES, random))
        assert calibration is not None
        assert calibration.used is not None
        p_values.append(calibration.used[0])
    assert kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.usefixtures("few_rounds")
def test_flags_keep_the_promised_rate_and_find_what_stands_out():
    false_share, power = [], []
    for seed in range(10):
        random = np.random.default_rng(seed)
        audited, holdout = exchangeable(500, random), exchangeable(500, random)
        audited.score[:40] += 4
        calibration = judge_images(audited, holdout)
        assert calibration is not None
        assert calibration.used is not None
        flags = q_values(calibration.used, audited.content) <= FDR
        false_share.append(flags[40:].sum() / max(flags.sum(), 1))
        power.append(flags[:40].mean())
    assert np.mean(false_share) <= FDR + 0.03
    assert np.mean(power) >= 0.6


def test_an_image_beyond_all_held_out_ones_has_the_smallest_p_value():
    random = np.random.default_rng(0)
    audited, holdout = exchangeable(10, random), exchangeable(200, random)
    audited.score[3] = 100
    audited.score[4] = -100
    calibration = judge_images(audited, holdout)
    assert calibration is not None
    assert calibration.used is not None
    assert calibration.used[3] == 1 / 201
    assert calibration.used[4] == 1


def test_without_held_out_images_p_values_are_those_of_the_tail():
    images = exchangeable(200, np.random.default_rng(0))
    calibration = judge_images(images)
    assert calibration is not None
    excess = images.score - calibration.first_expected
    expected = AssumedTail.of(excess).p_values(excess)
    np.testing.assert_allclose(calibration.used, expected, rtol=1e-9)
    assert np.isnan(calibration.conformal).all()


def test_copies_are_one_test_and_share_their_q_value():
    p_value = np.array([0.01, 0.5, 0.01, 0.01, 0.3])
    content = np.array([7, 8, 7, 7, 9], np.uint64)
    assert q_values(p_value, content) == pytest.approx([0.03, 0.5, 0.03, 0.03, 0.45])
    assert q_values(np.empty(0), np.empty(0, np.uint64)).shape == (0,)


@pytest.mark.parametrize(("tests", "rows"), [(1000, 99), (1000, 1000), (50, 5000), (777, 123)])
def test_fewest_flags_is_where_benjamini_hochberg_starts_to_flag(tests, rows):
    fewest = fewest_flags(tests, 1 / (1 + rows))
    for flagged, possible in ((fewest, True), (fewest - 1, False)):
        p_value = np.ones(tests)
        p_value[:flagged] = 1 / (1 + rows)
        assert (q_values(p_value, np.arange(tests)) <= FDR + 1e-12).any() == (possible and flagged > 0)
    assert fewest_flags(tests, 1 / (1 + rows_needed(tests, 5))) <= 5


def table_of(images: ScoredImages, first: int = 0) -> pa.Table:
    """A table of scores whose complexity is the images' first two features."""
    rows = [
        {
            "row": first + k,
            "status": "ok",
            "growth": float(images.score[k]),
            "png_bytes": int(100 + 900 * images.features[k, 0]),
            "variance": float(images.features[k, 1]),
            "total_variation": 0.1,
            "mean": 0.0,
            "edge_density": 0.1,
            "content_hash": int(images.content[k]),
        }
        for k in range(len(images.score))
    ]
    return pa.Table.from_pylist(rows, schema=SCORES)


@pytest.mark.usefixtures("few_rounds")
def test_images_that_cannot_be_judged_do_not_loosen_the_rate_for_the_others():
    """Many images beyond the held-out range and far above expectation: none is flagged, nor is anything else freely."""
    false_share, power = [], []
    for seed in range(4):
        random = np.random.default_rng(seed)
        audited, holdout = exchangeable(600, random), exchangeable(600, random)
        audited.score[:60] += 6
        assert isinstance(audited.features, np.ndarray)
        audited.features[60:260, 0] = 2
        audited.score[60:260] += 50
        findings = analyse(table_of(audited), table_of(holdout)).findings
        flags = findings["memorized"].to_numpy(zero_copy_only=False).astype(bool)
        assert findings["outside_range"].to_numpy(zero_copy_only=False)[60:260].all()
        assert not flags[60:260].any()
        false_share.append(flags[260:].sum() / max(flags.sum(), 1))
        power.append(flags[:60].mean())
    assert np.mean(false_share) <= FDR + 0.03
    assert np.mean(power) >= 0.9


def test_too_few_held_out_images_leave_a_cross_fitted_ranking():
    random = np.random.default_rng(0)
    analysis = analyse(table_of(exchangeable(200, random)), table_of(exchangeable(MIN_IMAGES - 1, random)))
    assert analysis.calibration is not None
    assert analysis.calibration.method == "cross-fitted"
    assert analysis.findings["p_value"].null_count == 0
    assert analysis.findings["excess_growth"].null_count == 0


def test_yekutieli_is_hochberg_times_the_harmonic_sum():
    random = np.random.default_rng(0)
    p_value, content = random.uniform(0, 0.02, 40), np.arange(40)
    harmonic = (1 / np.arange(1, 41)).sum()
    expected = np.minimum(q_values(p_value, content) * harmonic, 1)
    np.testing.assert_allclose(q_values(p_value, content, "by"), expected, rtol=1e-12)


def test_the_tail_is_exact_where_its_assumption_holds():
    """Exponential beyond the upper quartile: p-values there are uniform (Kolmogorov-Smirnov over seeds)."""
    smallest = []
    for seed in range(20):
        excess = np.random.default_rng(seed).exponential(3.0, 4000)
        p_value = AssumedTail.of(excess).p_values(excess)
        below = p_value[p_value < 0.25] / 0.25
        smallest.append(kstest(below, "uniform").statistic)
    assert np.median(smallest) < 0.04


def test_the_tail_keeps_its_promise_on_lighter_ones_and_finds_what_stands_out():
    false_share, power = [], []
    for seed in range(10):
        excess = np.random.default_rng(seed).normal(0, 1, 2000)
        excess[:40] += 12
        flags = q_values(AssumedTail.of(excess).p_values(excess), np.arange(2000)) <= FDR
        false_share.append(flags[40:].sum() / max(flags.sum(), 1))
        power.append(flags[:40].mean())
    assert np.mean(false_share) <= FDR
    assert np.mean(power) >= 0.95


def test_a_tail_without_spread_flags_nothing():
    assert (AssumedTail.of(np.zeros(60)).p_values(np.zeros(60)) == 1).all()
    rising = np.arange(60.0)
    assert AssumedTail.of(rising).p_values(rising)[:40].tolist() == [1.0] * 40
