"""Evidence from several scores."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from volgrowth.analysis.calibration.evidence import Judged, judge_images
from volgrowth.analysis.calibration.expected_scores import ScoredImages

Both = tuple[Judged, dict[str, ScoredImages], dict[str, ScoredImages]]


def sets(count: int, seed: int, memorized: int = 0) -> dict[str, ScoredImages]:
    """Two scores that follow complexity, with independent noise; memorized images stand out a little in each."""
    random = np.random.default_rng(seed)
    features, content = random.uniform(size=(count, 6)), random.integers(2**63, size=count).astype(np.uint64)
    scores = {name: k * features[:, k] + random.normal(size=count) for k, name in ((1, "growth"), (3, "loss"))}
    for score in scores.values():
        score[:memorized] += 3
    return {name: ScoredImages(features, score, content) for name, score in scores.items()}


def calibrated(audited: dict[str, ScoredImages], holdout: dict[str, ScoredImages] | None) -> Judged:
    found = judge_images(audited, holdout, alone=("loss",))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def both() -> Both:
    audited, holdout = sets(400, 1, memorized=20), sets(500, 2)
    return calibrated(audited, holdout), audited, holdout


def test_evidence_is_the_weighted_sum_of_the_parts_in_units_of_the_held_out_spread(both: Both) -> None:
    found = both[0]
    weights = {"noise_norm": 0.5}
    parts = [weights.get(name, 1) * found.excess[name] / part.unit for name, part in found.calibration.parts.items()]
    ratio = found.evidence / np.sum(parts, 0)
    assert_allclose(ratio, ratio[0], rtol=1e-9)
    held = found.calibration.holdout_evidence
    assert held is not None
    assert 1.4826 * np.median(np.abs(held - np.median(held))) == pytest.approx(1)


def heavy(scores: dict[str, ScoredImages], seed: int) -> dict[str, ScoredImages]:
    """Add a part in which one image in twenty stands out for nothing."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=len(scores["loss"].score))
    noise[random.uniform(size=len(noise)) < 0.05] += 8
    return {"loss": scores["loss"], "noise_norm": replace(scores["loss"], score=noise)}


def test_a_part_with_a_heavy_tail_does_not_hide_what_another_finds() -> None:
    audited, holdout = sets(1000, 1, memorized=20), sets(1000, 2)
    audited["loss"].score[:20] += 3
    found = calibrated(heavy(audited, 3), heavy(holdout, 4))
    loss, norm = (found.calibration.parts[name] for name in ("loss", "noise_norm"))
    assert loss.unit == pytest.approx(1, rel=0.15)
    assert norm.unit > 2.5 * norm.residual_spread
    by_spread = sum(found.excess[name] / part.residual_spread for name, part in found.calibration.parts.items())
    reach, before = (
        (evidence[:20, None] > evidence[20:]).mean() for evidence in (found.evidence, np.asarray(by_spread))
    )
    assert reach > 0.99 > before
    assert (found.used[:20] < 0.01).mean() > 0.9


def test_a_light_tail_and_audited_images_have_the_spread_as_unit() -> None:
    audited, holdout = sets(400, 1, memorized=40), sets(400, 2)
    for some in (audited, holdout):
        some["loss"] = replace(some["loss"], score=np.random.default_rng(5).uniform(size=400))
    by_holdout, by_itself = calibrated(audited, holdout), calibrated(audited, None)
    assert by_holdout.calibration.parts["loss"].unit == by_holdout.calibration.parts["loss"].residual_spread
    for part in by_itself.calibration.parts.values():
        assert part.unit == part.residual_spread


def test_one_held_out_image_that_is_memorized_after_all_hardly_moves_the_unit() -> None:
    audited, holdout = sets(100, 1), sets(60, 2)
    before = calibrated(audited, holdout).calibration.parts["loss"].unit
    holdout["loss"].score[0] += 100
    assert calibrated(audited, holdout).calibration.parts["loss"].unit < 1.4 * before


def test_parts_together_find_more_than_each_alone(both: Both) -> None:
    found, audited, holdout = both
    memorized = np.arange(400) < 20
    reach = {
        name: (one.evidence[memorized, None] > one.evidence[~memorized]).mean()
        for name, one in {
            "both": found,
            **{name: calibrated({name: audited[name]}, {name: holdout[name]}) for name in audited},
        }.items()
    }
    assert reach["both"] > max(reach["growth"], reach["loss"])


