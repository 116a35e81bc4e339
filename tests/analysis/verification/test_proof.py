"""Intervals and numbers of samples against their definitions."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from volgrowth.analysis.judging import JudgedTables
from volgrowth.analysis.verification.proof import (
    MIN_HITS,
    PictureHits,
    chance_to_see,
    clopper_pearson,
    decide_reproduced,
    samples_needed,
    summarize_proof,
)
from volgrowth.audit.sampling.hits import RATIO, hit_groups


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (19, 21), (10, 10)])
def test_clopper_pearson_inverts_the_binomial_test(successes: int, trials: int) -> None:
    low, high = clopper_pearson(successes, trials)
    if successes:
        assert binom.sf(successes - 1, trials, low) == pytest.approx(0.025)
    else:
        assert low == 0
    if successes < trials:
        assert binom.cdf(successes, trials, high) == pytest.approx(0.025)
    else:
        assert high == 1


def test_nothing_tried_says_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_intervals_cover() -> None:
    random = np.random.default_rng(0)
    seen = random.binomial(20, 0.8, 400)
    covered = [low <= 0.8 <= high for low, high in (clopper_pearson(int(k), 20) for k in seen)]
    assert np.mean(covered) >= 0.93


def test_the_samples_needed_are_the_fewest() -> None:
    needed = samples_needed(0.002, 0.95)
    assert needed == 2371
    assert chance_to_see(needed, 0.002) >= 0.95 > chance_to_see(needed - 1, 0.002)
    assert samples_needed(0.9, 0.5) == MIN_HITS


def test_a_hit_is_far_nearer_than_the_others() -> None:
    distance = np.array([[1.0, 10, 10, np.inf], [6.0, 6, 6, np.inf], [np.inf] * 4])
    group = np.array([[7, 1, 2, -1], [7, 1, 2, -1], [-1] * 4])
    assert hit_groups(distance, group).tolist() == [7, -1, -1]
    assert RATIO * 7 > 1


def test_two_hits_of_few_samples() -> None:
    found = decide_reproduced(np.array([0, 1, 2, 9]), np.array([0, 1]), samples=100)
    assert found.images.tolist() == [False, False, True, True]


def test_what_samples_prove_is_counted_over_distinct_images() -> None:
    """Row 1 copies row 0, which is flagged and reproduced; 2 is flagged only, 3 reproduced only, 5 has no image."""
    findings = pa.table(
        {
            "cluster": [0, 0, 2, 3, 4, 5],
            "row": [0, 1, 2, 3, 4, 5],
            "identical": [0, 0, 2, 3, 4, 5],
            "memorized": [True, True, True, False, False, None],
            "q_value": [0.01, 0.01, 0.05, 0.5, 0.5, None],
            "outside_range": [False, False, False, False, False, None],
            "verified_hits": [5, 5, 0, 3, 1, None],
            "growth": [1.0, 1.0, 2.0, 3.0, 4.0, None],
            "p_value": [0.0, 0.0, 0.0, 0.5, 0.5, None],
            "excess_growth": [9.0, 9.0, 8.0, 7.0, 0.0, None],
        }
    )
    reproduced = decide_reproduced(np.array([5, 0, 3, 1]), np.array([0, 1]), samples=100)
    hits = PictureHits(np.array([0, 3, 4]), np.array([5, 3, 1]), np.array([0, 3]))
    content = pa.array([1, 1, 2, 3, 4, None], pa.uint64())
    unknown = findings.set_column(6, "verified_hits", pa.nulls(6, pa.int32())).append_column("content_hash", content)
    written = [hits.add_to(some) for some in (unknown.slice(0, 1), unknown.slice(1, 3), unknown.slice(4))]
    assert pa.concat_tables(written)["verified_hits"].to_pylist() == findings["verified_hits"].to_pylist()
    judged = JudgedTables(findings, pa.table({}), {"rows": hits.proven})
    found = summarize_proof(judged, hits.most, reproduced, samples=100)
    assert (found["reproduced_images"], found["rows"]) == (2, [0, 1, 3])
    assert (found["flagged"], found["flagged_reproduced"], found["unhit_rows"]) == (2, 1, [2])
    assert (found["hits"], found["holdout_images"], found["holdout_hits"]) == (9, 2, 1)
    assert found["precision_interval"] == list(clopper_pearson(1, 2))
    assert (found["raw"]["auroc"], found["calibrated"]["auroc"]) == (0.25, 0.75)
    (warning,) = found["warnings"]
    assert warning.startswith("100 samples are few")
