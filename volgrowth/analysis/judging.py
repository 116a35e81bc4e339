"""What an audit says of each row: flagged, proven, or not judged. All commands and pages decide by this module.

judged    the row has a q-value and lies within the calibration's range. A row that a cascade screened out is judged:
          its q-value is 1, and the bound on the screen's loss says what that is worth.
flagged   the row's picture has a judged row with a q-value of at most the rate.
proven    samples of the model reproduced an image of the row's picture, by the rule of `verification.proof`.
found     flagged or proven: the images that count as memorized.

Numbers are of pictures: near duplicates and copies are one image, for which its strongest row stands
(`analysis.distinct`).
"""

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
        """Rows that stand for their picture."""
        return strongest_rows(self.findings)

    def images(self, rows: np.ndarray) -> int:
        """Return the number of pictures for which one of the masked `rows` stands."""
        return int((rows & self.first).sum())


def judge(findings: pa.Table, verification: dict[str, Any] | None = None, fdr: float = FDR) -> Judgement:
    """Judge the rows of an audit.

    Args:
        findings: with the columns of `records.FINDINGS`.
        verification: part `verification` of the summary; None if no samples were drawn.
        fdr: false-discovery rate at which images are flagged.
    """
    q_value = as_floats(findings["q_value"])
    tested = np.isfinite(q_value)
    judged = tested & ~pc.fill_null(findings["outside_range"], True).to_numpy().astype(bool)
    _, picture = np.unique(findings["cluster"].to_numpy(), return_inverse=True)

    def pictures_of(some: np.ndarray) -> np.ndarray:
        return np.bincount(picture, some)[picture] > 0

    flagged = tested & pictures_of(is_flagged(q_value, fdr) & judged)
    return Judgement(findings, tested, judged, flagged, pictures_of(proven_rows(findings, verification)))


def proven_rows(findings: pa.Table, verification: dict[str, Any] | None) -> np.ndarray:
    """Return a mask of the rows whose own pixels samples reproduced; the arguments are those of `judge`."""
    return np.isin(findings["row"].to_numpy(), np.array(verification["rows"] if verification else (), np.int64))


def strongest_above(known: Judgement, held: int) -> tuple[np.ndarray, np.ndarray]:
    """Count how many held-out images are above each judged picture, that of most evidence first.

    Args:
        known: of an audit with held-out images.
        held: number of those that calibrated.

    Returns:
        The positions of the rows that stand for the pictures, (pictures,), and the number of held-out images with at
        least the excess of the strongest of the picture's trials, (pictures,), as `false_bound` counts them.
    """
    findings = known.findings
    _, picture = np.unique(findings["cluster"].to_numpy(), return_inverse=True)
    above = np.full(picture.max(initial=-1) + 1, held)
    rows = np.flatnonzero(known.judged)
    np.minimum.at(above, picture[rows], count_above(findings["p_value_conformal"].to_numpy()[rows], held))
    first = np.flatnonzero(known.first & known.judged)
    first = first[np.argsort(-findings[ranking_column(findings)].to_numpy()[first], kind="stable")]
    return first, above[picture[first]]


def ranking_column(findings: pa.Table) -> str:
    """Return the column by which images are ranked: `evidence`, or `excess_growth` in findings that have none."""
    known = "evidence" in findings.column_names and findings["evidence"].null_count < len(findings)
    return "evidence" if known else "excess_growth"


def is_flagged(q_value: np.ndarray, fdr: float = FDR) -> np.ndarray:
    """Return a mask of the q-values (n,) that flag an image at a rate; NaN does not."""
    return q_value <= fdr
