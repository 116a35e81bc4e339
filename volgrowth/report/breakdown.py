"""Found images by where they come from: the file of each row, its folder where each image is a file, and its class."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.judging import Judgement

LISTED = 20
"""Groups that are listed, those with most found images first."""
MOST_GROUPS = 50_000
"""Groups that are counted apart; rows of further ones count as `OTHER`."""
OTHER = "other files"


class SourceCounts:
    """Distinct images, found ones and proven ones of each source file, counted a part at a time.

    A row in a table or archive belongs to that file. An image that is a file by itself belongs to its folder, which in
    many data sets is its class.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("images", "found", "proven")}

    def add(self, part: Judgement) -> None:
        """Count the images that stand for their cluster in a part, whose findings have the column `source`."""
        first = part.first
        sources = _files(part.findings["source"]).filter(pa.array(first))
        for kind, mask in (("images", None), ("found", part.found[first]), ("proven", part.proven[first])):
            some = sources if mask is None else sources.filter(pa.array(mask))
            for group in some.value_counts().to_pylist():
                name = group["values"]
                known = name in self._counts["images"] or len(self._counts["images"]) < MOST_GROUPS
                self._counts[kind][name if known else OTHER] += group["counts"]

    def groups(self) -> dict[str, Any]:
        """Return the groups with most found images (`listed`), their number in all (`groups`), and sums over `all`."""
        counts = self._counts
        names = sorted(counts["images"], key=lambda name: (-counts["found"][name], -counts["images"][name], name))
        listed = [{"name": name, **{kind: counts[kind][name] for kind in counts}} for name in names[:LISTED]]
        return {"listed": listed, "groups": len(names), "all": {kind: counts[kind].total() for kind in counts}}


def _files(sources: pa.ChunkedArray) -> pa.Array:
    """Return the file of each source: what stands before the row in it, or the folder of an image that is a file."""
    some = pc.fill_null(sources, "").combine_chunks()
    files = pc.replace_substring_regex(some, r"(?s)\A(.*)#[^#]*\z", r"\1")
    folders = pc.replace_substring_regex(some, r"(?s)(\A|/)[^/]*\z", "")
    return pc.if_else(pc.equal(files, some), folders, files)


def class_groups(classes: Mapping[int, Any], found: Mapping[int, bool]) -> list[dict[str, Any]]:
    """Count the found images on the page by class.

    Args:
        classes: class of each row whose picture was read.
        found: rows of the cards that are flagged or proven, and whether they are proven.
    """
    names = {row: str(classes[row]) for row in found if row in classes}
    all_, proven = Counter(names.values()), Counter(name for row, name in names.items() if found[row])
    return [{"name": name, "found": count, "proven": proven[name]} for name, count in all_.most_common(LISTED)]
