"""Findings from scores: one row per image, calibrated, with its duplicates.

What is one image, and which p-value it has, is the rule of `analysis.distinct`.

A cascade leaves most rows with a screen and no other score. The first row of a trial decides its test, so that only
that row is ever measured, and the trial's other rows share its p-value. A trial that does not pass the screen has the
p-value 1 in growth and in loss, and so has a sampled row, which is measured only to bound the loss.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from volgrowth.analysis.as_numpy import as_mask
from volgrowth.analysis.calibration.complexity import MEASURED, TableRegressors
from volgrowth.analysis.calibration.error_rates import q_values
from volgrowth.analysis.calibration.evidence import Calibration, calibrate
from volgrowth.analysis.calibration.expected_scores import (
    MIN_IMAGES,
    Passing,
    ScoredImages,
    pass_screen,
)
from volgrowth.analysis.calibration.false_bounds import count_above, false_bounds
from volgrowth.analysis.calibration.held_out import look_alikes
from volgrowth.analysis.calibration.screening import Screening
from volgrowth.analysis.distinct import Pictures, identical_rows, strongest_rows
from volgrowth.analysis.duplicates import duplicate_clusters
from volgrowth.analysis.judging import is_flagged
from volgrowth.errors import DataError, OutputError
from volgrowth.records import FINDINGS, Status

Columns = dict[str, pa.Array]

PARTS = ("growth", "loss", "noise_norm")
"""Columns of scores that make the evidence: growth as it is, the others as minus their logarithm."""
FULL = "log_likelihood"
"""Column that is measured with growth of all dimensions. Growth of one axis, or by one probe, is not added to others:
on the benchmark sums with it found no more, and less under some draws of the noise."""
_CALIBRATING = ("row", "content_hash", "screen", *PARTS, FULL, *MEASURED)
ANALYSED = (*_CALIBRATING, "status", "image_id", "phash", "growth_contrast")
"""Columns of scores that the analysis reads."""
SMALLEST = 1e-12
"""Losses and lengths of noise below this count as this: their logarithm has an end."""


@dataclass(frozen=True)
class Analysis:
    """Findings and the calibration behind them.

    Attributes:
        findings: of the audited images, with the columns of `records.FINDINGS`.
        holdout: the same of the held-out images; None without any.
        calibration: of the evidence; None if there are too few images to calibrate.
        screening: of a cascade; None of a whole audit.
    """

    findings: pa.Table
    holdout: pa.Table | None
    calibration: Calibration | None
    screening: Screening | None = None


@dataclass(frozen=True)
class Reference:
    """Scores of the same rows under a reference model, whose growth becomes one more regressor."""

    scores: pa.Table
    holdout: pa.Table | None


def analyse(
    scores: pa.Table,
    holdout_scores: pa.Table | None = None,
    reference: Reference | None = None,
    screen_share: float | None = None,
) -> Analysis:
    """Calibrate scores and find duplicates.

    Args:
        scores: of the audited images, with the columns of `records.SCORES`.
        holdout_scores: of the held-out images.
        reference: scores of the same rows under a reference model.
        screen_share: share of the held-out images that passes the screen of a cascade; None for a whole audit.

    Returns:
        The findings; their values are null in rows that were not scored or not calibrated.

    Raises:
        DataError: too few held-out images are usable for a cascade.
    """
    audited = _Scored(scores, reference.scores if reference else None)
    holdout = None
    if holdout_scores is not None:
        holdout = _Scored(holdout_scores, reference.holdout if reference else None)
    alike = None if holdout is None else look_alikes(scores, holdout.scores)[holdout.mask]
    passed = None if screen_share is None else _screen(audited, holdout, screen_share, alike)
    calibration = _calibrate(audited, holdout, passed, alike)
    held_findings = None
    if holdout is not None:
        held_findings = _findings(holdout, _held_out(holdout, calibration) if calibration else {})
    findings = _findings(audited, _calibrated(audited, calibration, passed) if calibration else {})
    screening = _screening(audited, findings, calibration, passed) if calibration and passed else None
    return Analysis(findings, held_findings, calibration, screening)


def _screen(audited: "_Scored", holdout: "_Scored | None", share: float, alike: np.ndarray | None) -> Passing:
    """Decide which images pass the screen."""
    passed = None if holdout is None else pass_screen(audited.screen(), holdout.screen(), share, alike)
    if passed is None:
        raise DataError(
            f"fewer than {MIN_IMAGES} held-out images could be scored and do not look like audited ones, too few "
            f"for a cascade: hold out more, or audit without --cascade"
        )
    return passed


def _screening(audited: "_Scored", findings: pa.Table, calibration: Calibration, passed: Passing) -> Screening:
    """Describe the screening of the trials within the calibration's range, by their first rows."""
    assert calibration.unscreened_p_value is not None
    pictures = audited.pictures
    judged = np.sort(pictures.tried(~calibration.outside))
    flagged = as_mask(findings.filter(pa.array(audited.mask))["memorized"])
    return Screening(
        row=audited.table["row"].to_numpy()[judged],
        passed=passed.audited[judged],
        measured=audited.table["growth"].is_valid().to_numpy()[judged],
        flagged=flagged[judged],
        p_value=calibration.unscreened_p_value[judged],
        picture=pictures.picture[judged],
        tests=pictures.count,
    )


