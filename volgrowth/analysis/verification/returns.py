"""Returns: flagged images and controls, noised to several levels and decoded again.

A memorized image comes back from noise levels from which other images do not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration.complexity import regressors
from volgrowth.analysis.controls import match_controls
from volgrowth.analysis.distinct import strongest_rows
from volgrowth.analysis.judging import ranking_column
from volgrowth.records import RETURNS

# flagged images that are noised and decoded, those of highest excess growth, with as many controls
TARGETS = 40
LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# decoded versions of each image at each level
DRAWS = 4


@dataclass(frozen=True)
class ReturnTargets:
    """Rows of flagged images, and of the controls matched to them, (targets,) each."""

    flagged: np.ndarray
    controls: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All rows, in the order of the decoded images: each has `DRAWS` of them at each of `LEVELS`."""
        return np.concatenate([self.flagged, self.controls])


def choose_targets(findings: pa.Table, scores: pa.Table) -> ReturnTargets:
    """Choose flagged images of most evidence, one row of each picture, and unflagged images of the same complexity.

    Near duplicates of flagged images are no controls: what returns to one may hit the other.

    Args:
        findings: all rows, with the columns of `records.FINDINGS`.
        scores: the same rows, with the columns that the complexity regressors need.
    """
    scored = findings["excess_growth"].is_valid().to_numpy() & strongest_rows(findings)
    flagged = pc.fill_null(findings["memorized"], False).to_numpy().astype(bool)
    rows = np.flatnonzero(scored & flagged)
    rows = rows[np.argsort(-findings[ranking_column(findings)].to_numpy()[rows], kind="stable")][:TARGETS]
    cluster = findings["cluster"].to_numpy()
    allowed = np.flatnonzero(scored & ~np.isin(cluster, cluster[flagged]))
    partners = match_controls(regressors(scores), rows, allowed)
    return ReturnTargets(rows[partners >= 0], partners[partners >= 0])


def returns_table(targets: ReturnTargets, identical: np.ndarray, hit: np.ndarray) -> pa.Table:
    """Count for each target and noise level how many of its decoded versions are copies of it.

    Args:
        targets: the images that were noised and decoded.
        identical: the column `identical` of the findings, (rows,).
        hit: the group that each decoded image hits, (targets * levels * draws,), -1 for none.

    Returns:
        A table with the columns of `records.RETURNS`, one row per target and level.
    """
    rows = targets.rows
    back = hit.reshape(len(rows), len(LEVELS), DRAWS) == identical[rows][:, None, None]
    columns = {
        "row": np.repeat(rows, len(LEVELS)),
        "flagged": np.repeat(np.arange(len(rows)) < len(targets.flagged), len(LEVELS)),
        "matched_row": np.repeat(np.concatenate([targets.controls, targets.flagged]), len(LEVELS)),
        "noise_level": np.tile(LEVELS, len(rows)),
        "draws": np.full(len(rows) * len(LEVELS), DRAWS),
        "returned": back.sum(2).ravel(),
    }
    return pa.table({name: pa.array(column) for name, column in columns.items()}).cast(RETURNS)


def return_shares(returns: pa.Table) -> dict[str, Any] | None:
    """Return the share of decoded images that came back, by level, for flagged images and for controls.

    None if no image was flagged, so that there were no targets.
    """
    if not len(returns):
        return None
    flagged = returns["flagged"].to_numpy()
    returned = returns["returned"].to_numpy() / DRAWS

    def share(which: np.ndarray) -> list[float]:
        return returned[which].reshape(-1, len(LEVELS)).mean(0).tolist()

    return {
        "images": int(flagged.sum()) // len(LEVELS),
        "draws": DRAWS,
        "levels": list(LEVELS),
        "flagged": share(flagged),
        "controls": share(~flagged),
    }
