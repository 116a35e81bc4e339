"""Distinct images, and the one row that stands for each wherever they are counted."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.analysis.test_summary import summarized
from tests.support.tables import failed, many, scores
from volgrowth.analysis.comparison.matching import match_images
from volgrowth.analysis.distinct import first_of_each, first_rows, identical_rows
from volgrowth.analysis.gate.limit import check_limit
from volgrowth.report.charts.numbers import duplicate_groups


def test_the_first_row_with_a_score_stands_for_an_image() -> None:
    """Image 0 has its score in row 2, image 1 in row 1, image 3 nowhere, and 5 was screened out of a cascade."""
    table = pa.table(
        {
            "row": range(7),
            "identical": [0, 1, 0, 3, 3, 5, 5],
            "growth": pa.array([None, 1.0, 2.0, None, None, None, None], pa.float64()),
            "p_value": pa.array([None, 0.5, 0.5, None, None, None, 1.0], pa.float64()),
        }
    )
    assert np.flatnonzero(first_rows(table)).tolist() == [1, 2, 3, 6]
    backwards = table.sort_by([("row", "descending")])
    assert backwards["row"].to_numpy()[first_rows(backwards)].tolist() == [6, 3, 2, 1]
    assert first_rows(table.slice(0, 0)).tolist() == []


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
    matched = match_images(audit, audit)
    assert matched.a.row.tolist().count(5) == 1
    assert (len(matched.a), int(matched.a.flagged.sum())) == (199, 1)
    assert sum(band["flagged"] for band in duplicate_groups(findings)["by_rows"]) == 1