def test_a_part_alone_has_the_p_values_of_that_score(both: Both) -> None:
    found, audited, holdout = both
    alone = calibrated({"loss": audited["loss"]}, {"loss": holdout["loss"]})
    assert_allclose(found.alone["loss"], alone.used, rtol=1e-6)


def test_an_image_without_a_feature_that_the_held_out_ones_have_is_not_judged() -> None:
    """Such as the score of a reference audit."""
    audited, holdout = sets(400, 1), sets(500, 2)
    features = np.array(audited["growth"].features[:])
    features[:7, 5] = np.nan
    audited = {name: replace(part, features=features) for name, part in audited.items()}
    outside = calibrated(audited, holdout).outside
    assert outside[:7].all()
    assert outside[7:].mean() < 0.05


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda score: np.where(np.arange(len(score)) == 7, np.nan, score), "not measured in every image"),
        (np.zeros_like, "no spread"),
    ],
    ids=["missing in one image", "saturated"],
)
@pytest.mark.parametrize("with_holdout", [False, True])
def test_a_part_that_says_nothing_is_left_out_with_the_reason(
    change: Callable[[np.ndarray], np.ndarray], why: str, with_holdout: bool
) -> None:
    audited, holdout = sets(300, 1), sets(200, 2) if with_holdout else None
    alone = calibrated({"growth": audited["growth"]}, holdout and {"growth": holdout["growth"]})
    for some in (audited, holdout):
        if some:
            some["loss"] = replace(some["loss"], score=change(some["loss"].score))
    found = calibrated(audited, holdout)
    assert list(found.calibration.parts) == ["growth"]
    assert why in found.calibration.left_out["loss"]
    assert_array_equal(found.evidence, alone.evidence)
    assert_array_equal(found.used, alone.used)


@pytest.mark.parametrize("with_holdout", [False, True])
def test_a_score_that_is_set_aside_is_calibrated_and_not_added(with_holdout: bool) -> None:
    audited, holdout = sets(300, 1), sets(200, 2) if with_holdout else None
    found = judge_images(audited, holdout, aside=("growth",))
    both, alone = (
        calibrated(audited, holdout),
        calibrated({"loss": audited["loss"]}, holdout and {"loss": holdout["loss"]}),
    )
    assert found is not None
    assert list(found.calibration.parts) == ["loss"]
    assert "without it" in found.calibration.left_out["growth"]
    assert_array_equal(found.first_expected, both.first_expected)
    assert_array_equal(found.evidence, alone.evidence)


def test_a_score_that_is_set_aside_counts_where_there_is_no_other() -> None:
    growth = {"growth": sets(300, 1)["growth"]}
    found = judge_images(growth, aside=("growth",))
    assert found is not None
    assert list(found.calibration.parts) == ["growth"]
    assert not found.calibration.left_out
    assert_array_equal(found.evidence, calibrated(growth, None).evidence)


def test_growth_without_spread_leaves_the_verdict_to_the_loss() -> None:
    audited, holdout = sets(300, 1, memorized=10), sets(400, 2)
    for some in (audited, holdout):
        some["growth"] = replace(some["growth"], score=np.full(len(some["growth"].score), 5.0))
    found = calibrated(audited, holdout)
    assert np.median(found.evidence[:10]) > np.quantile(found.evidence[10:], 0.9)
    assert_array_equal(found.first_expected, 5.0)
    assert list(found.calibration.parts) == ["loss"]
    assert "no spread" in found.calibration.left_out["growth"]


def test_the_tail_reaches_below_what_counting_can() -> None:
    audited, holdout = sets(400, 1), sets(500, 2)
    for images in audited.values():
        images.score[0] += 20
    found = calibrated(audited, holdout)
    assert found.calibration.tail is not None
    assert found.conformal[0] == pytest.approx(1 / 501)
    assert found.used[0] < 1e-4
    assert found.calibration.smallest_p_value < 1 / 501
    quiet = found.evidence < found.calibration.tail.threshold - 1  # nor does any other fold put these beyond it
    assert_array_equal(found.used[quiet], found.conformal[quiet])
    assert calibrated(audited, sets(200, 2)).calibration.tail is None
