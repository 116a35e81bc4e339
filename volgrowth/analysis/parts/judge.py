"""Rows of scores judged one by one: what each is worth by itself, before what several rows share is known.

A cascade leaves most rows with a screen and no other score. The first row of a trial decides its test, so that only
that row is ever measured, and the trial's other rows share its p-value. A trial that does not pass the screen has the
p-value 1 in growth and in loss, and so has a sampled row, which is measured only to bound the loss.
"""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.calibration.complexity import MEASURED, TableRegressors
from volgrowth.analysis.calibration.evidence import Calibration
from volgrowth.analysis.calibration.expected_scores import ScoredImages, Screen
from volgrowth.analysis.distinct import rounded
from volgrowth.analysis.duplicates import is_flat
from volgrowth.analysis.parts.survey import CALIBRATING, PARTS
from volgrowth.records import FINDINGS, SCORES, SCREEN_WEIGHTS, Status
from volgrowth.version import VERSION

Columns = dict[str, pa.Array]

ANALYSED = (*CALIBRATING, "status", "image_id", "phash", "growth_contrast")
"""Columns of scores that the analysis reads."""
REFERENCE = ("row", "screen", *PARTS)
"""Columns of a reference audit's scores that the analysis reads."""
SMALLEST = 1e-12
"""Losses and lengths of noise below this count as this: their logarithm has an end."""
_FOUND = (
    *("row", "image_id", "growth", "growth_contrast", "expected_growth", "excess_growth", "excess_loss"),
    *("evidence", *(f"evidence_{name}" for name in PARTS), "outside_range"),
    *("p_value", "loss_p_value", "p_value_conformal"),
)
JUDGED = pa.schema(
    [
        *(FINDINGS.field(name) for name in _FOUND),
        pa.field("content", pa.uint64()),
        pa.field("scored", pa.bool_()),
        pa.field("trial_score", pa.float64()),
        pa.field("passed", pa.bool_()),
        pa.field("unscreened", pa.float64()),
        *(SCORES.field(name) for name in MEASURED),
    ]
)
"""Judged rows: columns of findings, the p-values those of the row; the hash of its pixels; whether it has a score, and
the rounded one that tells trials apart; whether it passes the screen, and its p-value without it; its complexity."""


def part_score(column: str, values: np.ndarray) -> np.ndarray:
    """Return the score that a column of scores contributes to the evidence, high where it is suspicious, (n,)."""
    return values if column == "growth" else -np.log(np.maximum(values, SMALLEST))


class ScoreTable:
    """A table of scores: which of its rows were scored, and the arrays of those that calibration needs.

    Args:
        scores: with the columns of `ANALYSED`.
        reference: scores of the same rows under a reference model, with the columns of `REFERENCE`.
    """

    def __init__(self, scores: pa.Table, reference: pa.Table | None = None):
        self.scores = scores
        mask = pc.equal(scores.column("status"), Status.OK.value)
        self.mask = mask.to_numpy().astype(bool)
        self.table = scores.select(list(CALIBRATING)).filter(mask)
        self.reference = None if reference is None else reference.select(list(REFERENCE)).filter(mask)
        self.content = self.table.column("content_hash").to_numpy()

    @cached_property
    def flat(self) -> np.ndarray:
        """Mask of the scored rows with an image of one colour, which neither calibrate nor have evidence."""
        return is_flat(self.scores)[self.mask]

    def screen(self) -> ScoredImages:
        """Return the scored rows with a cascade's screen as the score: the loss times the length of the noise."""
        score = sum(weight * part_score(column, self._numbers(column)) for column, weight in SCREEN_WEIGHTS.items())
        return self._images("screen", np.asarray(score))

    def part(self, column: str) -> ScoredImages:
        """Return the scored rows with a part of the evidence as the score; NaN where the column is null."""
        return self._images(column, part_score(column, self._numbers(column)))

    def _numbers(self, column: str) -> np.ndarray:
        return self.table.column(column).to_numpy().astype(float)

    def _images(self, column: str, score: np.ndarray) -> ScoredImages:
        further = None if self.reference is None else self.reference.column(column).to_numpy()
        return ScoredImages(TableRegressors(self.table, further), score, self.content)

    def full(self, values: np.ndarray) -> pa.Array:
        """Return values of the scored rows as a column of all rows; null in the other rows, and where they are NaN."""
        return pa.array(values, from_pandas=True).take(pa.array(np.cumsum(self.mask) - 1, mask=~self.mask))

    def expectation(self, expected: np.ndarray) -> Columns:
        """Return the columns of findings of an expected growth, (scored rows,)."""
        expected_growth = self.full(expected)
        growth = self.scores.column("growth").combine_chunks()
        return {"expected_growth": expected_growth, "excess_growth": pc.subtract(growth, expected_growth)}


