"""Scored rows without a condition are counted, and it is said where they change what a verdict means."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.analysis.test_caveats import flagged
from tests.analysis.test_summary import summarized
from tests.support.stored import store_tables
from tests.support.tables import failed, many, scores
from volgrowth.analysis.conditions import describe_conditions

CLASSES = {"class_column": "label"}
CAPTIONS = {"caption_column": "text"}


def under(rows: list[dict[str, Any]], column: str, every: int) -> list[dict[str, Any]]:
    """These rows, of which one in so many has no condition; 1 for none with one, 0 for none without."""
    value = {"class": "3", "tokens_cut": 0}[column]
    return [{**row, column: None if every and not index % every else value} for index, row in enumerate(rows)]


def counted(rows: int, without: int) -> dict[str, int]:
    return {"rows": rows, "without": without}


@pytest.mark.parametrize(("column", "settings"), [("class", CLASSES), ("tokens_cut", CAPTIONS)])
def test_rows_without_a_condition_are_counted_and_said(column: str, settings: dict[str, Any], tmp_path: Path) -> None:
    audited = [*under(flagged(60), column, 20), failed()]  # a row without a score is none without a condition
    held = under(many(400, seed=9), column, 25)
    summary = summarized(tmp_path, scores(*audited), scores(*held), **settings, max_failed=0.1)[0]
    kind, name = ("class", "label") if column == "class" else ("caption", "text")
    assert summary["conditions"] == {
        "kind": kind, "column": name, "audited": counted(60, 3), "held_out": counted(400, 16)
    }  # fmt: skip
    said = [
        f"3 of 60 scored rows have no {kind} in column {name}: they were measured without one.",
        f"16 of 400 scored held-out rows have no {kind} in column {name}: they were measured without one.",
    ]
    assert summary["detection"]["warnings"][:2] == said == summary["run"]["warnings"]
    assert summary["caveats"] == []


@pytest.mark.parametrize(
    ("audited", "held", "said"),
    [
        (2, 0, "Of the scored rows 50% have no class in column label, and of the held-out ones 0%"),
        (0, 1, "Of the scored rows 0% have no class in column label, and of the held-out ones 100%"),
        (1, 1, "All 60 scored rows have no class in column label and were measured without one."),
        (1, None, "All 60 scored rows have no class in column label and were measured without one."),
    ],
)
def test_a_verdict_on_rows_that_were_measured_otherwise_has_a_caveat(
    audited: int, held: int | None, said: str, tmp_path: Path
) -> None:
    held_out = None if held is None else scores(*under(many(400, seed=9), "class", held))
    summary = summarized(tmp_path, scores(*under(flagged(60), "class", audited)), held_out, **CLASSES)[0]
    assert summary["caveats"][0].startswith(said)


def test_where_every_row_has_its_condition_or_none_was_asked_for_nothing_is_said(tmp_path: Path) -> None:
    rows = scores(*under(flagged(60), "class", 0)), scores(*under(many(400, seed=9), "class", 0))
    summary = summarized(tmp_path / "all", *rows, **CLASSES)[0]
    assert summary["conditions"]["audited"] == counted(60, 0)
    assert summary["caveats"] == summary["detection"]["warnings"] == []
    summary = summarized(tmp_path / "none", scores(*flagged(60)), scores(*many(400, seed=9)))[0]
    assert summary["conditions"] is None
    assert summary["caveats"] == summary["detection"]["warnings"] == []


def test_scores_of_a_version_without_classes_tell_nothing(tmp_path: Path) -> None:
    _, audit, analysis = summarized(tmp_path, scores(*under(flagged(60), "class", 2)), **CLASSES)
    assert describe_conditions(audit, 60, 30) == {
        "kind": "class", "column": "label", "audited": counted(60, 30), "held_out": None
    }  # fmt: skip
    older: pa.Table = audit.scores.drop_columns(["class"])
    store_tables(audit, older, analysis.findings)
    assert describe_conditions(audit, 60, 60) is None
