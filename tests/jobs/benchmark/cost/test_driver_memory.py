"""The driver's memory over shards that cost nothing: a few of them, through the real ledger and Ray."""

import pytest

from jobs.benchmark.cost import driver_memory
from jobs.pages import DOCS
from tests.support.measured_pages import headings


@pytest.mark.ray
def test_idle_shards_are_handed_out_and_the_memory_is_sampled(ray_session, monkeypatch, tmp_path):
    monkeypatch.setattr(driver_memory, "SAMPLE_SHARDS", 2)
    outcome = driver_memory.measure_driver(tmp_path, 12)
    (row,) = outcome.tables["table"]
    assert (row["shards"], row["rows"]) == (12, 24_000)
    assert row["at most, MiB"] > 10
    assert headings((DOCS / "engine.md").read_text(), "driver-table") == list(row)
