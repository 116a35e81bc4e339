from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose

from tests.support.tables import failed, many, scores
from volgrowth.analysis import chunks
from volgrowth.analysis.calibration import boosted_trees
from volgrowth.analysis.calibration.expected_scores import MIN_IMAGES
from volgrowth.analysis.distinct import strongest_rows
from volgrowth.analysis.findings import analyse
from volgrowth.analysis.parts.judge import ANALYSED
from volgrowth.records import FINDINGS, Status

BAD = [status for status in Status if status is not Status.OK]


def column(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist()


def test_findings_are_the_contracts_columns() -> None:
    findings = analyse(scores(*many(60))).findings
    assert findings.schema.equals(FINDINGS, check_metadata=True)
    assert len(findings) == 60


def test_excess_is_growth_less_what_was_expected() -> None:
    rows = many(200)
    rows[17] = {**rows[17], "growth": rows[17]["growth"] + 30}
    found = analyse(scores(*rows))
    growth, expected, excess = (
        np.array(column(found.findings, name)) for name in ("growth", "expected_growth", "excess_growth")
    )
    assert growth.tolist() == [row["growth"] for row in rows]
    assert_allclose(excess, growth - expected, rtol=1e-12)
    assert excess.argmax() == 17
    assert growth.argmax() == 17 or excess[17] > 20
    assert found.calibration is not None
    assert expected.tolist() == found.calibration.main.expected.tolist()
    assert found.holdout is None


@pytest.mark.parametrize("status", BAD)
def test_rows_without_a_score_stay_and_have_nulls(status: Status) -> None:
    rows = many(80)
    rows[0], rows[40] = failed(status), failed(status)
    findings = analyse(scores(*rows)).findings
    assert column(findings, "row") == list(range(80))
    assert column(findings, "image_id") == [f"image-{index}" for index in range(80)]
    for name in ("growth", "expected_growth", "excess_growth"):
        assert [index for index, value in enumerate(column(findings, name)) if value is None] == [0, 40]
    for name in ("growth", "expected_growth", "excess_growth"):
        assert np.isfinite([value for value in column(findings, name) if value is not None]).all()


def test_a_failed_row_changes_nothing_for_the_others() -> None:
    rows = many(80)
    before = column(analyse(scores(*rows)).findings, "expected_growth")
    after = column(analyse(scores(failed(), *rows, failed("non_finite"))).findings, "expected_growth")
    assert after == [None, *before, None]


def test_columns_of_later_steps_are_null() -> None:
    findings = analyse(scores(*many(60))).findings
    assert findings.column("verified_hits").null_count == 60


def test_too_few_images_are_not_calibrated() -> None:
    found = analyse(scores(*many(MIN_IMAGES - 1), failed()))
    assert found.calibration is None
    assert found.findings.column("growth").null_count == 1
    for name in ("expected_growth", "excess_growth"):
        assert found.findings.column(name).null_count == MIN_IMAGES


@pytest.mark.parametrize("holdout", [None, scores(*many(60))], ids=["alone", "held-out"])
@pytest.mark.parametrize("count", [0, 3])
def test_nothing_was_scored(count: int, holdout: pa.Table | None) -> None:
    findings = analyse(scores(*[failed()] * count), holdout).findings
    assert findings.schema.equals(FINDINGS)
    assert column(findings, "growth") == column(findings, "excess_growth") == [None] * count


def test_held_out_findings() -> None:
    """Held-out images calibrate, and are calibrated among themselves; the audited ones are 5 nats above."""
    audited = [{**row, "growth": row["growth"] + 5} for row in many(80, seed=1)]
    found = analyse(scores(*audited, failed()), scores(failed(), *many(150, seed=2)))
    assert found.calibration is not None
    assert found.calibration.method == "held-out"
    assert found.holdout is not None
    assert found.holdout.schema.equals(FINDINGS)
    assert len(found.holdout) == 151
    assert column(found.holdout, "excess_growth")[0] is None
    assert np.median(column(found.holdout, "excess_growth")[1:]) == pytest.approx(0, abs=0.3)
    assert np.median(column(found.findings, "excess_growth")[:-1]) == pytest.approx(5, abs=0.7)


def test_held_out_images_that_were_not_scored_leave_it_to_the_audited_ones() -> None:
    found = analyse(scores(*many(80)), scores(*[failed()] * 60))
    assert found.calibration is not None
    assert found.calibration.method == "cross-fitted"
    assert found.holdout is not None
    assert found.holdout.column("excess_growth").null_count == 60
    assert found.findings.column("excess_growth").null_count == 0
    assert found.findings.column("p_value").null_count == 0


def test_findings_carry_the_clusters() -> None:
    """Row 30 has the pixels of row 2, row 50 as well but no score, and row 40 looks like it."""
    rows = many(60)
    look = {"phash": 5, "mean": 0.0, "variance": 0.25}
    rows[2] = {**rows[2], **look}
    rows[30] = {**rows[30], **look, "content_hash": rows[2]["content_hash"]}
    rows[40] = {**rows[40], **look, "phash": 4}
    rows[50] = failed("non_finite", content_hash=rows[2]["content_hash"])
    findings = analyse(scores(*rows)).findings
    assert [index for index, count in enumerate(column(findings, "copies")) if count == 4] == [2, 30, 40, 50]
    assert {column(findings, "cluster")[index] for index in (2, 30, 40, 50)} == {2}
    assert [index for index, row in enumerate(column(findings, "identical")) if row == 2] == [2, 30, 50]
    assert column(findings, "copies").count(1) == 56
    assert column(findings, "expected_growth")[2] is not None


LOOK = {"phash": 5, "mean": 0.0, "variance": 0.25}
"""Rows with this look are near duplicates."""


def near(row: dict[str, Any], growth: float, **changes: Any) -> dict[str, Any]:
    return {**row, **LOOK, "growth": row["growth"] + growth, **changes}


def test_near_duplicates_are_one_test_that_pays_for_its_trials() -> None:
    """One of eight near duplicates stands out: all are flagged, with the p-value of that one times eight."""
    rows = [near(row, 30.0 * (index == 3)) for index, row in enumerate(many(8, seed=3))] + many(200)
    found = analyse(scores(*rows), scores(*many(600, seed=2)))
    findings = found.findings
    assert column(findings, "cluster")[:8] == [0] * 8
    assert column(findings, "trials")[:9] == [8] * 8 + [1]
    p_value, combined, q_value = (column(findings, name) for name in ("p_value", "cluster_p_value", "q_value"))
    assert len({*combined[:8]}) == len({*q_value[:8]}) == 1
    assert combined[0] == pytest.approx(8 * p_value[3])
    assert q_value[0] == pytest.approx(combined[0] * 201)  # of 201 tests it is the first
    assert combined[8:] == p_value[8:]
    assert column(findings, "memorized") == [True] * 8 + [False] * 200


def test_near_duplicates_that_all_stand_out_lose_nothing() -> None:
    rows = [near(row, 30.0) for row in many(8, seed=3)] + many(200)
    findings = analyse(scores(*rows), scores(*many(600, seed=2))).findings
    p_value = column(findings, "p_value")[:8]
    assert min(p_value) <= column(findings, "cluster_p_value")[0] <= max(p_value)


def test_an_image_is_judged_by_its_strongest_caption_and_pays_for_all() -> None:
    """The same pixels under four captions, the third of which the model knows; rows 4 and 5 repeat the first."""
    (image,) = many(1, seed=3)
    captions = [near(image, growth, growth_contrast=growth) for growth in (0.0, 0.5, 30.0, -0.5, 0.0, 1e-6)]
    found = analyse(scores(*captions, *many(200)), scores(*many(600, seed=2)))
    findings = found.findings
    p_value = column(findings, "p_value")
    assert column(findings, "trials")[:6] == [4] * 6
    assert column(findings, "cluster_p_value")[:6] == [pytest.approx(4 * p_value[2])] * 6
    assert column(findings, "memorized")[:7] == [True] * 6 + [False]
    assert column(findings, "growth_contrast")[:7] == [0.0, 0.5, 30.0, -0.5, 0.0, 1e-6, None]
    assert np.flatnonzero(strongest_rows(findings))[0] == 2


def test_an_image_out_of_range_is_no_trial_of_its_near_duplicates() -> None:
    (image,) = many(1, seed=3)
    rows = [near(image, 30.0), near(image, 500.0, content_hash=7, png_bytes=60_000), *many(200)]
    findings = analyse(scores(*rows), scores(*many(600, seed=2))).findings
    assert column(findings, "outside_range")[:3] == [False, True, False]
    assert column(findings, "trials")[:2] == [1, 1]
    assert column(findings, "cluster_p_value")[0] == column(findings, "p_value")[0]
    assert np.flatnonzero(strongest_rows(findings))[0] == 0


def test_columns_that_are_not_analysed_need_not_be_there() -> None:
    rows, held = scores(*many(80), failed()), scores(*many(60, seed=1))
    whole, thin = analyse(rows, held), analyse(rows.select(ANALYSED), held.select(ANALYSED))
    assert thin.findings.equals(whole.findings)
    assert thin.holdout is not None
    assert thin.holdout.equals(whole.holdout)


def test_ids_may_be_more_than_arrow_takes_from_one_column(huge_ids: pa.ChunkedArray) -> None:
    rows = scores(*many(90))
    ids = pa.chunked_array([*huge_ids.chunks, *rows["image_id"].slice(len(huge_ids)).chunks])
    audited = rows.set_column(rows.column_names.index("image_id"), rows.field("image_id"), ids)
    names = [name for name in FINDINGS.names if name != "image_id"]
    assert analyse(audited).findings.select(names).equals(analyse(rows).findings.select(names))


def test_tables_in_several_chunks() -> None:
    rows = scores(*many(80), failed())
    whole = analyse(rows).findings
    parts = pa.concat_tables([rows.slice(0, 33), rows.slice(33, 20), rows.slice(53)])
    assert analyse(parts).findings.equals(whole)


def with_screens(rows: list[dict[str, Any]], measured: float) -> list[dict[str, Any]]:
    """Rows of a cascade: all have what the screen measures, and only those of high growth the other scores."""
    rest = dict.fromkeys(("growth", "rates"))
    return [
        {
            **row,
            "loss": float(np.exp(-row["growth"] / 10)),
            "noise_norm": 1.0 + index % 3,
            **(rest if row["growth"] < measured else {}),
        }
        for index, row in enumerate(rows)
    ]


@pytest.mark.parametrize("share", [None, 0.5], ids=["whole audit", "cascade"])
def test_how_rows_are_divided_changes_nothing(share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of any size on several threads give the same to the bit, and so do tables of trees."""
    rows, held = many(90, seed=1), many(120, seed=2)
    if share:
        rows, held = with_screens(rows, 30), with_screens(held, -np.inf)
    tables = scores(*rows, failed()), scores(*held)
    whole = analyse(*tables, screen_share=share)
    monkeypatch.setattr(chunks, "CHUNK", 7)
    monkeypatch.setattr(boosted_trees, "FEW", 10)
    parts = analyse(*tables, screen_share=share)
    assert whole.calibration is not None
    assert whole.calibration.method == "held-out"
    assert parts.findings.equals(whole.findings)
    assert parts.holdout is not None
    assert parts.holdout.equals(whole.holdout)
