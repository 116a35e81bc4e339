from typing import Any

import pytest

from tests.support.report_data import DETECTION, NO_COUNTS, TRUTH, summary
from volgrowth.records import Mark, Status
from volgrowth.report import words


def test_every_status_and_mark_is_explained() -> None:
    assert set(words.STATUS_MEANING) == set(Status)
    assert set(words.MARK_MEANING) == set(Mark)


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        (0, {}, "The data set holds no images"),
        (3, {"counts": {**NO_COUNTS, "rows": 3, "crashed": 3}}, "No image could be scored"),
        (3, {}, "3 images ranked, none judged"),
        (3, {"verification": TRUTH}, "The model reproduces 1 training image"),
        (3, {"detection": {**DETECTION, "memorized": 0}}, "No images are flagged as memorized"),
        (3, {"detection": {**DETECTION, "memorized": 0, "tests": 0}}, "3 images scored, and none could be judged"),
        (3, {"detection": {**DETECTION, "memorized": 1}}, "1 image is flagged as memorized"),
        (3, {"detection": DETECTION}, "2 images are flagged as memorized"),
        (
            3,
            {"detection": DETECTION, "verification": TRUTH},
            "2 images are flagged as memorized, and samples prove 1 of them",
        ),
        (
            3,
            {"detection": DETECTION, "verification": {**TRUTH, "reproduced_images": 2, "flagged_reproduced": 2}},
            "2 images are flagged as memorized, and samples prove all of them",
        ),
        (
            3,
            {
                "detection": {**DETECTION, "memorized": 1},
                "verification": {**TRUTH, "reproduced_images": 0, "flagged_reproduced": 0},
            },
            "1 image is flagged as memorized, and samples prove nothing of it",
        ),
        (
            3,
            {"detection": DETECTION, "verification": {**TRUTH, "reproduced_images": 4}},
            "2 images are flagged as memorized, and samples prove 1 of them and 3 more",
        ),
        (
            3,
            {"detection": {**DETECTION, "memorized": 0}, "verification": {**TRUTH, "flagged_reproduced": 0}},
            "The model reproduces 1 training image, and none is flagged as memorized",
        ),
    ],
)
def test_the_verdict_in_one_line(rows: int, changes: dict[str, Any], said: str) -> None:
    assert words.title(summary(rows, **changes)) == said


def rows_of(**changes: Any) -> dict[str, words.Headline]:
    return {row.label: row for row in words.verdict_rows(summary(3, **changes))}


def test_no_flag_is_no_proof_of_absence() -> None:
    assert "no proof" in words.verdict_sentence(summary(3, detection={**DETECTION, "memorized": 0, "precursors": 0}))


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        (None, "none of them is proven"),
        ({"flagged_reproduced": 2}, "then proved every one: none of these is false"),
        ({"flagged_reproduced": 1}, "samples have since proven 1, so that at most the other 1 can be"),
    ],
)
def test_the_rate_and_the_proof_are_reconciled_in_one_sentence(truth: dict[str, Any] | None, said: str) -> None:
    found = {"detection": DETECTION, **({"verification": {**TRUTH, **truth}} if truth else {})}
    sentence = words.verdict_sentence(summary(3, **found))
    assert "allows, on average, about 0.2 of 2 flags to be false" in sentence
    assert said in sentence


def test_copies_are_told_from_distinct_pictures() -> None:
    found = rows_of(detection={**DETECTION, "memorized": 4, "memorized_rows": 200})
    assert found["flagged"].value == "4"
    assert "With their copies they are 200 rows" in found["flagged"].note


def test_bounds_are_told_where_they_say_something() -> None:
    bounds = [{"first": 10, "innocent_at_most": 6}, {"first": 20, "innocent_at_most": 6}]
    told = rows_of(detection={**DETECTION, "false_bounds": bounds})["false at most"]
    assert told.value == "6 of 20"
    assert "of the first 20 at most 6 are innocent" in told.note
    assert "the first 10" not in told.note


def test_rows_above_the_ceiling_are_said_to_change_no_flag() -> None:
    marks = dict.fromkeys(Mark, 0) | {Mark.ABOVE_CEILING: 1597}
    told = rows_of(detection=DETECTION, marks=marks)["above ceiling"]
    assert told.value == "1,597"
    assert "changes no flag" in told.note
    assert "above ceiling" not in rows_of(detection=DETECTION)


def card(**changes: Any) -> dict[str, Any]:
    usual = {
        "status": "ok",
        "evidence": 3.0,
        "parts": "growth +3.0",
        "share_below": 0.9,
        "memorized": None,
        "p": None,
        "growth": 20.0,
        "copies": 1,
        "outside_range": None,
        "reproduced": False,
    }
    return {**usual, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Evidence higher than 90% of distinct images."),
        ({"parts": None}, "Excess growth higher than 90% of distinct images."),  # findings of an older version
        ({"p": 0.2, "memorized": False}, "not enough to be flagged"),
        ({"p": 0.2, "memorized": False, "reproduced": True}, "not enough to be flagged; samples reproduced it."),
        ({"p": 1.0, "memorized": False, "outside_range": True}, "not judged"),
        ({"p": 0.01, "memorized": True}, "flagged at a false discovery rate of 10%"),
        ({"evidence": -1.0}, "Nothing beyond what its complexity explains"),
        ({"evidence": None}, "No calibrated score"),
        ({"evidence": None, "p": 1.0, "growth": None}, "Screened out"),
        ({"evidence": None, "p": 1.0}, "Of one colour"),
        ({"evidence": None, "status": "crashed"}, "ended its process"),
        ({"evidence": None, "status": "timed_out"}, "did not end"),
    ],
)
def test_reasons(changes: dict[str, Any], said: str) -> None:
    assert said in words.card_reason(card(**changes), 0.1)
