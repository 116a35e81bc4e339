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
        (3, {"detection": {**DETECTION, "memorized": 1}}, "1 image is flagged as memorized"),
        (3, {"detection": DETECTION, "verification": TRUTH}, "2 images are flagged as memorized"),
        (
            3,
            {"detection": DETECTION, "verification": {**TRUTH, "reproduced_images": 4}},
            "2 images are flagged as memorized, and the model reproduces 3 more",
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


def test_no_flag_is_no_proof_of_absence() -> None:
    said = words.verdict_sentences(summary(3, detection={**DETECTION, "memorized": 0, "precursors": 0}))
    assert any("no proof" in sentence for sentence in said)


def test_copies_are_told_from_distinct_pictures() -> None:
    said = words.verdict_sentences(summary(3, detection={**DETECTION, "memorized": 4, "memorized_rows": 200}))
    assert any("With their copies they are 200 rows" in sentence for sentence in said)


def test_bounds_are_told_where_they_say_something() -> None:
    bounds = [{"first": 10, "innocent_at_most": 6}, {"first": 20, "innocent_at_most": 6}]
    said = words.verdict_sentences(summary(3, detection={**DETECTION, "false_bounds": bounds}))
    assert any("of the first 20 at most 6 are innocent" in sentence for sentence in said)
    assert not any("the first 10" in sentence for sentence in said)


def card(**changes: Any) -> dict[str, Any]:
    usual = {
        "status": "ok",
        "evidence": 3.0,
        "parts": "growth +3.0",
        "share_below": 0.9,
        "memorized": None,
        "p": None,
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
        ({"evidence": None, "status": "crashed"}, "ended its process"),
        ({"evidence": None, "status": "timed_out"}, "did not end"),
    ],
)
def test_reasons(changes: dict[str, Any], said: str) -> None:
    assert said in words.card_reason(card(**changes), 0.1)
