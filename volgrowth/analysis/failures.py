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


def count_failures(scores: pa.Table) -> dict[str, Any]:
    """Count the rows of an audit that have no score by their reason.

    Args:
        scores: the table of scores.

    Returns:
        `rows`, how many have none; `reasons`, at most `MOST` records with the number of `rows` of a reason, its
        `status`, and the first such row as an example: its `row`, `source` and `error`; and `other_rows`, those of
        rarer reasons.
    """
    failed = scores.select(["row", "source", "status", "error"])
    failed = failed.filter(pc.not_equal(failed["status"], Status.OK.value))
    kinds = pc.replace_substring_regex(pc.fill_null(failed["error"], ""), _PARTICULARS, "#")
    groups = failed.append_column("kind", kinds).group_by(["status", "kind"])
    counted = groups.aggregate([("row", "count"), ("row", "min")])
    counted = counted.sort_by([("row_count", "descending"), ("row_min", "ascending")]).slice(0, MOST)
    reasons = []
    for each in counted.to_pylist():
        index = pc.index(failed["row"], each["row_min"]).as_py()
        example = failed.slice(index, 1).to_pylist()[0]
        reasons.append({"rows": each["row_count"], **example})
    return {
        "rows": len(failed),
        "reasons": reasons,
        "other_rows": len(failed) - sum(reason["rows"] for reason in reasons),
    }
