"""Found images by where they come from: the file of each row, its folder where each image is a file, and its class."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.judging import Judgement

LISTED = 20
"""Groups that are listed, those with most found images first."""
MOST_GROUPS = 50_000
"""Groups that are counted apart; rows of further ones count as `OTHER`."""
OTHER = "all others"


class FoundCounts:
    """Distinct images, found ones and proven ones of each group of rows, counted a part at a time.

    Args:
        group_of: function from rows to the name of each one's group, a column of strings. A null is a group too, whose
            name is empty.
    """

    def __init__(self, group_of: Callable[[pa.Table], pa.ChunkedArray]) -> None:
        self.group_of = group_of
        self.counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("images", "found", "proven")}

    def add(self, part: Judgement) -> None:
        """Count the images that stand for their cluster in a part, whose findings have what `group_of` reads."""
        first = part.first
        names = pc.fill_null(self.group_of(part.findings), "").filter(pa.array(first))
        for kind, mask in (("images", None), ("found", part.found[first]), ("proven", part.proven[first])):
            some = names if mask is None else names.filter(pa.array(mask))
            for group in some.value_counts().to_pylist():
                name = group["values"]
                known = name in self.counts["images"] or len(self.counts["images"]) < MOST_GROUPS
                self.counts[kind][name if known else OTHER] += group["counts"]

    def groups(self) -> dict[str, Any]:
        """Return the groups with most found images (`listed`), their number in all (`groups`), and sums over `all`."""
        counts = self.counts
        names = sorted(counts["images"], key=lambda name: (-counts["found"][name], -counts["images"][name], name))
        listed = [{"name": name, **{kind: counts[kind][name] for kind in counts}} for name in names[:LISTED]]
        return {"listed": listed, "groups": len(names), "all": {kind: counts[kind].total() for kind in counts}}


_WITHIN = {"folder": r"(?s)(\A|/)[^/]*\z", "webdataset": r"(?s)((?i:\.tar)(\?[^#]*)?)#.*\z"}
"""What is cut off the source of a row, by the kind of its data set: the name of an image file, the key of a sample."""
_ROW = r"#[0-9]+\z"
"""The same of the other kinds, which are tables: the number of the row."""


def source_of(kind: str) -> Callable[[pa.Table], pa.ChunkedArray]:
    """Return the function that tells where each row of a data set comes from, by its column `source`.

    A row in a table or archive belongs to that file. An image that is a file by itself belongs to its folder, which in
    many data sets is its class. A source alone does not tell which of these it is, since names may hold `#`.

    Args:
        kind: the kind of the data set, as the manifest has it.
    """
    pattern, kept = _WITHIN.get(kind, _ROW), r"\1" if kind == "webdataset" else ""

    def of(rows: pa.Table) -> pa.ChunkedArray:
        return pc.replace_substring_regex(pc.fill_null(rows["source"], ""), pattern, kept)

    return of


def class_of(rows: pa.Table) -> pa.ChunkedArray:
    """Return the class of each row, by its column `class`: null for a row without one."""
    return rows["class"]
