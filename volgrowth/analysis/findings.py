"""Findings from scores: one row per image, calibrated, with its duplicates.

Rows are judged in parts (`analysis.parts`), so that as many as there are need no more memory than few. What is one
image, and which p-value it has, is the rule of `analysis.distinct`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from volgrowth.analysis.calibration.evidence import Calibration
from volgrowth.analysis.calibration.held_out import Kinds
from volgrowth.analysis.calibration.screening import Screening
from volgrowth.analysis.distinct import identical_rows, strongest_rows
from volgrowth.analysis.duplicates import duplicate_clusters
from volgrowth.analysis.embeddings import Embeddings
from volgrowth.analysis.parts.database import Database, open_database
from volgrowth.analysis.parts.fitting import fit_judge
from volgrowth.analysis.parts.judge import ScoreTable
from volgrowth.analysis.parts.rows import Rows, RowsInMemory
from volgrowth.analysis.parts.survey import sample_rows, survey_rows
from volgrowth.analysis.parts.verdicts import SEEN, Verdicts
from volgrowth.errors import OutputError
from volgrowth.records import FINDINGS


@dataclass(frozen=True)
class Analysis:
    """What is known of an audit beside the findings of its rows.

    Attributes:
        holdout: findings of the held-out images, with the columns of `records.FINDINGS`; None without any.
        calibration: of the evidence; None if there are too few images to calibrate.
        screening: of a cascade; None of a whole audit.
        difference: the regressor in which audited and held-out images differ most, and the distance; None if they can
            pass for one kind (`held_out.Kinds`).
        new_held_out: number of held-out images that were scored, not of one colour, and neither are nor look like
            audited ones.
        embeddings: numbers of the embeddings by which near duplicates were found as well; None without any.
    """

    holdout: pa.Table | None
    calibration: Calibration | None
    screening: Screening | None = None
    difference: tuple[str, float] | None = None
    new_held_out: int = 0
    embeddings: dict[str, Any] | None = None


@dataclass(frozen=True)
class WholeAnalysis(Analysis):
    """The analysis of rows that are in memory.

    Attributes:
        findings: of the audited images, with the columns of `records.FINDINGS`.
    """

    findings: pa.Table = field(default_factory=FINDINGS.empty_table)


@dataclass(frozen=True)
class Reference:
    """Scores of the same rows under a reference model, whose growth becomes one more regressor."""

    scores: pa.Table
    holdout: pa.Table | None


class Decided:
    """The verdicts of all rows of an audit. The findings are made a part at a time, while the database is open.

    Attributes:
        calibration: of the evidence; None if there are too few images to calibrate.
        screening: of a cascade; None of a whole audit.
        difference, new_held_out: as in `Analysis`.
    """

    def __init__(
        self,
        database: Database,
        rows: Rows,
        holdout: ScoreTable | None,
        screen_share: float | None,
        embeddings: Embeddings | None = None,
    ):
        self._rows, self._holdout = rows, holdout
        survey = survey_rows(database, rows.scores(), None if holdout is None else holdout.scores, embeddings)
        self._embeddings = None if embeddings is None else embeddings.numbers
        judge = fit_judge(survey, holdout, lambda most: rows.some(sample_rows(database, most)), screen_share)
        database.run("DROP TABLE seen")
        kinds = None if holdout is None else Kinds(holdout.scores)
        self._judged, self._verdicts = rows.judged(judge), Verdicts(database, judge, kinds)
        for part in self._judged(SEEN):
            self._verdicts.see(part)
        self._verdicts.decide()
        self.screening, self.calibration, bulk = self._verdicts.screening(), judge.calibration, self._verdicts.bulk
        if self.calibration is not None and bulk is not None:
            self.calibration = replace(self.calibration, bulk=bulk.difference())
        self.difference = None if kinds is None else kinds.most_different()
        self.new_held_out = survey.overlap.new if survey.overlap else 0

    def findings(self) -> Iterator[pa.Table]:
        """Yield the findings of all rows, some at a time."""
        for part in self._judged():
            yield self._verdicts.findings(part)

    def analysis(self) -> Analysis:
        """Return what is known beside the findings of the audited images."""
        held = None if self._holdout is None else _holdout_findings(self._holdout, self.calibration)
        return Analysis(held, self.calibration, self.screening, self.difference, self.new_held_out, self._embeddings)


def analyse(
    scores: pa.Table,
    holdout_scores: pa.Table | None = None,
    reference: Reference | None = None,
    screen_share: float | None = None,
) -> WholeAnalysis:
    """Calibrate scores and find duplicates, in memory.

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
    rows, holdout = RowsInMemory(scores, reference and reference.scores), None
    if holdout_scores is not None:
        holdout = ScoreTable(holdout_scores, reference and reference.holdout)
    with open_database(rows.count) as database:
        found = Decided(database, rows, holdout, screen_share)
        return WholeAnalysis(**vars(found.analysis()), findings=pa.concat_tables(found.findings()))


def check_columns(findings: pa.Schema, url: str, *names: str) -> None:
    """Check that the findings of an audit have some columns.

    Args:
        findings: the columns that the audit has.
        url: of the audit.
        *names: of the columns that are needed.

    Raises:
        OutputError: an older version wrote them.
    """
    lacking = sorted(set(names) - set(findings.names))
    if lacking:
        raise OutputError(
            f"findings in {url} has no column {lacking[0]} (an older version wrote it): delete {url}/_SUCCESS and run "
            f"the same `volgrowth audit` again, which keeps the scores"
        )


def _holdout_findings(holdout: ScoreTable, calibration: Calibration | None) -> pa.Table:
    """Return the findings of the held-out images; those that are audited as well have no evidence."""
    scores, rows = holdout.scores, len(holdout.scores)
    cluster, copies = duplicate_clusters(scores)
    known = {
        **{name: scores.column(name) for name in ("row", "image_id", "growth", "growth_contrast")},
        "cluster": pa.array(cluster),
        "copies": pa.array(copies.astype(np.int32)),
        "identical": pa.array(identical_rows(scores)),
    }
    if calibration and calibration.holdout_evidence is not None:
        known |= holdout.expectation(calibration.main.expected)
        content = holdout.content[calibration.rows]
        evidence = dict(zip(content.tolist(), calibration.holdout_evidence.tolist(), strict=True))
        known["evidence"] = holdout.full(np.array([evidence.get(each, np.nan) for each in holdout.content.tolist()]))
    table = pa.table([known.get(field.name, pa.nulls(rows, field.type)) for field in FINDINGS], schema=FINDINGS)
    place = FINDINGS.get_field_index("strongest")
    return table.set_column(place, FINDINGS.field(place), pa.array(strongest_rows(table)))
