"""The rows of an audit that its page is made from: all of them, or of very many those that it shows and a sample.

Of very many rows the page shows the pictures of most evidence and those that are flagged, with their groups, and
examples of rows without a score. Histograms and the table of groups count all pictures all the same, a shard's rows at
a time; dots of the scatter plot, expected growth, medians, controls and the share of images below a card are those of
`SAMPLED` pictures, which are drawn at random, the same ones each time.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_floats, as_mask
from volgrowth.analysis.breakdown import FoundCounts, class_of, source_of
from volgrowth.analysis.judging import JudgedAudit, Judgement
from volgrowth.audit.output.result import Audit
from volgrowth.records import FINDINGS, SCORES, Status
from volgrowth.report.charts.numbers import BarCounts, GroupCounts, bar_edges

WHOLE_ROWS = 200_000
"""Rows of an audit up to which the page is made from all of them."""
SAMPLED = 50_000
"""Pictures of a larger one that are drawn at random."""
GALLERY = 60
"""Pictures in the gallery, whether they are found or not."""
MOST_CARDS = 5000
"""Found pictures up to which all are shown."""
MEMBERS = 1000
"""Rows of a group that are read, at most."""
EXAMPLES = 20
"""Rows that could not be scored that are listed."""
VALUES = ("growth", "excess_growth", "evidence")


@dataclass
class WholeValues:
    """A column of all pictures: bars of its histogram, number, range, and the least value of a flagged picture."""

    bars: BarCounts
    count: int = 0
    low: float = np.inf
    high: float = -np.inf
    least_flagged: float | None = None

    def add(self, values: np.ndarray, notable: np.ndarray, flagged: np.ndarray) -> None:
        """Count pictures, (n,) each."""
        self.bars.add(values, notable)
        finite = np.isfinite(values)
        self.count += int(finite.sum())
        self.low, self.high = float(values[finite].min(initial=self.low)), float(values[finite].max(initial=self.high))
        if (finite & flagged).any():
            least = float(values[finite & flagged].min())
            self.least_flagged = least if self.least_flagged is None else min(least, self.least_flagged)


@dataclass
class WholeAudit:
    """Numbers of all pictures of an audit, of which the page is given only some.

    Attributes:
        values: the columns that have histograms, by name.
        duplicates: as `duplicate_groups` returns them.
        flagged: number of flagged pictures.
        ordinary: number of dots of the scatter plot that are neither flagged nor reproduced.
        copies: number of rows with the same pixels, by the smallest of these rows, for the images of the gallery.
    """

    values: dict[str, WholeValues]
    duplicates: dict[str, Any] = field(default_factory=dict)
    flagged: int = 0
    ordinary: int = 0
    copies: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportRows:
    """What a page is made from: rows of the tables, in order, the rows of the gallery, and numbers of all rows.

    `whole` is None if the tables are those of all rows. `by_source` and `by_class` count all rows
    (`breakdown.FoundCounts`); `by_class` is None without a class column.
    """

    scores: pa.Table
    findings: pa.Table
    gallery: list[int]
    whole: WholeAudit | None = None
    by_source: dict[str, Any] | None = None
    by_class: dict[str, Any] | None = None


def read_report_rows(audit: Audit) -> ReportRows:
    """Read what the page of a finished audit is made from."""
    judged = JudgedAudit(audit, audit.summary.get("verification"))
    first = _FirstLook(judged)
    if audit.frozen.data.rows <= WHOLE_ROWS:
        return ReportRows(audit.scores, audit.findings, first.gallery(), None, *first.origins())
    return _SecondLook(judged, first).rows()


class _FirstLook:
    """What the first reading of all rows finds: which rows the page shows, and a sample of pictures."""

    def __init__(self, judged: JudgedAudit):
        frozen = judged.audit.frozen
        self.groups, self.sample = GroupCounts(), _Sample()
        self.sources = FoundCounts(source_of(frozen.data.kind))
        self.classes = FoundCounts(class_of) if frozen.config["class_column"] else None
        self._by = {name: _Ranked() for name in dict.fromkeys((judged.pictures.ranking, "growth"))}
        self._failed: dict[str, list[int]] = defaultdict(list)
        wanted = ("growth", "excess_growth", "evidence", "copies", "memorized")
        for part in judged.parts(findings=wanted, scores=["status", "source", *(["class"] if self.classes else [])]):
            self.sources.add(part)
            if self.classes:
                self.classes.add(part)
            self.groups.add(part.findings, part.first)
            self.sample.add(part)
            for name, ranked in self._by.items():
                ranked.add(part, as_floats(part.findings[name]))
            for status in pc.unique(part.findings["status"]).to_pylist():
                if status != Status.OK.value and len(self._failed[status]) < EXAMPLES:
                    some = part.findings.filter(pc.equal(part.findings["status"], status))
                    self._failed[status] += some["row"][:EXAMPLES].to_pylist()

    def origins(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the counts by source and by class."""
        return self.sources.groups(), self.classes.groups() if self.classes else None

    def gallery(self) -> list[int]:
        """Return the row that stands for each picture of the gallery, by evidence, or by growth without calibration.

        Of pictures beyond the highest ones only those are shown that are found, scored or not.
        """
        ranked = list(self._by.values())
        return (ranked[0] if ranked[0].any_score else ranked[-1]).rows()

    @property
    def rows(self) -> np.ndarray:
        """Rows that the page needs, without those of groups."""
        failed = [row for rows in self._failed.values() for row in rows]
        return np.unique(
            np.concatenate([self.sample.row, np.array([*self.gallery(), *failed, *self.groups.largest], int)])
        )


