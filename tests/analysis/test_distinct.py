"""What counts as one image, the row that stands for it, and its p-value."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import norm

from tests.analysis.test_summary import summarized
from tests.support.tables import failed, many, scores
from volgrowth.analysis.calibration.error_rates import FDR, q_values
from volgrowth.analysis.calibration.false_bounds import CONFIDENCE, false_bounds
from volgrowth.analysis.comparison.matching import match_images
from volgrowth.analysis.distinct import Pictures, first_of_each, identical_rows, simes, strongest_rows
from volgrowth.analysis.gate.limit import check_limit
from volgrowth.analysis.parts.database import open_database
from volgrowth.report.charts.numbers import duplicate_groups


def test_the_strongest_judged_row_stands_for_a_picture() -> None:
    """Picture 0 is strongest in row 2, 3 has no score, 5 was screened out in part, 8 is judged in its weakest row."""
    table = pa.table(
        {
            "row": range(10),
            "cluster": [0, 0, 0, 3, 3, 5, 5, 8, 8, 8],
            "growth": pa.array([None, 1.0, 2.0, None, None, None, 1.0, 9.0, 8.0, 1.0], pa.float64()),
            "evidence": pa.array([None, 1.0, 2.0, None, None, None, 1.0, 9.0, 8.0, 1.0], pa.float64()),
            "p_value": pa.array([None, 0.5, 0.1, None, None, 1.0, 1.0, 1.0, 1.0, 0.6], pa.float64()),
            "q_value": pa.array([None, 0.2, 0.2, None, None, 1.0, 1.0, 0.6, 0.6, 0.6], pa.float64()),
            "outside_range": pa.array([None, False, False, None, None, False, False, True, True, False]),
        }
    )
    assert np.flatnonzero(strongest_rows(table)).tolist() == [2, 3, 6, 9]
    backwards = table.sort_by([("row", "descending")])
    assert backwards["row"].to_numpy()[strongest_rows(backwards)].tolist() == [9, 6, 3, 2]
    assert strongest_rows(table.slice(0, 0)).tolist() == []
    older = table.drop_columns(["evidence", "p_value", "q_value", "outside_range"])
    assert np.flatnonzero(strongest_rows(older)).tolist() == [2, 3, 6, 7]


def test_simes_is_the_smallest_p_value_paid_for_by_its_rank() -> None:
    p_value, group = np.array([0.3, 0.02, 0.5, 0.04, 0.04, 0.9]), np.array([0, 0, 2, 0, 3, 3])
    assert simes(p_value, group, 5) == pytest.approx([0.06, 1, 0.5, 0.08, 1])
    assert simes(np.empty(0), np.empty(0, int), 0).shape == (0,)


def test_copies_of_one_score_are_one_trial_whatever_the_last_bits_say() -> None:
    content = np.array([7, 7, 7, 8, 7], np.uint64)
    score = np.array([50.0, 50.0 + 1e-5, 51.0, 50.0, -np.inf])
    pictures = Pictures.of(np.array([4, 4, 4, 4, 4]), content, score)
    assert len(pictures.first) == 4
    assert pictures.trial[0] == pictures.trial[1]
    assert pictures.first[pictures.trial[1]] == 0, "the first row stands for its trial"
    assert pictures.trials(np.array([True, True, True, False, True])).tolist() == [3] * 5


def clusters(random: np.random.Generator, alike: float, size: int = 20) -> tuple[Pictures, np.ndarray, np.ndarray]:
    """p-values of 200 pictures of `size` near duplicates each, correlated so much; the first 20 are memorized."""
    picture = np.repeat(np.arange(200), size)
    common, own = random.normal(size=200)[picture], random.normal(size=len(picture))
    score = np.sqrt(alike) * common + np.sqrt(1 - alike) * own
    score[(picture < 20) & (random.uniform(size=len(picture)) < 0.2)] += 6
    return Pictures.of(picture, np.arange(len(picture)).astype(np.uint64), score), picture, norm.sf(score)


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.95])
def test_the_rate_holds_over_pictures_if_trials_are_paid_for_and_not_if_they_are_not(alike: float) -> None:
    random, draws = np.random.default_rng(int(100 * alike)), 100
    false: dict[str, list[float]] = {"paid": [], "unpaid": [], "rows": []}
    power = []
    for _ in range(draws):
        pictures, picture, p_value = clusters(random, alike)
        judged = np.ones(len(p_value), bool)
        paid = q_values(pictures.p_values(p_value, judged), picture)
        unpaid = q_values(pictures.smallest(p_value, judged)[picture], picture)
        rows = q_values(p_value, np.arange(len(p_value)))  # each near duplicate a test of its own
        for name, q_value in (("paid", paid), ("unpaid", unpaid), ("rows", rows)):
            found = np.unique(picture[q_value <= FDR])
            false[name].append(float((found >= 20).mean()) if len(found) else 0.0)
        power.append(len(np.unique(picture[(paid <= FDR) & (picture < 20)])) / 20)
    assert np.mean(false["paid"]) <= FDR + 3 * np.std(false["paid"]) / np.sqrt(draws)
    assert np.mean(power) > 0.9
    assert np.mean(false["unpaid"]) > (0.5 if alike < 0.9 else FDR)
    if not alike:
        assert np.mean(false["rows"]) > 2 * FDR, "a rate over rows is none over pictures"


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.95])
def test_bounds_on_false_flags_hold_over_pictures_if_trials_are_paid_for(alike: float) -> None:
    random, draws, held = np.random.default_rng(7 + int(100 * alike)), 200, 500
    kept = {"paid": 0, "unpaid": 0}
    for _ in range(draws):
        pictures, _, p_value = clusters(random, alike, size=10)
        above = np.searchsorted(np.sort(random.uniform(size=held)), p_value, side="right")
        strongest = pictures.smallest(above, np.ones(len(above), bool)).astype(int)
        order = np.argsort(strongest, kind="stable")
        last = np.searchsorted(strongest[order], strongest, side="right")
        true = np.cumsum(order >= 20)[last - 1] / last
        for name, trials in (("paid", len(above)), ("unpaid", None)):
            kept[name] += bool((false_bounds(strongest, held, trials) >= true - 1e-9).all())
    assert kept["paid"] / draws >= CONFIDENCE - 3 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / draws)
    if alike < 0.9:
        assert kept["unpaid"] / draws < CONFIDENCE - 0.2


def test_first_of_each_is_sorted() -> None:
    assert first_of_each(np.array([5, 3, 5, 1, 3])).tolist() == [0, 1, 3]


def test_identical_rows_are_told_apart_by_all_bits_of_their_hashes() -> None:
    """As float64 the three hashes were one."""
    hashes = pa.array([2**63 + 1, None, 2**63 + 2, 2**63 + 1], pa.uint64())
    table = pa.table({"row": range(4), "content_hash": hashes})
    assert identical_rows(table).tolist() == [0, 1, 2, 0]


def test_an_image_whose_first_row_failed_is_counted_by_all(tmp_path: Path) -> None:
    """Row 0 could not be measured; row 5 shows the same pixels and is flagged."""
    measured = many(200)
    measured[5]["growth"] += 500.0
    measured[0] = failed("non_finite", content_hash=measured[5]["content_hash"])
    summary, audit, analysis = summarized(tmp_path, scores(*measured))
    vars(audit)["summary"] = summary
    findings = analysis.findings
    assert findings["memorized"].to_pylist()[0] is None
    assert findings["memorized"].to_pylist()[5]
    detection, found = summary["detection"], check_limit(audit, 0.1, 1.0)
    assert detection["memorized"] == found.flagged == 1
    assert detection["tests"] == found.judged == 199
    assert [image["row"] for image in found.images] == [5]
    with open_database(0) as database:
        match_images(database, audit, audit)
        matched = database.table("SELECT row_a, flagged_a FROM matched")
    assert matched["row_a"].to_pylist().count(5) == 1
    assert (len(matched), sum(matched["flagged_a"].to_pylist())) == (199, 1)
    assert sum(band["flagged"] for band in duplicate_groups(findings)["by_rows"]) == 1