@dataclass(frozen=True)
class Judge:
    """Judges any rows of an audit. It may be pickled, and holds no audited rows.

    Attributes:
        calibration: None if there are too few images to calibrate.
        names: columns of scores that make the evidence.
        screen: of a cascade; None for a whole audit.
        trial_score: column of the score that tells trials apart.
    """

    calibration: Calibration | None
    names: tuple[str, ...]
    screen: Screen | None
    trial_score: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of scores that are read."""
        return ANALYSED

    @property
    def reference_columns(self) -> tuple[str, ...]:
        """Columns of a reference audit's scores that are read."""
        return REFERENCE

    @cached_property
    def digest(self) -> str:
        """A digest of all that decides how rows are judged: regressions are known by what they say of known images."""
        digest = sha256(f"{VERSION} {self.names} {self.trial_score}".encode())
        if self.calibration:
            known = self.calibration
            said = (
                known.method,
                known.added,
                sorted(known.left_out),
                known.spread,
                known.audited.count,
                sorted(known.alone),
            )
            digest.update(repr(said).encode())
            for name, part in known.scores.items():
                digest.update(name.encode())
                for array in (part.held, part.expected, part.fold, part.sample):
                    digest.update(np.ascontiguousarray(array).tobytes())
            digest.update(known.low.tobytes() + known.high.tobytes())
            beside = known.tail.audited if known.tail else None  # the only part that other images than those decide
            for fit in beside.fits if beside else ():
                digest.update(repr((fit.threshold, fit.above)).encode() + fit.log_survival.tobytes())
        if self.screen:
            digest.update(repr(self.screen.threshold).encode() + self.screen.held.tobytes())
        return digest.hexdigest()

    def judge(self, scores: pa.Table, reference: pa.Table | None = None) -> pa.Table:
        """Return the judged rows, with the columns of `JUDGED`, of scores with the columns of `ANALYSED`.

        Args:
            scores: of some rows.
            reference: scores of the same rows under a reference model.
        """
        rows = ScoreTable(scores, reference)
        score = rows.table.column(self.trial_score).to_numpy().astype(float)
        known = {
            **{name: scores.column(name) for name in ("row", "image_id", "growth", "growth_contrast", *MEASURED)},
            "content": scores.column("content_hash"),
            "scored": pa.array(rows.mask),
            "trial_score": rows.full(rounded(score)),
            **(self._verdicts(rows) if self.calibration else {}),
        }
        return pa.table([known.get(field.name, pa.nulls(len(scores), field.type)) for field in JUDGED], schema=JUDGED)

    def _verdicts(self, rows: ScoreTable) -> Columns:
        """Return the columns that calibration gives."""
        assert self.calibration is not None
        parts = {name: rows.part(name) for name in self.names}
        passed = None
        if self.screen:
            passed = self.screen.passes(rows.screen())
            for images in parts.values():  # the rows that do not pass were not measured
                images.score[np.isnan(images.score)] = -np.inf
        judged = self.calibration.judge(parts, passed)
        innocent = judged.outside | rows.flat
        columns = {
            **rows.expectation(judged.first_expected),
            "outside_range": rows.full(judged.outside & ~rows.flat),
            "evidence": rows.full(_shown(judged.evidence, rows)),
            "p_value": rows.full(_tested(judged.used, innocent)),
        }
        for name, part in self.calibration.parts.items():
            columns[f"evidence_{name}"] = rows.full(_shown(judged.excess[name] / part.unit, rows))
        if "loss" in self.calibration.parts:
            expected_loss = np.exp(-judged.expected["loss"])  # the median of a logarithm is that of the loss
            columns["excess_loss"] = rows.full(rows.table["loss"].to_numpy() - expected_loss)
            columns["loss_p_value"] = rows.full(_tested(judged.alone["loss"], innocent))
        if self.calibration.method == "held-out":
            columns["p_value_conformal"] = rows.full(_tested(judged.conformal, innocent))
        if passed is not None and judged.unscreened is not None:
            columns |= {"passed": rows.full(passed), "unscreened": rows.full(_tested(judged.unscreened, innocent))}
        return columns


def _tested(p_value: np.ndarray, innocent: np.ndarray) -> np.ndarray:
    """Return the p-values of rows, before those of a picture are combined and adjusted.

    Images that cannot be flagged get 1 before the adjustment: afterwards they would loosen it for all others.
    """
    return np.where(innocent, 1.0, p_value)


def _shown(evidence: np.ndarray, rows: ScoreTable) -> np.ndarray:
    """Return evidence with NaN for images that have none: of one colour, or not measured by a cascade."""
    return np.where(np.isneginf(evidence) | rows.flat, np.nan, evidence)