class _Ranked:
    """Pictures in the order of a score: the highest ones, and the highest of the found ones."""

    def __init__(self) -> None:
        self.any_score = False
        self._highest, self._found = (_Highest(most) for most in (GALLERY, MOST_CARDS))

    def add(self, part: Judgement, score: np.ndarray) -> None:
        finite, row = np.isfinite(score), part.findings["row"].to_numpy()
        self.any_score = self.any_score or bool(finite.any())
        shown = part.first & (finite | part.found)
        for kept, some in ((self._highest, shown), (self._found, shown & part.found)):
            kept.add(row[some], np.where(finite, score, -np.inf)[some])

    def rows(self) -> list[int]:
        score = dict(zip(self._highest.row.tolist(), self._highest.score.tolist(), strict=True))
        score |= dict(zip(self._found.row.tolist(), self._found.score.tolist(), strict=True))
        return sorted(score, key=lambda row: (-score[row], row))


class _Highest:
    """The rows of highest score, so many of them; of equals the first."""

    def __init__(self, most: int):
        self.most, self.row, self.score = most, np.empty(0, np.int64), np.empty(0)

    def add(self, row: np.ndarray, score: np.ndarray) -> None:
        row, score = np.concatenate([self.row, row]), np.concatenate([self.score, score])
        order = np.argsort(-score, kind="stable")[: self.most]
        self.row, self.score = row[order], score[order]


class _Sample:
    """A random sample of pictures, by a hash of their rows, with the values that have histograms."""

    def __init__(self) -> None:
        self._kept = _Highest(SAMPLED)
        self._values = {name: np.empty(0) for name in VALUES}

    @property
    def row(self) -> np.ndarray:
        return self._kept.row

    def add(self, part: Judgement) -> None:
        row = part.findings["row"].to_numpy()[part.first]
        before = self.row
        self._kept.add(row, _mixed(row))
        at = np.concatenate([before, row])
        order = np.argsort(at, kind="stable")
        chosen = order[np.searchsorted(at[order], self.row)]
        for name in VALUES:
            values = np.concatenate([self._values[name], as_floats(part.findings[name])[part.first]])
            self._values[name] = values[chosen]

    def values(self, name: str) -> np.ndarray:
        return self._values[name][np.isfinite(self._values[name])]


def _mixed(row: np.ndarray) -> np.ndarray:
    """Return a random number in [0, 1) for each row (n,), always the same one (splitmix64)."""
    mixed = (row.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


class _SecondLook:
    """What the second reading finds: the rows themselves, and counts of all pictures."""

    def __init__(self, judged: JudgedAudit, first: _FirstLook):
        self.judged, self.first = judged, first
        held = judged.audit.holdout_findings
        self.truth = judged.audit.summary.get("verification")
        values = {}
        for name in VALUES:
            heldout = None if held is None else held_values(held, name)
            values[name] = WholeValues(BarCounts(bar_edges(first.sample.values(name), heldout)))
        self.whole = WholeAudit(values)

    def rows(self) -> ReportRows:
        """Read all rows, count all pictures, and keep the rows that the page shows."""
        gallery, rows = self.first.gallery(), self.first.rows
        clusters, members = self._clusters(gallery), defaultdict[int, int](int)
        kept: list[pa.Table] = []
        for part in self.judged.parts(findings=FINDINGS.names, scores=SCORES.names):
            table = part.findings
            self._count(part)
            self._count_copies(table, clusters)
            self.first.groups.count_images(table)
            wanted = np.isin(table["row"].to_numpy(), rows) | _some_members(table, clusters, members)
            kept.append(table.filter(pa.array(wanted)))
        self.whole.duplicates = self.first.groups.numbers()
        table = pa.concat_tables(kept).combine_chunks()
        origins = self.first.origins()
        return ReportRows(table.select(SCORES.names), table.select(FINDINGS.names), gallery, self.whole, *origins)

    def _clusters(self, gallery: list[int]) -> np.ndarray:
        """Return the clusters of the rows of the gallery."""
        found = [
            part.findings["cluster"].to_numpy()[np.isin(part.findings["row"].to_numpy(), gallery)]
            for part in self.judged.parts()
        ]
        return np.unique(np.concatenate(found))

    def _count(self, part: Judgement) -> None:
        rows, first = part.findings, part.first
        flagged = as_mask(rows["memorized"])[first]
        notable = part.proven[first] if self.truth else flagged
        for name, values in self.whole.values.items():
            values.add(as_floats(rows[name])[first], notable, flagged)
        self.whole.flagged += int(flagged.sum())
        dots = np.isfinite(as_floats(rows["growth"])[first]) & (as_floats(rows["png_bytes"])[first] > 0)
        self.whole.ordinary += int((dots & ~notable & ~flagged).sum())

    def _count_copies(self, table: pa.Table, clusters: np.ndarray) -> None:
        identical = table["identical"].to_numpy()[np.isin(table["cluster"].to_numpy(), clusters)]
        for name, count in zip(*np.unique(identical, return_counts=True), strict=True):
            self.whole.copies[int(name)] = self.whole.copies.get(int(name), 0) + int(count)


def _some_members(table: pa.Table, clusters: np.ndarray, members: dict[int, int]) -> np.ndarray:
    """Return a mask of the rows of some clusters, of each the first ones; `members` counts those of earlier parts."""
    cluster = table["cluster"].to_numpy()
    wanted = np.isin(cluster, clusters)
    for at in np.flatnonzero(wanted).tolist():
        members[int(cluster[at])] += 1
        wanted[at] = members[int(cluster[at])] <= MEMBERS
    return wanted


def held_values(holdout: pa.Table, column: str) -> np.ndarray:
    """Return the finite values of a column of the held-out images; none if an older version wrote no such column."""
    values = as_floats(holdout[column]) if column in holdout.column_names else np.empty(0)
    return values[np.isfinite(values)]
