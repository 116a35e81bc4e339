"""Returns: flagged images and controls, noised to several levels and decoded again.

A memorized image comes back from noise levels from which other images do not.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_floats, as_mask
from volgrowth.analysis.calibration.complexity import MEASURED, regressors
from volgrowth.analysis.controls import match_controls
from volgrowth.analysis.judging import JudgedAudit, JudgedTables
from volgrowth.records import RETURNS

# flagged images that are noised and decoded, those of highest excess growth, with as many controls
TARGETS = 40
LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
# decoded versions of each image at each level
DRAWS = 4


# rows among which controls are looked for: of more, a random part of about so many
ALLOWED = 200_000
_READ = ("excess_growth", "memorized", "identical")


@dataclass(frozen=True)
class ReturnTargets:
    """Rows of flagged images, and of the controls matched to them, (targets,) each.

    `identical` is the number of the image of each of `rows`: its smallest row with the same pixels.
    """

    flagged: np.ndarray
    controls: np.ndarray
    identical: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All rows, in the order of the decoded images: each has `DRAWS` of them at each of `LEVELS`."""
        return np.concatenate([self.flagged, self.controls])


def choose_targets(judged: JudgedAudit | JudgedTables, rows: int) -> ReturnTargets:
    """Choose flagged images of most evidence, one row of each picture, and unflagged images of the same complexity.

    Near duplicates of flagged images are no controls: what returns to one may hit the other.

    Args:
        judged: all rows.
        rows: number of them.
    """
    flagged, clusters = _flagged(judged)
    share, near, features, numbers = max(1, ceil(rows / ALLOWED)), list[np.ndarray](), list[np.ndarray](), list[int]()
    for part in judged.parts(_READ, [*MEASURED, "content_hash"]):
        table = part.findings
        row, allowed = table["row"].to_numpy(), ~np.isin(table["cluster"].to_numpy(), clusters)
        allowed &= table["excess_growth"].is_valid().to_numpy() & part.first
        if share > 1:  # hashes are uniform
            allowed &= pc.fill_null(table["content_hash"], 1).to_numpy() % np.uint64(share) == 0
        wanted = np.flatnonzero(allowed | np.isin(row, flagged))
        near.append(row[wanted])
        features.append(regressors(table.take(pa.array(wanted))))
        numbers += table["identical"].to_numpy()[wanted].tolist()
    there, order = np.concatenate([np.empty(0, np.int64), *near]), np.argsort(flagged)
    at = np.empty(len(flagged), np.int64)
    at[order] = np.searchsorted(there, flagged[order])
    everything = np.concatenate(features) if features else np.empty((0, 0))
    partners = match_controls(everything, at, np.flatnonzero(~np.isin(there, flagged)))
    chosen = np.concatenate([at[partners >= 0], partners[partners >= 0]])
    half = len(chosen) // 2
    return ReturnTargets(there[chosen[:half]], there[chosen[half:]], np.array(numbers, np.int64)[chosen])


def _flagged(judged: JudgedAudit | JudgedTables) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the flagged pictures of most evidence, up to `TARGETS`, and the clusters of all flagged."""
    row, score, clusters = np.empty(0, np.int64), np.empty(0), [np.empty(0, np.int64)]
    for part in judged.parts(_READ):
        table = part.findings
        flagged = as_mask(table["memorized"])
        clusters.append(np.unique(table["cluster"].to_numpy()[flagged]))
        some = flagged & table["excess_growth"].is_valid().to_numpy() & part.first
        row = np.concatenate([row, table["row"].to_numpy()[some]])
        score = np.concatenate([score, as_floats(table[judged.pictures.ranking])[some]])
        best = np.argsort(-score, kind="stable")[:TARGETS]
        row, score = row[best], score[best]
    return row, np.unique(np.concatenate(clusters))


def returns_table(targets: ReturnTargets, hit: np.ndarray) -> pa.Table:
    """Count for each target and noise level how many of its decoded versions are copies of it.

    Args:
        targets: the images that were noised and decoded.
        hit: the group that each decoded image hits, (targets * levels * draws,), -1 for none.

    Returns:
        A table with the columns of `records.RETURNS`, one row per target and level.
    """
    rows = targets.rows
    back = hit.reshape(len(rows), len(LEVELS), DRAWS) == targets.identical[:, None, None]
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
