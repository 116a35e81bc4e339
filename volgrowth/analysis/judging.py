"""What an audit says of each row: flagged, proven, or not judged. All commands and pages decide by this module.

judged    the row has a q-value and lies within the calibration's range. A row that a cascade screened out is judged:
          its q-value is 1, and the bound on the screen's loss says what that is worth.
flagged   the row's picture has a judged row with a q-value of at most the rate.
proven    samples of the model reproduced an image of the row's picture, by the rule of `verification.proof`.
found     flagged or proven: the images that count as memorized.

Numbers are of pictures: near duplicates and copies are one image, for which its strongest row stands
(`analysis.distinct`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_floats
from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.calibration.false_bounds import count_above
from volgrowth.analysis.distinct import strongest_rows
from volgrowth.audit.output.result import Audit
from volgrowth.records import FINDINGS

JUDGED = ("row", "cluster", "q_value", "outside_range", "strongest", "evidence")
"""Columns of findings by which rows are judged."""
_STANDING = ("row", "cluster", "p_value", "q_value", "outside_range", "evidence", "growth")


@dataclass(frozen=True)
class Judgement:
    """Masks over all rows of an audit, (rows,) bool each.

    Attributes:
        findings: the rows, with the columns of `records.FINDINGS`.
        tested: rows with a q-value, those outside the calibration's range included.
        judged: rows that could be flagged by themselves.
        flagged: tested rows of the pictures that are flagged.
        proven: rows of the pictures of which samples reproduced an image.
    """

    findings: pa.Table
    tested: np.ndarray
    judged: np.ndarray
    flagged: np.ndarray
    proven: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Rows that count as memorized."""
        return self.flagged | self.proven

    @property
    def unjudged(self) -> np.ndarray:
        """Rows of which nothing is known."""
        return ~(self.judged | self.found)

    @cached_property
    def first(self) -> np.ndarray:
        """Rows that stand for their picture; the version before this one did not write which, and wrote all at once."""
        return strongest(self.findings)

    def standing(self) -> "Judgement":
        """Return the rows that stand for their picture."""
        masks = (mask[self.first] for mask in (self.tested, self.judged, self.flagged, self.proven))
        return Judgement(self.findings.filter(pa.array(self.first)), *masks)

    def images(self, rows: np.ndarray) -> int:
        """Return the number of pictures for which one of the masked `rows` stands."""
        return int((rows & self.first).sum())


@dataclass(frozen=True)
class FoundPictures:
    """What must be known of all rows of an audit before one of them can be judged.

    Attributes:
        fdr: false-discovery rate at which images are flagged.
        flagged: clusters of the flagged pictures, sorted.
        proven: clusters of the pictures of which samples reproduced an image, sorted.
        proven_images: rows whose own pixels samples reproduced.
        ranking: column by which images are ranked; see `ranking_column`.
    """

    fdr: float
    flagged: np.ndarray
    proven: np.ndarray
    proven_images: np.ndarray
    ranking: str

    @classmethod
    def of(cls, parts: Iterable[pa.Table], verification: dict[str, Any] | None, fdr: float = FDR) -> "FoundPictures":
        """Look through all findings once; the arguments are those of `judge`, the findings in parts."""
        flagged, proven, known = [np.empty(0, np.int64)], [np.empty(0, np.int64)], False
        images = np.array(verification["rows"] if verification else (), np.int64)
        for part in parts:
            cluster, q_value = part["cluster"].to_numpy(), as_floats(part["q_value"])
            flagged.append(np.unique(cluster[is_flagged(q_value, fdr) & _in_range(part)]))
            proven.append(np.unique(cluster[np.isin(part["row"].to_numpy(), images)]))
            known = known or ranking_column(part) == "evidence"
        ranking = "evidence" if known else "excess_growth"
        return cls(fdr, np.unique(np.concatenate(flagged)), np.unique(np.concatenate(proven)), images, ranking)

    def judge(self, findings: pa.Table) -> "Judgement":
        """Judge rows of the audit, which need not be all of it."""
        tested, cluster = np.isfinite(as_floats(findings["q_value"])), findings["cluster"].to_numpy()
        flagged = tested & np.isin(cluster, self.flagged)
        return Judgement(findings, tested, tested & _in_range(findings), flagged, np.isin(cluster, self.proven))


