"""The presets as an audit judges them: the evidence of each family, its q-value, and its flag.

Scores of a case are put into the tables of an audit, one row for each family and one for each held-out image, and
analysed as those of an audit are. What is random in a preset is drawn from a seed, and tried over several of them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

import volgrowth.analysis
from jobs.benchmark.detection.compared_scores import SCORES, VOLUME, Preset, Score, user_score
from jobs.benchmark.detection.subjects import Columns, Subject, keep_derived, measure_shared
from volgrowth.analysis.duplicates import duplicate_clusters, is_flat
from volgrowth.analysis.findings import WholeAnalysis, analyse
from volgrowth.config import Measure, ScreenMeasure, StandardMeasure
from volgrowth.errors import UsageError
from volgrowth.records import SCORES as COLUMNS
from volgrowth.records import Status

DRAWS = 5


@dataclass(frozen=True)
class Contestant:
    """A preset that is judged by its evidence.

    Attributes:
        draws: seeds, from 0, of what is random in the measurement.
        source: the preset in one line, for the tables.
    """

    name: str
    measure: Measure
    draws: int
    source: str

    @property
    def nfe(self) -> int:
        """Network evaluations per image."""
        return self.measure.evaluations


CONTESTANTS = (
    Contestant("screen", ScreenMeasure(), DRAWS, "evidence of preset screen"),
    Contestant("standard", StandardMeasure(), DRAWS, "evidence of preset standard"),
    Contestant("volume", VOLUME, 1, "evidence of preset volume, with one probe"),
)


def choose_scores(names: Sequence[str] | None, own: Sequence[str]) -> list[Score | Contestant]:
    """Return the named presets and built-in scores, or all of them, and a user's own scores.

    Args:
        names: of presets and built-in scores; a name that is both stands for both. None for all.
        own: a user's functions, as `module:function`.

    Raises:
        UsageError: an unknown name, or a name that is no function.
    """
    known: list[Score | Contestant] = [*CONTESTANTS, *SCORES]
    unknown = sorted(set(names or ()) - {score.name for score in known})
    if unknown:
        expected = ", ".join(dict.fromkeys(score.name for score in known))
        raise UsageError(f"score {unknown[0]!r} is not built in: expected some of {expected}")
    chosen = [score for score in known if names is None or score.name in names]
    return [*chosen, *(user_score(name) for name in own)]


def audit_case(subject: Subject, measure: Measure, seed: int) -> Columns:
    """Return what an audit finds in a case: `evidence`, `q_value`, `outside_range` and `cluster` of each family.

    `holdout_evidence` is that of the held-out images, NaN for those that have none. An analysis takes longer than the
    measurement, so it is kept beside the model, under a name that changes with the scores and with the code.
    """
    columns = measure_shared(subject, Preset(measure, "growth"), seed)
    table = score_table(subject, columns)
    families = len(subject.positive)

    def derive() -> Columns:
        found = analyse(table[:families], table[families:])
        assert found.holdout is not None
        kept = {name: found.findings[name].to_numpy() for name in ("q_value", "outside_range")}
        return kept | {
            "evidence": evidence_of(found, table[:families]),
            "holdout_evidence": found.holdout["evidence"].to_numpy(),
        }

    kept = keep_derived(subject, f"audit of {sorted(columns)} {fingerprint(columns)} by {analysis_code()}", derive)
    return kept | {"cluster": duplicate_clusters(table[:families])[0]}


def evidence_of(found: WholeAnalysis, scores: pa.Table) -> np.ndarray:
    """Return the evidence of each row, (rows,); images of one colour, which have none, come last, as in a report."""
    evidence = found.findings["evidence"].to_numpy()
    return np.where(is_flat(scores), np.nanmin(evidence) - 1, evidence)


def fingerprint(columns: Columns) -> str:
    """Return a hash of the values of some columns."""
    return hashlib.sha256(b"".join(values.tobytes() for values in columns.values())).hexdigest()


@cache
def analysis_code() -> str:
    """Return a hash of the code that turns scores into findings."""
    folder = Path(volgrowth.analysis.__file__).parent
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))).hexdigest()


def score_table(subject: Subject, columns: Columns) -> pa.Table:
    """Return the scores of all images of a subject as an audit writes them, all of status `ok`."""
    rows = len(subject.pixels)
    known = {
        "row": np.arange(rows),
        "image_id": pa.array([f"{row}" for row in range(rows)]),
        "status": pa.array([Status.OK.value] * rows),
        **{name: values for name, values in columns.items() if values.ndim == 1},
        **{name: subject.described[name].combine_chunks() for name in subject.described.column_names},
    }
    fields = [
        pa.array(known[field.name]).cast(field.type) if field.name in known else pa.nulls(rows, field.type)
        for field in COLUMNS
    ]
    return pa.table(fields, schema=COLUMNS)
