"""Lists of the report's page: a line for each decided image, of which rows follow by scope."""

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.curation.conftest import ROWS
from volgrowth.analysis.policy import CURATION, list_digest
from volgrowth.audit.output.result import Audit
from volgrowth.curation import read_list
from volgrowth.errors import OutputError, UsageError

CLUSTER = [3, 60, 61, 62, 63]
"""A row and its copies."""


def written(audit: Audit, file: Path, *lines: dict[str, Any], without: str = "") -> str:
    """Write a list as the page does; each line is for the cluster of row 3 unless it says otherwise."""
    usual = {
        **{"row": 3, "image_id": "", "scope": "cluster", "action": "drop", "weight": 0, "reason": "mine"},
        **{"evidence": 1.5, "false_bound": 0.5, "cluster": 3, "audit": list_digest(audit), "listed": len(lines)},
    }
    rows = [{name: value for name, value in {**usual, **line}.items() if name != without} for line in lines]
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


@pytest.mark.parametrize(("scope", "dropped"), [("cluster", CLUSTER), ("row", [3]), ("others", CLUSTER[1:])])
def test_a_line_decides_the_rows_of_its_scope(parquet: Audit, tmp_path: Path, scope: str, dropped: list[int]) -> None:
    found = read_list(parquet, written(parquet, tmp_path / "list.csv", {"scope": scope}))
    assert found.schema.equals(CURATION)
    assert found["row"].to_pylist() == list(range(ROWS))
    rows = found.to_pylist()
    assert [each["row"] for each in rows if each["action"] == "drop"] == dropped
    assert {(each["weight"], each["reason"]) for each in rows if each["action"] == "drop"} == {(0.0, "mine")}
    assert {(each["action"], each["weight"]) for each in rows if each["row"] not in dropped} == {("keep", 1.0)}
    assert found["source"].null_count == 0


def test_a_line_may_name_its_image(parquet: Audit, tmp_path: Path) -> None:
    known = parquet.findings["image_id"][3].as_py()
    read_list(parquet, written(parquet, tmp_path / "list.csv", {"image_id": known}))
    with pytest.raises(UsageError, match="row 3: image_id is 'other' and was"):
        read_list(parquet, written(parquet, tmp_path / "list.csv", {"image_id": "other"}))


@pytest.mark.parametrize(
    ("lines", "kind", "message"),
    [
        ([{"listed": 7}], OutputError, "has 1 lines, and its column listed says 7: download it from the report again"),
        ([{}, {}], UsageError, "decides cluster 3 twice: expected one line for each cluster"),
        ([{"action": "burn"}], UsageError, "row 3: action is 'burn': expected keep, drop or review"),
        ([{"action": "review"}], UsageError, "row 3: action is review and weight 0.0: expected 1"),
        ([{"scope": "all"}], UsageError, "row 3: scope is 'all': expected cluster, row or others"),
        ([{"row": 4}], UsageError, "row 4: it is no row of cluster 3"),
        ([{"cluster": 99999}], UsageError, "row 3: it is no row of cluster 99999"),
        ([{"audit": "0" * 16}], OutputError, "is of another audit"),
    ],
)
def test_lines_that_make_no_sense_are_refused(
    parquet: Audit, tmp_path: Path, lines: list[dict[str, Any]], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        read_list(parquet, written(parquet, tmp_path / "list.csv", *lines))


@pytest.mark.parametrize("column", ["row", "cluster", "audit", "action"])
def test_a_column_that_is_missing_is_named(parquet: Audit, tmp_path: Path, column: str) -> None:
    with pytest.raises(OutputError, match=f"has no column {column}"):
        read_list(parquet, written(parquet, tmp_path / "list.csv", {}, without=column))