class JudgedAudit:
    """The rows of an audit, judged in parts, so that no table has to fit the memory.

    Args:
        audit: its scores and findings.
        verification: part `verification` of the summary; None if no samples were drawn.
        fdr: false-discovery rate at which images are flagged.
    """

    def __init__(self, audit: Audit, verification: dict[str, Any] | None, fdr: float = FDR):
        self.audit = audit
        self.pictures = FoundPictures.of(audit.parts(findings=JUDGED), verification, fdr)

    def parts(self, findings: Sequence[str] = (), scores: Sequence[str] = ()) -> Iterator[Judgement]:
        """Yield the rows of one shard after the other, judged, with further columns of findings and scores."""
        tables = self.audit.parts(findings=list(dict.fromkeys([*JUDGED, *findings])), scores=scores)
        return (self.pictures.judge(table) for table in with_strongest(self.audit, tables))


class JudgedTables:
    """The same for tables of all rows, which the memory holds."""

    def __init__(self, findings: pa.Table, scores: pa.Table, verification: dict[str, Any] | None, fdr: float = FDR):
        self.findings, self.pictures = findings, FoundPictures.of([findings], verification, fdr)
        for name in scores.column_names:
            if name not in findings.column_names:
                self.findings = self.findings.append_column(scores.field(name), scores[name])
        lacking = [field for field in FINDINGS if field.name not in findings.column_names]
        for field in lacking:
            self.findings = self.findings.append_column(field, pa.nulls(len(findings), field.type))

    def parts(self, findings: Sequence[str] = (), scores: Sequence[str] = ()) -> Iterator[Judgement]:
        """Yield all rows as one part, with all columns."""
        yield self.pictures.judge(self.findings)


def with_strongest(audit: Audit, parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield parts of findings with the column `strongest`, also where the version before this one wrote them.

    That version held all findings at once, and so does this function then.
    """
    mask: np.ndarray | None = None
    for part in parts:
        if part["strongest"].null_count:
            if mask is None:
                mask = strongest_rows(pa.concat_tables(audit.parts(findings=_STANDING)))
            start = part["row"][0].as_py()
            place = part.schema.get_field_index("strongest")
            part = part.set_column(place, "strongest", pa.array(mask[start : start + len(part)]))
        yield part


def strongest(findings: pa.Table) -> np.ndarray:
    """Return a mask of the rows that stand for their pictures, in a table of all findings, (rows,) bool."""
    if "strongest" in findings.column_names and not findings["strongest"].null_count:
        return findings["strongest"].to_numpy().astype(bool)
    return strongest_rows(findings)


def _in_range(findings: pa.Table) -> np.ndarray:
    """Return a mask of the rows that have a q-value and lie within the calibration's range."""
    inside = ~pc.fill_null(findings["outside_range"], True).to_numpy().astype(bool)
    return np.isfinite(as_floats(findings["q_value"])) & inside


def judge(findings: pa.Table, verification: dict[str, Any] | None = None, fdr: float = FDR) -> Judgement:
    """Judge all rows of an audit at once.

    Args:
        findings: of all rows, with the columns of `records.FINDINGS`.
        verification: part `verification` of the summary; None if no samples were drawn.
        fdr: false-discovery rate at which images are flagged.
    """
    return FoundPictures.of([findings], verification, fdr).judge(findings)


def proven_rows(findings: pa.Table, verification: dict[str, Any] | None) -> np.ndarray:
    """Return a mask of the rows whose own pixels samples reproduced; the arguments are those of `judge`."""
    return np.isin(findings["row"].to_numpy(), np.array(verification["rows"] if verification else (), np.int64))


def count_above_pictures(parts: Iterable[Judgement], held: int, chosen: np.ndarray) -> np.ndarray:
    """Count how many held-out images are above each of some pictures, as `false_bound` counts them.

    Args:
        parts: of all rows, with the column `p_value_conformal`.
        held: number of held-out images that calibrated.
        chosen: clusters of the pictures, sorted.

    Returns:
        The number of held-out images with at least the excess of the strongest of the picture's trials, (chosen,);
        `held` for a picture without a judged row.
    """
    above = np.full(len(chosen), held)
    for part in parts:
        cluster = part.findings["cluster"].to_numpy()
        rows = np.flatnonzero(part.judged & np.isin(cluster, chosen))
        p_value = as_floats(part.findings["p_value_conformal"])[rows]
        np.minimum.at(above, np.searchsorted(chosen, cluster[rows]), count_above(p_value, held))
    return above


def ranking_column(findings: pa.Table) -> str:
    """Return the column by which images are ranked: `evidence`, or `excess_growth` in findings that have none."""
    known = "evidence" in findings.column_names and findings["evidence"].null_count < len(findings)
    return "evidence" if known else "excess_growth"


def is_flagged(q_value: np.ndarray, fdr: float = FDR) -> np.ndarray:
    """Return a mask of the q-values (n,) that flag an image at a rate; NaN does not."""
    return q_value <= fdr
