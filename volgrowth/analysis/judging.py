"""What an audit says of each row: flagged, proven, or not judged. All commands and pages decide by this module.

judged    the row has a q-value and lies within the calibration's range. A row that a cascade screened out is judged:
          its q-value is 1, and the bound on the screen's loss says what that is worth.
flagged   judged, with a q-value of at most the rate.
proven    samples of the model reproduced the row's image, by the rule of `verification.proof`, flagged or not.
found     flagged or proven: the images that count as memorized.

Numbers are of distinct images: rows with the same pixels are one image, for which its first row stands.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_floats
from volgrowth.analysis.calibration.error_rates import FDR
from volgrowth.analysis.distinct import first_rows


@dataclass(frozen=True)
class Judgement:
    """Masks over all rows of an audit, (rows,) bool each.

    Attributes:
        findings: the rows, with the columns of `records.FINDINGS`.
        tested: rows with a q-value, those outside the calibration's range included.
        judged: rows that could be flagged.
        flagged: judged rows whose q-value is at most the rate.
        proven: rows of images that samples reproduced.
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
        return ~(self.judged | self.proven)

    @cached_property
    def first(self) -> np.ndarray:
        """Rows that stand for their image."""
        return first_rows(self.findings)

    def images(self, rows: np.ndarray) -> int:
        """Return the number of distinct images whose first row is among the masked `rows`."""
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
    rows = np.array(verification["rows"] if verification else (), np.int64)
    proven = np.isin(findings["row"].to_numpy(), rows)
    return Judgement(findings, tested, judged, is_flagged(q_value, fdr) & judged, proven)


def ranking_column(findings: pa.Table) -> str:
    """Return the column by which images are ranked: `evidence`, or `excess_growth` in findings that have none."""
    known = "evidence" in findings.column_names and findings["evidence"].null_count < len(findings)
    return "evidence" if known else "excess_growth"


def is_flagged(q_value: np.ndarray, fdr: float = FDR) -> np.ndarray:
    """Return a mask of the q-values (n,) that flag an image at a rate; NaN does not."""
    return q_value <= fdr
