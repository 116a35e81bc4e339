"""A page that is made from some rows of very many shows the same images and counts as one that is made from all."""

import numpy as np
import pyarrow as pa
import pytest

from tests.audit.output.test_parts import finished  # noqa: F401
from volgrowth.audit.output.result import Audit
from volgrowth.report import choose_exhibits, reading, render_report
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
