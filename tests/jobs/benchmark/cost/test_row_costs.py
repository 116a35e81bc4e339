from jobs.benchmark.cost import row_costs
from jobs.pages import DOCS
from tests.support.measured_pages import headings


def test_costs_of_a_row_are_those_of_the_page(monkeypatch):
    monkeypatch.setattr(row_costs, "ROUNDS", 1)
    monkeypatch.setattr(row_costs, "ROUND_SECONDS", 0)
    rows = list(row_costs.row_costs())
    assert [row["image"] for row in rows] == ["PNG of 32 x 32", "JPEG of 512 x 512"]
    assert all(row["whole row, us"] == row["decoding, us"] + row["features, us"] > 0 for row in rows)
    assert headings((DOCS / "performance.md").read_text(), "rows-costs") == list(rows[0])
