"""The benchmark of faults: what it counts, and a few faults done for real; other tests do each fault of its list."""

import pyarrow as pa
import pytest

from jobs.benchmark.__main__ import main
from jobs.benchmark.faults.all_faults import FAULTS, inject_faults
from jobs.benchmark.faults.small_audit import Difference, FaultLine, compare_rows
from jobs.experiments import publish_outcome
from jobs.pages import DOCS
from tests.support.measured_pages import headings

nan = float("nan")


def scores(rows: list[int], growth: list[float | None]) -> pa.Table:
    return pa.table({"row": rows, "growth": pa.array(growth, pa.float64()), "rates": [[value] for value in growth]})


@pytest.mark.parametrize(
    ("rows", "growth", "expected"),
    [
        ([0, 1, 2, 3], [0.1, nan, None, 0.0], Difference()),
        ([3, 1, 0, 2], [0.0, nan, 0.1, None], Difference()),
        ([0, 1, 3], [0.1, nan, 0.0], Difference(lost=1)),
        ([0, 1, 2, 3, 3, 3], [0.1, nan, None, 0.0, 0.0, 0.0], Difference(doubled=2)),
        ([0, 1, 2, 3], [0.1 + 2e-17, nan, None, -0.0], Difference(other=2)),
        ([0, 1, 2, 3, 4], [nan, nan, 0.0, 0.0, 0.0], Difference(other=3)),
        ([], [], Difference(lost=4)),
    ],
)
def test_rows_are_compared_to_the_bit(rows, growth, expected):
    undisturbed = scores([0, 1, 2, 3], [0.1, nan, None, 0.0])
    assert compare_rows(scores(rows, growth), undisturbed) == expected


def test_a_row_that_is_not_compared_has_to_be_there():
    undisturbed = scores([0, 1], [0.1, 0.2])
    assert compare_rows(scores([0, 1], [0.1, 0.3]), undisturbed, besides=(1,)) == Difference()
    assert compare_rows(scores([0], [0.1]), undisturbed, besides=(1,)) == Difference(lost=1)


def test_a_try_is_survived_only_if_it_ended_well_and_nothing_differs():
    line = FaultLine("a fault", "done")
    line.count(True)
    line.count(False, said="it ended with 1")
    line.count(True, Difference(lost=2, other=1))
    assert (line.tried, line.survived, line.lost, line.doubled, line.other) == (3, 1, 2, 0, 1)
    assert len(line.failures) == 2


def test_faults_done_for_real_are_survived_and_fill_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLGROWTH_FAULTS_FOLDER", "")  # restored afterwards
    for only, tried in (["bits"], [101]), (["json-bits"], [101, 40]):
        outcome = inject_faults(tmp_path, only, quick=True)
        publish_outcome("engine", "faults", outcome, tmp_path, 1.0)
        lines = outcome.tables["table"]
        assert [line["tried"] for line in lines] == tried
    for line in lines:
        assert line["survived"] == line["tried"]
        assert [line["rows lost"], line["rows doubled"], line["rows with other numbers"]] == [0, 0, 0]
    assert outcome.sentences == [
        "Of 141 tries 141 were survived: 0 rows were lost, 0 doubled, and 0 had other numbers without a word."
    ]
    written, committed = ((folder / "engine.md").read_text() for folder in (tmp_path, DOCS))
    assert headings(written, "faults-table") == headings(committed, "faults-table")


def test_every_fault_has_a_name_that_the_command_takes(capsys, tmp_path):
    assert main(["faults", "--only", "bits", "flood", "--output", str(tmp_path)]) == 2
    assert f"flood is no fault: expected some of {', '.join(FAULTS)}" in capsys.readouterr().err
