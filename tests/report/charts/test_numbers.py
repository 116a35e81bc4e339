import numpy as np
import pytest

from tests.support.report_data import record, tables
from volgrowth.report.charts.numbers import (
    BINS,
    count_bars,
    duplicate_groups,
    expected_by_size,
    level_rates,
    plain_numbers,
)

STANDARD = {"preset": "standard", "levels": [0.1, 0.2]}


def test_far_values_are_counted_not_dropped() -> None:
    values = np.append(np.random.default_rng(0).normal(size=1000), [1e6, -1e6, np.nan])
    counted = count_bars(values, None, values > 1e5)
    assert counted.beyond == 2
    assert counted.edges.size == BINS + 1
    assert counted.edges[-1] < 100
    assert counted.ordinary.sum() == 1001
    assert counted.notable.tolist() == [0] * (BINS - 1) + [1]


def test_expectations_are_medians_along_size() -> None:
    sizes = np.array([100.0] * 3 + [1000.0] * 3 + [np.nan])
    spread = expected_by_size(sizes, np.array([1.0, 2, 3, 7, 8, 9, 5]))
    assert spread is not None
    assert spread.at.tolist() == [100, 1000]
    assert spread.median.tolist() == [2, 8]
    assert expected_by_size(np.array([np.nan]), np.array([1.0])) is None


def test_rates_are_those_of_whole_pairs() -> None:
    values = {0: [1.0, 2.0], 1: [0.0, 0.5], 2: [3.0, 4.0], 3: None}
    scores, _ = tables([record(row, rates=some) for row, some in values.items()])
    found = level_rates(scores, [(0, 1), (2, 3)], STANDARD)
    assert found is not None
    assert found.pairs == 1
    assert (found.axis, found.flagged.at.tolist()) == ("noise level", [0.1, 0.2])
    assert found.flagged.median.tolist() == [1, 2]
    assert found.controls.median.tolist() == [0, 0.5]
    assert level_rates(scores, [(2, 3)], STANDARD) is None
    assert level_rates(scores, [], STANDARD) is None


@pytest.mark.parametrize(
    ("measure", "axis", "at"),
    [
        (
            {"preset": "volume", "num_levels": 2, "smallest_level": 0.01, "largest_level": 10.0},
            "noise level",
            [0.01, 10],
        ),
        ({"preset": "paper", "num_steps": 2}, "step", [1, 2]),
        ({"preset": "standard", "levels": [0.1, 0.2, 900.0]}, "step", [1, 2]),  # two of them fell together
    ],
)
def test_rates_know_where_they_were_measured(measure: dict[str, object], axis: str, at: list[float]) -> None:
    scores, _ = tables([record(row, rates=[1.0, 2.0]) for row in range(2)])
    found = level_rates(scores, [(0, 1)], measure)
    assert found is not None
    assert found.axis == axis
    assert found.flagged.at == pytest.approx(at)


def test_flags_are_counted_by_the_size_of_the_group_and_near_duplicates_once() -> None:
    """Rows 0 and 1 have the same pixels, 2 is their near duplicate; 3 is alone; 4 has no score."""
    same = {"cluster": 0, "copies": 3, "memorized": True}
    records = [record(0, identical=0, **same), record(1, identical=0, **same)]
    records += [record(2, identical=2, **same), record(3), record(4, status="undecodable")]
    _, findings = tables(records)
    found = duplicate_groups(findings)
    assert found["by_rows"] == [
        {"from": 1, "to": 1, "images": 1, "flagged": 0},
        {"from": 2, "to": 4, "images": 1, "flagged": 1},
    ]
    assert found["largest"] == [{"row": 0, "rows": 3, "images": 2, "flagged": 1}]


def test_numbers_are_plain() -> None:
    counted = count_bars(np.array([1.0, 2.0]), None, np.array([False, True]))
    made = plain_numbers({"a": counted, "b": None})
    assert made["b"] is None
    assert made["a"]["held_out"] is None
    assert sum(made["a"]["notable"]) == 1
    assert all(isinstance(value, float) for value in made["a"]["edges"])
