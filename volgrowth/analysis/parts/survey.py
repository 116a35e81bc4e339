"""A survey of all audited rows before any is judged: what was measured, copies, what held-out images share."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.complexity import MEASURED
from volgrowth.analysis.calibration.held_out import Overlap
from volgrowth.analysis.duplicates import create_seen, group_duplicates, is_flat, looks_of
from volgrowth.analysis.embeddings import Embeddings
from volgrowth.analysis.parts.database import BATCH, Database
from volgrowth.records import Status

PARTS = ("growth", "loss", "noise_norm")
"""Columns of scores that make the evidence: growth as it is, the others as minus their logarithm."""
FULL = "log_likelihood"
"""Column that is measured with growth of all dimensions. Growth of one axis, or by one probe, is not added to others:
on the benchmark sums with it found no more, and less under some draws of the noise."""
CALIBRATING = ("row", "content_hash", "screen", *PARTS, FULL, *MEASURED)
"""Columns of scores that calibration reads."""
SURVEYED = (*CALIBRATING, "status", "phash")
"""Columns of scores that the survey reads."""
SAMPLE = 500_000
"""Distinct images of which a sample calibrates, where there are more of them and none are held out."""
_COUNTED = ("growth", "screen", "loss", "noise_norm", FULL)


@dataclass
class Measured:
    """In how many of the rows with a score each of some columns has a value."""

    rows: int = 0
    valid: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    numbers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))

    def add(self, scored: pa.Table) -> None:
        """Count some rows with a score."""
        self.rows += len(scored)
        for name in _COUNTED:
            column = scored[name]
            self.valid[name] += len(column) - column.null_count
            self.numbers[name] += pc.sum(pc.invert(pc.is_nan(column.cast(pa.float64())))).as_py() or 0

    def everywhere(self, column: str) -> bool:
        """Return whether every row with a score has a value, and there is one."""
        return self.rows > 0 and self.valid[column] == self.rows

    def complete(self, column: str) -> bool:
        """Return whether no row with a score lacks a number."""
        return self.numbers[column] == self.rows


@dataclass(frozen=True)
class Survey:
    """What all audited rows are together.

    Attributes:
        measured: what was measured of the rows with a score.
        overlap: what held-out images share with audited ones; None without any.
        flat: number of rows with a score and an image of one colour.
    """

    measured: Measured
    overlap: Overlap | None
    flat: int


def survey_rows(
    database: Database, parts: Iterable[pa.Table], holdout: pa.Table | None, embeddings: Embeddings | None = None
) -> Survey:
    """Look at all audited rows once, and make the tables `seen` and `members` (`duplicates`) of an empty database.

    Args:
        database: empty.
        parts: scores of all rows, with the columns of `SURVEYED`.
        holdout: scores of the held-out images.
        embeddings: of the audited rows, by which near duplicates are found as well.
    """
    measured, overlap = Measured(), None if holdout is None else Overlap(holdout)
    create_seen(database)
    waiting, count, flat = list[pa.Table](), 0, 0
    for part in parts:
        scored = pc.equal(part["status"], Status.OK.value)
        measured.add(part.select(_COUNTED).filter(scored))
        flat += int((is_flat(part) & as_mask(scored)).sum())
        if overlap:
            overlap.see(part)
        waiting, count = [*waiting, looks_of(part).append_column("scored", scored)], count + len(part)
        if count >= BATCH:
            database.add("seen", pa.concat_tables(waiting))
            waiting, count = [], 0
    if waiting:
        database.add("seen", pa.concat_tables(waiting))
    group_duplicates(database, embeddings)
    return Survey(measured, overlap, flat)


def sample_rows(database: Database, most: int) -> np.ndarray:
    """Return the rows of distinct scored images that may calibrate the others, sorted.

    They are the first rows of all such images, or of `most` of them, those of smallest content hash: hashes are
    uniform, so that this is a random choice, and the same one however rows are divided.
    """
    rows = database.table(
        f"SELECT min(row) AS row FROM seen WHERE scored GROUP BY content ORDER BY content LIMIT {most}"
    )
    return np.sort(rows["row"].to_numpy())
