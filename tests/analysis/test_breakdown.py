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
    tables, folders = FoundCounts(source_of("parquet")), FoundCounts(source_of("folder"))
    tables.add(part(["a.parquet#0", "a.parquet#1", None, "a.parquet#2"], [0, 2, 3], [0]))
    tables.add(part(["a.parquet#3", "b.parquet#0", "last"], [0], []))
    folders.add(part(["cats/1.png", "alone.png", "cats/2.png", "last"], [0, 2], []))
    groups = tables.groups()
    assert groups["groups"] == 3
    assert groups["all"] == {"images": 5, "found": 3, "proven": 1}
    assert [tuple(group.values()) for group in groups["listed"]] == [
        ("a.parquet", 3, 2, 1),
        ("", 1, 1, 0),
        ("b.parquet", 1, 0, 0),
    ]
    assert [tuple(group.values()) for group in folders.groups()["listed"]] == [("cats", 2, 2, 0), ("", 1, 0, 0)]


@pytest.mark.parametrize(
    ("kind", "of"),
    [
        ("folder", {"a#1/x.png": "a#1", "b/a#2/y.png": "b/a#2", "c/z#1.png": "c", "z#3.png": ""}),
        ("parquet", {"t.parquet#3": "t.parquet", "s#1/t#1.pq#12": "s#1/t#1.pq", "a.tar#1/t.pq#0": "a.tar#1/t.pq"}),
        ("webdataset", {"b#c.tar#7": "b#c.tar", "b#c/D.TAR#k#1/2": "b#c/D.TAR", "e.tar?f=1#\n": "e.tar?f=1"}),
        ("arrow", {"train#0": "train"}),
        ("hub", {"train#10": "train"}),
    ],
)  # fmt: skip
def test_names_with_a_number_sign_are_not_taken_for_rows(kind: str, of: dict[str, str]) -> None:
    assert source_of(kind)(pa.table({"source": pa.chunked_array([list(of)])})).to_pylist() == [*of.values()]


def test_files_beyond_the_most_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakdown, "MOST_GROUPS", 2)
    counts = FoundCounts(source_of("parquet"))
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
