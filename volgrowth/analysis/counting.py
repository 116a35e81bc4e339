"""Numbers of the rows and images of an audit, counted a shard's rows at a time."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_floats, as_mask
from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.calibration.false_bounds import count_above
from volgrowth.analysis.conditions import CONDITIONS_TOLD, count_without
from volgrowth.analysis.failures import Failures
from volgrowth.analysis.judging import JudgedAudit, Judgement, count_above_pictures

_SCORES = ("source", "status", "error", "growth", "marks", "nfe", *CONDITIONS_TOLD.values())
_FINDINGS = (
    *("evidence", "outside_range", "copies", "q_value_by", "precursor", "trials", "identical", "p_value_conformal"),
    "excess_growth",
)


@dataclass
class Counts:
    """Numbers of an audit. Pictures, and what is said of first rows, are as in `analysis.judging`.

    Attributes:
        rows: number of rows.
        statuses, marks: number of rows of each status, and with each mark.
        failures: the rows without a score by their reason.
        evaluations: network evaluations spent on all rows.
        evaluated, measured: rows with a number of evaluations, and with growth.
        outside_range: rows outside the calibration's range.
        beyond, farthest: rows with more evidence than the held-out images, and the most evidence of all.
        pictures, tested, judged: number of pictures, and of those whose first row is tested, and judged.
        trials: number of trials of the judged pictures.
        flagged: number of flagged pictures.
        flagged_copied, flagged_by: of these those with copies, and those flagged under any dependence.
        flagged_rows: number of rows of flagged pictures.
        precursors: number of pictures with a low loss.
        clusters, clustered_rows, largest: groups of more than one row, their rows, and the rows of the largest group.
        identical_rows: rows with the same pixels as another row.
        unconditional: scored rows without a condition, in an audit by classes or captions.
        unsurpassed: number of pictures that no held-out image surpasses.
        above: for the pictures of most evidence, in this order, the number of held-out images above them.
    """

    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    failures: Failures = field(default_factory=Failures)
    evaluations: int = 0
    evaluated: int = 0
    measured: int = 0
    outside_range: int = 0
    beyond: int = 0
    farthest: float = -np.inf
    pictures: int = 0
    tested: int = 0
    judged: int = 0
    trials: int = 0
    flagged: int = 0
    flagged_copied: int = 0
    flagged_by: int = 0
    flagged_rows: int = 0
    precursors: int = 0
    clusters: int = 0
    clustered_rows: int = 0
    largest: int = 1
    identical_rows: int = 0
    unconditional: int = 0
    unsurpassed: int = 0
    above: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def count_audit(audit: JudgedAudit, held: int | None, farthest: float, highest: int) -> Counts:
    """Count an audit.

    Args:
        audit: judged at the rate of the summary.
        held: number of held-out images that calibrated; None if none did.
        farthest: the most evidence of these; minus infinity without any.
        highest: number of pictures of most evidence for which `Counts.above` is made.
    """
    counts, copied = Counts(farthest=farthest), _RowSet(audit.audit.frozen.data.rows)
    top, unsurpassed = _Top(highest), [np.empty(0, np.int64)]
    config = audit.audit.frozen.config
    for part in audit.parts(findings=_FINDINGS, scores=_SCORES):
        counts.unconditional += count_without(part.findings, config)
        _count_rows(counts, part.findings, farthest)
        _count_pictures(counts, part)
        _count_copies(counts, part.findings, copied)
        if held is not None:
            unsurpassed.append(_unsurpassed(part, held))
            top.add(part, audit.pictures.ranking)
    counts.identical_rows += copied.count()
    if held is not None:
        counts.unsurpassed = len(np.unique(np.concatenate(unsurpassed)))
        chosen = np.sort(top.cluster)
        above = count_above_pictures(audit.parts(findings=["p_value_conformal"]), held, chosen)
        counts.above = above[np.searchsorted(chosen, top.cluster)]
    return counts


def _count_rows(counts: Counts, rows: pa.Table, farthest: float) -> None:
    counts.rows += len(rows)
    counts.statuses.update(_value_counts(rows["status"]))
    counts.marks.update(_value_counts(pc.list_flatten(rows["marks"])))
    counts.failures.add(rows)
    counts.evaluations += _sum(rows["nfe"])
    counts.evaluated += len(rows) - rows["nfe"].null_count
    counts.measured += len(rows) - rows["growth"].null_count
    counts.outside_range += _sum(rows["outside_range"])
    evidence = rows["evidence"].drop_null().to_numpy()
    counts.beyond += int((evidence > farthest).sum())
    counts.farthest = float(evidence.max(initial=counts.farthest))


def _count_pictures(counts: Counts, part: Judgement) -> None:
    rows, flagged, judged = part.findings, part.flagged & part.first, part.judged & part.first
    counts.pictures += int(part.first.sum())
    counts.tested += part.images(part.tested)
    counts.judged += int(judged.sum())
    counts.trials += int(as_floats(rows["trials"])[judged].sum())
    counts.flagged += int(flagged.sum())
    counts.flagged_copied += int((as_floats(rows["copies"])[flagged] > 1).sum())
    counts.flagged_by += int((as_floats(rows["q_value_by"])[flagged] <= FDR).sum())
    counts.flagged_rows += int(part.flagged.sum())
    counts.precursors += part.images(part.tested & as_mask(rows["precursor"]))


def _count_copies(counts: Counts, rows: pa.Table, copied: "_RowSet") -> None:
    row, copies, identical = (rows[name].to_numpy() for name in ("row", "copies", "identical"))
    counts.clustered_rows += int((copies > 1).sum())
    counts.clusters += int(((copies > 1) & (rows["cluster"].to_numpy() == row)).sum())
    counts.largest = int(copies.max(initial=counts.largest))
    counts.identical_rows += int((identical != row).sum())
    copied.add(identical[identical != row])  # and each of these rows itself


def _unsurpassed(part: Judgement, held: int) -> np.ndarray:
    """Return the clusters of the judged rows that no held-out image surpasses."""
    rows = np.flatnonzero(part.judged)
    above = count_above(as_floats(part.findings["p_value_conformal"])[rows], held)
    return np.unique(part.findings["cluster"].to_numpy()[rows[above == 0]])


class _Top:
    """The judged pictures of most evidence, by their clusters, the highest first; of equals the first row's."""

    def __init__(self, count: int):
        self.count, self.cluster, self._score = count, np.empty(0, np.int64), np.empty(0)

    def add(self, part: Judgement, ranking: str) -> None:
        first = part.judged & part.first
        cluster = np.concatenate([self.cluster, part.findings["cluster"].to_numpy()[first]])
        score = np.concatenate([self._score, as_floats(part.findings[ranking])[first]])
        order = np.argsort(-score, kind="stable")[: self.count]
        self.cluster, self._score = cluster[order], score[order]


class _RowSet:
    """A set of row numbers, with a bit for each row of the audit."""

    def __init__(self, rows: int):
        self._bits = np.zeros(rows // 8 + 1, np.uint8)

    def add(self, rows: np.ndarray) -> None:
        np.bitwise_or.at(self._bits, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))

    def count(self) -> int:
        return int(np.bitwise_count(self._bits).sum())


def _sum(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}
