"""Why rows have no score: their reasons, the most frequent first.

The reason of a row is the column `error` of the scores. Reasons that differ only in numbers and quoted names, such as
sizes or the name of a file, count as one, which a row of it exemplifies.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.records import Status

MOST = 5
"""Reasons that are listed, at most."""
_PARTICULARS = r"""'[^']*'|"[^"]*"|\b0x[0-9a-fA-F]+|[0-9]+(?:[.,][0-9]+)*"""


class Failures:
    """The rows of an audit that have no score, counted by their reason, a part at a time."""

    def __init__(self) -> None:
        self.rows = 0
        self._kinds: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, scores: pa.Table) -> None:
        """Count the rows of a part, which follow those of earlier parts."""
        failed = scores.select(["row", "source", "status", "error"])
        failed = failed.filter(pc.not_equal(failed["status"], Status.OK.value))
        if not len(failed):
            return
        self.rows += len(failed)
        kinds = pc.replace_substring_regex(pc.fill_null(failed["error"], ""), _PARTICULARS, "#")
        groups = failed.append_column("kind", kinds).group_by(["status", "kind"])
        for each in groups.aggregate([("row", "count"), ("row", "min")]).sort_by("row_min").to_pylist():
            kind = each["status"], each["kind"]
            if kind not in self._kinds:
                index = pc.index(failed["row"], each["row_min"]).as_py()
                self._kinds[kind] = {"rows": 0, **failed.slice(index, 1).to_pylist()[0]}
            self._kinds[kind]["rows"] += each["row_count"]

    def counted(self) -> dict[str, Any]:
        """Return the counts.

        Returns:
            `rows`, how many have no score; `reasons`, at most `MOST` records with the number of `rows` of a reason, its
            `status`, and the first such row as an example: its `row`, `source` and `error`; and `other_rows`, those of
            rarer reasons.
        """
        reasons = sorted(self._kinds.values(), key=lambda reason: (-reason["rows"], reason["row"]))[:MOST]
        other = self.rows - sum(reason["rows"] for reason in reasons)
        return {"rows": self.rows, "reasons": reasons, "other_rows": other}


def count_failures(scores: pa.Table) -> dict[str, Any]:
    """Count the rows of a table of scores that have no score, as `Failures.counted` returns them."""
    failures = Failures()
    failures.add(scores)
    return failures.counted()
