from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.tables import many, scores
from volgrowth.analysis.calibration.complexity import regressors
from volgrowth.analysis.controls import match_controls
from volgrowth.analysis.findings import analyse
from volgrowth.analysis.judging import JudgedTables, Judgement
from volgrowth.analysis.verification import returns
from volgrowth.analysis.verification.generated import choose_rated, members_of
from volgrowth.analysis.verification.returns import (
    DRAWS,
    LEVELS,
    ReturnTargets,
    choose_targets,
    return_shares,
    returns_table,
)


def test_an_image_returns_where_its_decoded_versions_hit_it_or_a_copy_of_it():
    targets = ReturnTargets(np.array([3]), np.array([1]), np.array([0, 1]))  # row 3 is a copy of row 0
    hit = np.full((2, len(LEVELS), DRAWS), -1)
    hit[0, :2] = 0
    hit[0, 2, 0] = 0
    hit[1, 0, :2] = 1
    hit[1, 1] = 0  # another image
    table = returns_table(targets, hit.ravel())
    assert table["row"].to_pylist() == [3] * len(LEVELS) + [1] * len(LEVELS)
    assert table["matched_row"].to_pylist() == [1] * len(LEVELS) + [3] * len(LEVELS)
    shares = return_shares(table)
    assert shares is not None
    assert shares["images"] == 1
    assert shares["flagged"][:4] == [1, 1, 1 / DRAWS, 0]
    assert shares["controls"][:2] == [2 / DRAWS, 0]


def test_there_are_no_shares_without_targets():
    nobody = ReturnTargets(*[np.array([], int)] * 3)
    assert return_shares(returns_table(nobody, np.array([], int))) is None


class InParts(JudgedTables):
    """Judged tables of which a part has 30 rows."""

    def parts(self, findings: Sequence[str] = (), scores: Sequence[str] = ()) -> Iterator[Judgement]:
        for start in range(0, len(self.findings), 30):
            yield self.pictures.judge(self.findings.slice(start, 30))


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    """Scores and findings of 300 rows, of which 20 are flagged and some are copies."""
    measured = many(300)
    for row in range(20):
        measured[row]["growth"] += 100 + row
    for row, original in ((250, 3), (251, 3), (40, 200)):
        measured[row] = measured[original]
    table = scores(*measured)
    return table, analyse(table, scores(*many(400, seed=9))).findings


def test_targets_are_chosen_in_parts_as_from_whole_tables(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table, findings = tables
    column = {name: findings[name].to_numpy(zero_copy_only=False) for name in findings.column_names}
    usable = findings["excess_growth"].is_valid().to_numpy() & column["strongest"].astype(bool)
    flagged = column["memorized"] == True  # noqa: E712
    rows = np.flatnonzero(usable & flagged)
    rows = rows[np.argsort(-column["evidence"][rows], kind="stable")]
    allowed = np.flatnonzero(usable & ~np.isin(column["cluster"], column["cluster"][flagged]))
    partners = match_controls(regressors(table), rows, allowed)
    found = choose_targets(InParts(findings, table, None), len(table))
    assert len(found.flagged) == 20
    assert found.flagged.tolist() == rows.tolist()
    assert found.controls.tolist() == partners.tolist()
    assert found.identical.tolist() == column["identical"][found.rows].tolist()
    monkeypatch.setattr(returns, "ALLOWED", 100)  # of more rows controls are a random part
    some = choose_targets(InParts(findings, table, None), len(table))
    assert some.flagged.tolist() == rows.tolist()
    assert 0 < len({*some.controls.tolist()} & {*allowed.tolist()}) == 20


def test_rated_pictures_and_their_members_are_found_in_parts(tables: Any) -> None:
    table, findings = tables
    rated, _ = choose_rated(InParts(findings, table, {"rows": [200, 40]}))
    evidence = findings["evidence"].to_numpy()[rated["row"].to_numpy()]
    assert len(rated) == 21
    assert (np.diff(evidence) <= 0).all()
    members = members_of([findings.slice(0, 100), findings.slice(100)], rated)
    for row, own in members.items():
        cluster = findings["cluster"][row].as_py()
        there = findings.filter(pa.array(findings["cluster"].to_numpy() == cluster))
        assert own[0] == row
        images = findings["identical"].to_numpy()[own]
        assert sorted(images.tolist()) == sorted(set(there["identical"].to_pylist()))
