"""Lists that the report's page gives: a line for each image that was decided, instead of one for each row.

A line decides rows by its `scope`: all rows of its cluster, its own `row` alone, or the `others` of its cluster. Rows
that no line decides are kept. `listed` says in each line how many lines there are, so that a file that was cut is seen.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.policy import CURATION, Action
from volgrowth.audit.output.result import Audit
from volgrowth.errors import OutputError, UsageError

SCOPE, LISTED = "scope", "listed"
SCOPES = ("cluster", "row", "others")
_AGAIN = "download it from the report again"


class PageList:
    """A list of decisions, checked.

    Args:
        audit: the finished audit that the list is of.
        file: path or URL of the list, for sentences.
        lines: the lines of the file, with the columns that `curation.lists` needs, `scope`, `listed` and `cluster`.

    Raises:
        OutputError: lines are missing.
        UsageError: a line makes no sense.
    """

    def __init__(self, audit: Audit, file: str, lines: pa.Table):
        self.audit, self.file = audit, file
        if missing := [name for name in (SCOPE, LISTED, "cluster", "reason") if name not in lines.column_names]:
            raise OutputError(f"list {file} has no column {missing[0]}: put it back, or {_AGAIN}")
        self.lines = lines.to_pylist()
        announced = {line[LISTED] for line in self.lines}
        if announced != {len(self.lines)}:
            says = " or ".join(map(str, sorted(announced, key=str)))
            raise OutputError(
                f"list {file} has {len(self.lines)} lines, and its column {LISTED} says {says}: {_AGAIN}; to keep an "
                f"image, set its action to keep instead of deleting its line"
            )
        self._check_lines()
        self._by_cluster = {line["cluster"]: line for line in self.lines}

    def tables(self) -> Iterator[pa.Table]:
        """Yield an entry for every row of the audit, in row order, with the columns of `CURATION`.

        Raises:
            UsageError: a line's row, cluster and image id do not belong together.
        """
        names = [
            name for name in CURATION.names if name not in ("row", "source", "action", "weight", "reason", "audit")
        ]
        found = set[int]()
        clusters = pa.array(self._by_cluster, pa.int64())
        for part in self.audit.parts(findings=names, scores=["source"]):
            decided = np.flatnonzero(pc.is_in(part["cluster"], value_set=clusters).to_numpy())
            action, reason = np.full(len(part), Action.KEEP.value, object), np.full(len(part), "", object)
            weight = np.ones(len(part))
            some = part.take(decided).select(["row", "cluster", "image_id"]).to_pylist()
            for place, record in zip(decided.tolist(), some, strict=True):
                line = self._by_cluster[record["cluster"]]
                own = record["row"] == line["row"]
                if own:
                    self._check_id(line, record["image_id"])
                    found.add(line["row"])
                if line[SCOPE] == "cluster" or own == (line[SCOPE] == "row"):
                    action[place], weight[place], reason[place] = line["action"], line["weight"], line["reason"] or ""
            made = {
                "action": pa.array(action, pa.string()),
                "weight": pa.array(weight),
                "reason": pa.array(reason, pa.string()),
                "audit": pa.repeat(pa.scalar(self.lines[0]["audit"]), len(part)),
            }
            yield pa.table([made[name] if name in made else part[name] for name in CURATION.names], CURATION)
        for line in self.lines:
            if line["row"] not in found:
                self._refuse(line, f"it is no row of cluster {line['cluster']}")

    def _check_lines(self) -> None:
        for line in self.lines:
            if line[SCOPE] not in SCOPES:
                self._refuse(line, f"scope is {line[SCOPE]!r}: expected cluster, row or others")
            if line["action"] not in ("keep", "drop", "review"):
                self._refuse(line, f"action is {line['action']!r}: expected keep, drop or review")
            if line["action"] != "drop" and line["weight"] != 1:
                self._refuse(line, f"action is {line['action']} and weight {line['weight']}: expected 1")
            line["weight"] = 0.0 if line["action"] == "drop" else 1.0
        twice = [cluster for cluster, count in Counter(line["cluster"] for line in self.lines).items() if count > 1]
        if twice:
            raise UsageError(f"list {self.file} decides cluster {twice[0]} twice: expected one line for each cluster")

    def _check_id(self, line: dict[str, Any], known: str) -> None:
        if line["image_id"] and line["image_id"] != known:
            self._refuse(line, f"image_id is {line['image_id']!r} and was {known!r}: put it back")

    def _refuse(self, line: dict[str, Any], problem: str) -> None:
        raise UsageError(f"list {self.file}, row {line['row']}: {problem}")
