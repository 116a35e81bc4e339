"""A page that is made from some rows of very many shows the same images and counts as one that is made from all."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.audit.output.test_parts import finished  # noqa: F401
from tests.curation.conftest import Run, _own_cache, run  # noqa: F401
from tests.support.page_parser import parse
from tests.support.report_data import record, summary, tables
from tests.support.samples import digits, write_folder
from volgrowth.audit.output.result import Audit
from volgrowth.report import ReportOrigin, choose_exhibits, reading, render_report
from volgrowth.report.gallery.exhibits import Shown


def page_of(audit: Audit) -> tuple[reading.ReportRows, dict, list]:
    rows = reading.read_report_rows(audit)
    chosen = choose_exhibits(rows.scores, rows.findings, rows.gallery, None)
    made = render_report(audit.summary, rows.scores, rows.findings, Shown(chosen), audit.holdout_findings, rows.whole)
    assert ("others drawn at random" in made.html) == (rows.whole is not None)
    return rows, made.numbers, chosen


def test_some_rows_make_the_page_of_all_rows(finished: Audit, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    whole, numbers, exhibits = page_of(finished)
    monkeypatch.setattr(reading, "WHOLE_ROWS", 1000)
    monkeypatch.setattr(reading, "SAMPLED", 300)
    some, fewer, shown = page_of(finished)
    assert whole.whole is None
    assert len(whole.findings) == finished.frozen.data.rows
    assert len(some.findings) < 700
    assert some.gallery == whole.gallery
    assert [(each.row, each.duplicates) for each in shown] == [(each.row, each.duplicates) for each in exhibits]
    assert fewer["duplicates"] == numbers["duplicates"]
    assert fewer["gallery"] == numbers["gallery"]
    assert fewer["complexity"]["ordinary"] == numbers["complexity"]["ordinary"]
    for name in ("evidence", "growth", "excess_growth"):
        for kind in ("ordinary", "notable", "held_out"):
            assert sum(fewer[name][kind]) == sum(numbers[name][kind]), (name, kind)
    assert fewer["evidence"]["flags_begin"] == numbers["evidence"]["flags_begin"]


def test_the_sample_does_not_depend_on_shards() -> None:
    """It is drawn by the row, evenly."""
    chosen = reading._mixed(np.arange(100_000))
    assert np.array_equal(chosen[500:600], reading._mixed(np.arange(500, 600)))
    assert np.quantile(chosen, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.01)


def test_of_a_large_group_some_rows_are_read_and_all_are_counted() -> None:
    table = pa.table({"cluster": [3] * 2000 + [5] * 10})
    members: dict[int, int] = {3: 400}
    mask = reading._some_members(table, np.array([3]), members)
    assert mask.sum() == reading.MEMBERS - 400
    assert mask[: reading.MEMBERS - 400].all()


def test_found_images_are_counted_by_class_where_a_column_has_them(run: Run, tmp_path: Path) -> None:  # noqa: F811
    write_folder(tmp_path / "data", digits(12))
    classes = ["a", "b", None, *"b" * 9]
    known = run(tmp_path / "data", tmp_path / "known", classes, class_column="label")
    by_class = reading.read_report_rows(known).by_class
    assert by_class is not None
    assert {group["name"]: group["images"] for group in by_class["listed"]} == {"a": 1, "b": 10, "": 1}
    tables_of = tables([record(row) for row in range(12)])
    page = render_report(summary(12), *tables_of, Shown(), origin=ReportOrigin(by_class=by_class)).html
    shown = parse(page).visible
    assert "By class" in shown
    assert "none, or scored by an earlier version 1 0 0 0%" in shown
    assert "All classes 12 0 0 0%" in shown
    assert "By source" not in shown
    unknown = reading.read_report_rows(run(tmp_path / "data", tmp_path / "unknown"))
    assert unknown.by_class is None
