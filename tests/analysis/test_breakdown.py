from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from volgrowth.analysis import breakdown
from volgrowth.analysis.breakdown import OTHER, FoundCounts, class_of, source_of


def part(names: list[str | None], found: list[int], proven: list[int], column: str = "source") -> Any:
    """Rows that stand for their images, all but the last."""
    count = len(names)
    masks = {name: np.isin(np.arange(count), rows) for name, rows in (("found", found), ("proven", proven))}
    table = pa.table({column: pa.chunked_array([pa.array(names, pa.string())])})
    return SimpleNamespace(findings=table, first=np.arange(count) < count - 1, **masks)


def test_images_are_counted_by_file_or_by_folder_where_each_is_a_file() -> None:
    counts = FoundCounts(source_of)
    counts.add(part(["a.parquet#0", "a.parquet#1", "cats/1.png", "alone.png", None, "a.parquet#2"], [0, 2, 5], [0]))
    counts.add(part(["cats/2.png", "cats/x#1.png", "b#c.tar#7", "last"], [0, 2], []))
    groups = counts.groups()
    listed = {group.pop("name"): tuple(group.values()) for group in groups["listed"]}
    assert listed == {
        "a.parquet": (2, 1, 1),
        "cats": (2, 2, 0),
        "": (2, 0, 0),
        "cats/x": (1, 0, 0),
        "b#c.tar": (1, 1, 0),
    }
    assert groups["groups"] == 5
    assert groups["all"] == {"images": 8, "found": 4, "proven": 1}
    assert groups["listed"][0] == {"images": 2, "found": 2, "proven": 0}


def test_files_beyond_the_most_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakdown, "MOST_GROUPS", 2)
    counts = FoundCounts(source_of)
    counts.add(part([f"{name}#0" for name in "abcde"], [3], []))
    assert {group["name"]: group["images"] for group in counts.groups()["listed"]} == {"a": 1, "b": 1, OTHER: 2}
    assert counts.groups()["all"] == {"images": 4, "found": 1, "proven": 0}


def test_images_are_counted_by_class_and_those_without_one_together() -> None:
    counts = FoundCounts(class_of)
    counts.add(part(["7", "7", "8", None, "7"], [0, 1, 4], [0], "class"))
    counts.add(part([None, "8", "8"], [0, 1], [1], "class"))
    groups = counts.groups()
    listed = [tuple(group.values()) for group in groups["listed"]]
    assert listed == [("7", 2, 2, 1), ("", 2, 1, 0), ("8", 2, 1, 1)]
    assert groups["all"] == {"images": 6, "found": 4, "proven": 2}
