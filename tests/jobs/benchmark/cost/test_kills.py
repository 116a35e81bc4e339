"""The soak with kills: its counts and its table; the audit with kills itself is one of the engine's fault tests."""

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmark.cost.kills import Driver, count_rows
from jobs.pages import DOCS
from tests.support.measured_pages import headings


def test_rows_that_are_lost_or_doubled_are_counted(tmp_path):
    (tmp_path / "scores").mkdir()
    for part, rows in enumerate(([0, 1, 2], [4, 4, 2], [9])):
        pq.write_table(pa.table({"row": rows}), tmp_path / f"scores/part-{part}.parquet")
    assert count_rows(tmp_path, 5) == (1, 3)
    assert count_rows(tmp_path, 10) == (5, 2)


def test_a_driver_is_a_line_with_its_own_slope():
    driver = Driver(1000, [(1000 + done, 300 + done / 1e5) for done in range(0, 10_000, 100)], 1, True)
    row = driver.row()
    assert (row["rows from"], row["to"], row["workers killed"], row["end"]) == (1000, 10_900, 1, "killed")
    assert row["grows, MiB a million rows"].startswith("+10.0")
    short = Driver(0, [(0, 250.0)]).row()
    assert (short["driver, MiB"], short["grows, MiB a million rows"]) == ("250 to 250", None)
    assert headings((DOCS / "engine.md").read_text(), "kills-table") == list(row)