def part_score(column: str, values: np.ndarray) -> np.ndarray:
    """Return the score that a column of scores contributes to the evidence, high where it is suspicious, (n,)."""
    return values if column == "growth" else -np.log(np.maximum(values, SMALLEST))


def check_columns(findings: pa.Table, url: str, *names: str) -> None:
    """Check that the findings of an audit have some columns.

    Args:
        findings: read from the audit.
        url: of the audit.
        *names: of the columns that are needed.

    Raises:
        OutputError: an older version wrote them.
    """
    lacking = sorted(set(names) - set(findings.column_names))
    if lacking:
        raise OutputError(
            f"findings in {url} has no column {lacking[0]} (an older version wrote it): delete {url}/_SUCCESS and run "
            f"the same `volgrowth audit` again, which keeps the scores"
        )


class _Scored:
    """A table of scores: which of its rows were scored, and the arrays of those that calibration needs."""

    def __init__(self, scores: pa.Table, reference: pa.Table | None):
        self.scores = scores
        mask = pc.equal(scores.column("status"), Status.OK.value)
        self.mask = mask.to_numpy().astype(bool)
        self.table = scores.select(list(_CALIBRATING)).filter(mask)
        self.reference = None if reference is None else reference.select(["screen", *PARTS]).filter(mask)
        self.content = self.table.column("content_hash").to_numpy()

    @cached_property
    def clusters(self) -> tuple[np.ndarray, np.ndarray]:
        """The cluster of every row, scored or not, and its size, (rows,) each."""
        return duplicate_clusters(self.scores)

    @cached_property
    def pictures(self) -> Pictures:
        """Pictures and trials of the scored rows; in a cascade the screen, which all rows have, tells trials apart."""
        score = self.table.column("growth" if self.measured("growth") else "screen")
        return Pictures.of(self.clusters[0][self.mask], self.content, score.to_numpy().astype(float))

    def measured(self, column: str) -> bool:
        return self.table.num_rows > 0 and self.table.column(column).null_count == 0

    def screen(self) -> ScoredImages:
        """Return the scored rows with a cascade's screen as the score: the loss times the squared length of noise."""
        loss, noise_norm = (part_score(column, self._numbers(column)) for column in ("loss", "noise_norm"))
        return self._images("screen", loss + 2 * noise_norm)

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


def _calibrate(
    audited: _Scored, holdout: _Scored | None, passed: Passing | None, alike: np.ndarray | None
) -> Calibration | None:
    """Calibrate the evidence from the parts that were measured in every image; in every held-out one of a cascade."""
    whole = [images for images in (holdout, None if passed else audited) if images is not None]
    names = [name for name in PARTS if name == "growth" or all(images.measured(name) for images in whole)]
    parts = {name: audited.part(name) for name in names}
    if passed:  # the rows that do not pass were not measured
        for images in parts.values():
            images.score[np.isnan(images.score)] = -np.inf
    held = None if holdout is None else {name: holdout.part(name) for name in names}
    aside = () if whole[0].measured(FULL) else ("growth",)
    found = calibrate(parts, held, passed, alone=("loss",), alike=alike, aside=aside)
    if found is not None:
        found.left_out.update({name: _why_not(name, whole) for name in PARTS if name not in names})
    return found


def _why_not(column: str, images: list[_Scored]) -> str:
    """Say why a column of scores makes no part of the evidence."""
    somewhere = any(each.table.column(column).null_count < each.table.num_rows for each in images)
    return "it was not measured in every image" if somewhere else "the preset does not measure it"


