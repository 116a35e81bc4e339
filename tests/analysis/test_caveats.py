"""Which sentences change what a verdict means, and that all outputs have them in the headline."""

from pathlib import Path
from typing import Any

import pytest

from tests.analysis.test_summary import summarized
from tests.support import report_data
from tests.support.tables import failed, many, scores
from volgrowth.analysis.calibration.error_rates import rows_needed
from volgrowth.analysis.caveats import list_caveats
from volgrowth.report import Shown, render_report
from volgrowth.report.words import headline_lines


def caveats_of(folder: Path, audited: list[dict[str, Any]], held: list[dict[str, Any]] | None = None) -> list[str]:
    summary = summarized(folder, scores(*audited), None if held is None else scores(*held))[0]
    assert summary["caveats"] == list_caveats(summary)
    return summary["caveats"]


def flagged(rows: int) -> list[dict[str, Any]]:
    """Rows of which a fifth stands out."""
    return [{**row, "growth": row["growth"] + 100 * (5 * k < rows)} for k, row in enumerate(many(rows))]


def test_a_verdict_that_holds_has_no_caveat(tmp_path: Path) -> None:
    assert caveats_of(tmp_path, flagged(60), many(400, seed=9)) == []


def test_held_out_evidence_of_another_kind_is_said(tmp_path: Path) -> None:
    """Images like the audited ones, but all with more growth than these."""
    held = [{**row, "growth": row["growth"] + 2, "phash": 10_000 + k} for k, row in enumerate(many(400, seed=9))]
    said = caveats_of(tmp_path, many(300), held)
    assert any(each.startswith("Of the audited images 100% have less evidence than the median") for each in said)


def test_a_self_check_that_fails_is_said_and_one_that_holds_is_not() -> None:
    shares = [
        {"p_value": 0.01, "realised": 0.01, "allowed": 0.02},
        {"p_value": 0.001, "realised": 0.02, "allowed": 0.004},
    ]
    check = {"shares": shares, "flagged": 0.9, "promised": 0.1}
    known = {"counts": {"rows": 9, "ok": 9}, "detection": None}
    failing, holding = (
        list_caveats({**known, "calibration": {"self_check": {**check, "holds": holds}}}) for holds in (False, True)
    )
    (said,) = set(failing) - set(holding)
    assert "2.00% have a p-value of at most 0.001, and 90% of the halves have a flag, where 10% is promised" in said


def test_without_held_out_images_the_rate_is_an_assumption(tmp_path: Path) -> None:
    (said,) = caveats_of(tmp_path, many(80))
    assert said.startswith("Without held-out images the error rate is an assumption")
    (said, *_) = caveats_of(tmp_path, many(80), [*many(20, seed=9), *many(80)[:40]])
    assert said.startswith("Without enough held-out images the error rate is an assumption")


def test_where_few_flags_could_be_seen_no_flag_says_little(tmp_path: Path) -> None:
    summary = summarized(tmp_path, scores(*many(2000)), scores(*many(60, seed=9)))[0]
    few, tests = summary["detection"]["beyond_holdout"], summary["detection"]["tests"]
    said = summary["caveats"][0]
    assert said.startswith("With 60 held-out images fewer than 3")
    assert said.endswith(f"It takes {rows_needed(tests, few):,} to flag {few}.")
    assert "nothing could be flagged" in caveats_of(tmp_path, many(80), many(50, seed=9))[0] or few > 1


@pytest.mark.parametrize(
    ("audited", "said"),
    [
        ([], "There was nothing to audit"),
        ([failed()] * 3, "Not one of 3 rows could be scored"),
        ([*flagged(60), *[failed()] * 2], "2 of 62 rows have no score, more than the 1.00% allowed"),
    ],
)
def test_what_was_not_judged_is_said(tmp_path: Path, audited: list[dict[str, Any]], said: str) -> None:
    assert any(caveat.startswith(said) for caveat in caveats_of(tmp_path, audited, many(400, seed=9)))


def test_held_out_images_that_failed_are_said(tmp_path: Path) -> None:
    held = many(400, seed=9)
    assert caveats_of(tmp_path / "few", flagged(60), [*held, *[failed()] * 4]) == []
    (said,) = caveats_of(tmp_path / "more", flagged(60), [*held, *[failed()] * 5])
    assert said == "5 of 405 held-out rows have no score: they did not calibrate."


def test_too_few_images_are_said(tmp_path: Path) -> None:
    assert caveats_of(tmp_path, many(20))[0].startswith("Fewer than 50 distinct images could be used to calibrate")


def test_a_cascade_says_what_it_may_have_lost() -> None:
    cascade = {"recall_at_least": 0.4, "flags_lost_at_most": 12}
    summary = report_data.summary(100, detection=report_data.DETECTION, cascade=cascade)
    assert any("lost up to 12 flags: only 40%" in said for said in list_caveats(summary))
    assert list_caveats(summary | {"cascade": {**cascade, "recall_at_least": 0.95}}) == []


def test_where_no_image_was_judged_nothing_is_said_of_how_many_it_would_take() -> None:
    detection = {**report_data.DETECTION, "memorized": 0, "tests": 0, "fewest_flags": 4}
    said = list_caveats(report_data.summary(100, detection=detection))
    assert not any("It takes" in each for each in said)


def test_held_out_images_of_another_kind_promise_no_rate(tmp_path: Path) -> None:
    held = [{**row, "mean": 0.9, "png_bytes": row["png_bytes"] * 3} for row in many(400, seed=9)]
    assert any(
        said.startswith("The held-out images are of another kind") for said in caveats_of(tmp_path, flagged(60), held)
    )


@pytest.mark.parametrize("deviation", [0.3, float("nan")])
def test_derivatives_that_are_off_are_said(deviation: float) -> None:
    floor = {"rows": 8, "derivative": {"deviation": deviation, "tolerance": 0.01}}
    asked = report_data.summary(100, detection=report_data.DETECTION, run={**report_data.RUN, "noise_floor": floor})
    assert any(said.startswith("Derivatives of the network are off by") for said in list_caveats(asked))
    floor["derivative"] = {"deviation": 0.001, "tolerance": 0.01}
    assert list_caveats(asked) == []


def test_an_older_summary_has_its_caveats_too() -> None:
    summary = report_data.summary(100)
    assert "caveats" not in summary
    assert headline_lines(summary)[1].startswith("  but: Fewer than 50 distinct images")


def test_the_page_has_them_beside_the_title(tmp_path: Path) -> None:
    summary, audit, analysis = summarized(tmp_path, scores(*many(80)))
    page = render_report(summary, audit.scores, analysis.findings, Shown()).html
    headline = page[page.index('<div class="headline">') : page.index('<nav aria-label="Sections">')]
    assert headline.index("the error rate is an assumption") < headline.index("audited, every one scored")