def _calibrated(audited: _Scored, calibration: Calibration, passed: Passing | None) -> Columns:
    """Return the columns of the audited images' findings that calibration gives."""
    columns = {
        **_expectation(audited, calibration.main.expected),
        "outside_range": audited.full(calibration.outside),
        "evidence": audited.full(_measured(calibration.evidence)),
    }
    for name, part in calibration.parts.items():
        columns[f"evidence_{name}"] = audited.full(_measured(part.mean_excess / (part.residual_spread or 1.0)))
    p_values = {"": calibration.p_value}
    if "loss" in calibration.parts:
        expected_loss = np.exp(-calibration.parts["loss"].expected)  # the median of a logarithm is that of the loss
        columns["excess_loss"] = audited.full(audited.table["loss"].to_numpy() - expected_loss)
        p_values["loss_"] = calibration.part_p_values["loss"]
    pictures, judged = audited.pictures, ~calibration.outside
    columns["trials"] = audited.full(pictures.trials(judged)).cast(pa.int32())
    for prefix, p_value in p_values.items():
        tested = _tested(audited, calibration, passed, p_value)
        combined = pictures.p_values(tested, judged)
        q_value = q_values(combined, pictures.picture)
        columns[f"{prefix}p_value"] = audited.full(tested)
        columns[f"{prefix}cluster_p_value"] = audited.full(combined)
        columns[f"{prefix}q_value"] = audited.full(q_value)
        columns[f"{prefix}q_value_by"] = audited.full(q_values(combined, pictures.picture, "by"))
        columns["precursor" if prefix else "memorized"] = audited.full(is_flagged(q_value))
    if calibration.method == "held-out":
        conformal = _tested(audited, calibration, passed, calibration.p_values.conformal)
        columns["p_value_conformal"] = audited.full(conformal)
        columns["false_bound"] = audited.full(_false_bounds(audited, calibration, conformal)).cast(pa.float32())
    return columns


def _tested(audited: _Scored, calibration: Calibration, passed: Passing | None, p_value: np.ndarray) -> np.ndarray:
    """Return the p-values of rows, before those of a picture are combined and adjusted.

    Images outside the range get 1 before the adjustment: afterwards they would loosen it for all others. In a cascade
    all rows of a trial share the p-value of its first, which alone is measured.
    """
    tested = np.where(calibration.outside, 1.0, p_value)
    return tested[audited.pictures.first][audited.pictures.trial] if passed else tested


def _false_bounds(audited: _Scored, calibration: Calibration, conformal: np.ndarray) -> np.ndarray:
    """Return the bound on false flags of each row, by the strongest trial of its picture; 1 if that is not judged."""
    held, pictures, judged = len(calibration.rows), audited.pictures, ~calibration.outside
    smallest = pictures.smallest(conformal, judged)
    known = np.isfinite(smallest)
    bound = np.ones(pictures.count)
    bound[known] = false_bounds(count_above(smallest[known], held), held, len(pictures.tried(judged)))
    return bound[pictures.picture]


def _measured(values: np.ndarray) -> np.ndarray:
    """Return values with NaN for images that a cascade did not measure."""
    return np.where(np.isneginf(values), np.nan, values)


def _held_out(holdout: _Scored, calibration: Calibration) -> Columns:
    """Return the columns of the held-out images' findings; those that are audited as well have no evidence."""
    expected, evidence = calibration.main.holdout_expected, calibration.holdout_evidence
    if expected is None or evidence is None:
        return {}
    known = dict(zip(holdout.content[calibration.rows].tolist(), evidence.tolist(), strict=True))
    shown = np.array([known.get(content, np.nan) for content in holdout.content.tolist()])
    return {**_expectation(holdout, expected), "evidence": holdout.full(shown)}


def _expectation(images: _Scored, expected: np.ndarray) -> Columns:
    expected_growth = images.full(expected)
    growth = images.scores.column("growth").combine_chunks()
    return {"expected_growth": expected_growth, "excess_growth": pc.subtract(growth, expected_growth)}


def _findings(images: _Scored, columns: Columns) -> pa.Table:
    cluster, count = images.clusters
    known = {
        **{name: images.scores.column(name) for name in ("row", "image_id", "growth", "growth_contrast")},
        "cluster": pa.array(cluster),
        "copies": pa.array(count.astype(np.int32)),
        "identical": pa.array(identical_rows(images.scores)),
        **columns,
    }
    rows = len(images.scores)
    table = pa.table([known.get(field.name, pa.nulls(rows, field.type)) for field in FINDINGS], schema=FINDINGS)
    place = FINDINGS.get_field_index("strongest")
    return table.set_column(place, FINDINGS.field(place), pa.array(strongest_rows(table)))
