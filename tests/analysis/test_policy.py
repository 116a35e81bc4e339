"""Which action a policy gives each row."""

import re
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.test_summary import summarized
from tests.support.tables import many, scores
from volgrowth.analysis.deciding import Curation, decide_actions
from volgrowth.analysis.judging import JudgedTables, ranking_column
from volgrowth.analysis.policy import CURATION, Action, CurationPolicy
from volgrowth.errors import OutputError, UsageError
from volgrowth.records import FINDINGS

PLAIN = {"growth": 1.0, "expected_growth": 1.0, "excess_growth": 0.0, "p_value": 0.5, "q_value": 0.9, "copies": 1}
NO_SCORE = dict.fromkeys(PLAIN)


def tables(*rows: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """Findings, and the two columns of scores; a row is plain, and of its own cluster, unless it says otherwise."""
    findings = [
        {**PLAIN, "row": row, "image_id": f"id-{row}", "cluster": row, "outside_range": False, **changes}
        for row, changes in enumerate(rows)
    ]
    known = [{name: value for name, value in row.items() if name in FINDINGS.names} for row in findings]
    scores = {
        "source": [f"a.parquet#{row}" for row in range(len(rows))],
        "status": [changes.get("status", "ok") for changes in rows],
    }
    return pa.Table.from_pylist(known, FINDINGS), pa.table(scores)


HIGH: dict[str, Any] = {"q_value": 0.01, "p_value": 0.001, "excess_growth": 8.0}
PICTURES: tuple[dict[str, Any], ...] = (
    {},
    {**HIGH, "cluster": 1},
    {"cluster": 1, "excess_growth": 2.0},  # a near duplicate that is not flagged by itself
    {**HIGH, "excess_growth": 9.0},
    {"excess_growth": 50.0, "q_value": 1.0, "p_value": 1.0, "outside_range": True},
    {**NO_SCORE, "status": "undecodable", "outside_range": None},
    {"verified_hits": 3},
    {**HIGH, "excess_growth": 7.0, "cluster": 1},
)


def decided(
    policy: CurationPolicy, *rows: dict[str, Any], proven: tuple[int, ...] | None = None
) -> list[dict[str, Any]]:
    verification = None if proven is None else {"rows": list(proven)}
    table = decide_actions(*tables(*(rows or PICTURES)), policy, "digest", verification)
    assert table.schema.equals(CURATION)
    assert set(table["audit"].to_pylist()) == {"digest"}
    return table.to_pylist()


def actions(policy: CurationPolicy, *rows: dict[str, Any]) -> str:
    """The first letter of each row's action; w for downweight."""
    return "".join({"downweight": "w"}.get(row["action"], row["action"][0]) for row in decided(policy, *rows))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (CurationPolicy("fdr", 0.1, "drop"), "kdddrrrd"),
        (CurationPolicy("fdr", 0.1, "dedupe"), "kkdrrrrd"),
        (CurationPolicy("fdr", 0.1, "downweight"), "kwwrrrrw"),
        (CurationPolicy("fdr", 0.001, "drop"), "kkkkrrrk"),
        (CurationPolicy("top_k", 0, "drop"), "kkkkrrrk"),
        (CurationPolicy("top_k", 1, "drop"), "kkkdrrrk"),
        (CurationPolicy("top_k", 2, "drop"), "kdddrrrd"),
        (CurationPolicy("top_k", 99, "drop"), "ddddrrdd"),
        (CurationPolicy("max_score", 8.5, "drop"), "kkkdrrrk"),
        (CurationPolicy("max_score", 7.5, "drop"), "kdddrrrd"),
        (CurationPolicy("max_score", 9.0, "drop"), "kkkkrrrk"),
        (CurationPolicy("max_score", -1.0, "drop"), "ddddrrdd"),
    ],
)
def test_what_is_flagged_and_what_is_done(policy, expected):
    assert actions(policy) == expected


def test_a_cluster_weighs_one_copy_and_everything_else_one():
    rows = decided(CurationPolicy("fdr", 0.1, "downweight"))
    assert [row["weight"] for row in rows] == [1, 1 / 3, 1 / 3, 1, 1, 1, 1, 1 / 3]
    assert [row["weight"] for row in decided(CurationPolicy("fdr", 0.1, "drop"))] == [1, 0, 0, 0, 1, 1, 1, 0]


def test_reasons_say_why():
    reasons = [row["reason"] for row in decided(CurationPolicy("fdr", 0.1, "dedupe"))]
    assert reasons == [
        "",
        "q_value 0.01 <= 0.1; one of 3 in its cluster, and the one that stays",
        "in the cluster of row 1: q_value 0.01 <= 0.1; one of 3 in its cluster",
        "q_value 0.01 <= 0.1; it has no copies to take away",
        "not judged: outside the range of the calibration",
        "not judged: it has no score (undecodable)",
        "samples hit it, too few to prove a copy",
        "q_value 0.01 <= 0.1; one of 3 in its cluster",
    ]
    assert decided(CurationPolicy("top_k", 1))[3]["reason"] == "excess_growth 9, among the 1 highest"
    assert decided(CurationPolicy("top_k", 1234567.0))[3]["reason"] == "excess_growth 9, among the 1234567 highest"
    assert decided(CurationPolicy("max_score", 8.5))[3]["reason"] == "excess_growth 9 > 8.5"


@pytest.mark.parametrize(
    ("policy", "expected", "reason"),
    [
        (CurationPolicy("fdr", 0.001), "kkkrrdd", "in the cluster of row 6: samples reproduced it"),
        (CurationPolicy("fdr", 0.1), "kddrrdd", "in the cluster of row 6: samples reproduced it"),
        (CurationPolicy("top_k", 0), "kkkrrrr", "samples reproduced it, and it is not flagged"),
    ],
)
def test_what_samples_reproduced_is_found_without_a_flag(policy, expected, reason):
    """Row 6 is reproduced and of one cluster with row 5; row 3 had a hit, but too few, and row 4 is outside."""
    rows = [*PICTURES[:3], {"verified_hits": 1}, PICTURES[4], {}, {"verified_hits": 5, "cluster": 5}]
    found = decided(policy, *rows, proven=(6,))
    assert ("".join(row["action"][0] for row in found), found[5]["reason"]) == (expected, reason)
    assert found[3]["reason"] == "samples hit it, too few to prove a copy"


def test_flagged_and_reproduced_gives_both_reasons():
    (row,) = decided(CurationPolicy("fdr", 0.1), HIGH, proven=(0,))
    assert row["reason"] == "q_value 0.01 <= 0.1 and samples reproduced it"


def test_a_proof_needs_no_calibration():
    rows = [{**NO_SCORE, "growth": 3.0, "outside_range": None}] * 3
    assert [row["action"] for row in decided(CurationPolicy("fdr", 0.1), *rows, proven=(1,))] == [
        "keep",
        "drop",
        "keep",
    ]


def test_what_is_allowed_stays_and_what_opted_out_goes_with_its_cluster():
    allow, opt_out = frozenset({"id-2", "a.parquet#3"}), frozenset({"id-0"})
    assert actions(CurationPolicy("fdr", 0.1, "drop", allow, opt_out)) == "ddkkrrrd"
    assert actions(CurationPolicy("fdr", 0.1, "dedupe", allow, opt_out)) == "ddkkrrrd"
    assert actions(CurationPolicy("fdr", 0.1, "downweight", allow, opt_out)) == "dwkkrrrw"
    assert (
        actions(CurationPolicy("top_k", 0, opt_out=frozenset({"id-7", "id-5"}), allow=frozenset({"id-1"})))
        == "kkdkrdrd"
    )
    reasons = {row["row"]: row["reason"] for row in decided(CurationPolicy("top_k", 0, opt_out=frozenset({"id-7"})))}
    assert (reasons[7], reasons[1]) == ("opted out", "an image of its cluster, 1, opted out")


def test_an_id_is_of_all_rows_that_have_it():
    rows = [{"image_id": "same"}, {}, {"image_id": "same"}]
    assert actions(CurationPolicy("top_k", 0, opt_out=frozenset({"same"})), *rows) == "dkd"


def test_unknown_and_contradictory_ids_are_refused():
    with pytest.raises(UsageError, match=r"--allow names 'nobody' \(and 1 more\), which is neither an image_id nor"):
        decided(CurationPolicy("fdr", 0.1, allow=frozenset({"nobody", "noone", "id-3"})))
    with pytest.raises(UsageError, match="--opt-out names 'nobody', which"):
        decided(CurationPolicy("fdr", 0.1, opt_out=frozenset({"nobody"})))
    with pytest.raises(UsageError, match=r"row 3 \(id-3\) is both in --allow and in --opt-out"):
        decided(CurationPolicy("fdr", 0.1, allow=frozenset({"id-3"}), opt_out=frozenset({"a.parquet#3"})))


def test_policies_that_make_no_sense():
    for by, limit in (("fdr", 0), ("fdr", 1), ("fdr", np.nan), ("top_k", -1), ("max_score", np.nan)):
        with pytest.raises(UsageError, match=f"--{by.replace('_', '-')} .*: expected"):
            CurationPolicy(by, limit)  # type: ignore[arg-type]
    for limit in (0.5, 2.5, np.inf, np.nan):
        with pytest.raises(UsageError, match=f"--top-k {limit:g}: expected a whole number, 0 or more"):
            CurationPolicy("top_k", limit)
    with pytest.raises(UsageError, match="by 'top-k' is no rule of a curation policy: expected fdr, top_k or max_sc"):
        CurationPolicy("top-k", 2)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--action burn: expected drop, dedupe or downweight"):
        CurationPolicy("fdr", 0.1, "burn")  # type: ignore[arg-type]


def test_without_calibration_only_opt_outs_can_be_listed():
    rows = [{**NO_SCORE, "growth": 3.0, "outside_range": None}] * 3
    for policy in (CurationPolicy("fdr", 0.1), CurationPolicy("top_k", 1), CurationPolicy("max_score", 0)):
        with pytest.raises(OutputError, match="no row of this audit has a calibrated score"):
            decided(policy, *rows)
    assert actions(CurationPolicy("top_k", 0, opt_out=frozenset({"id-1"})), *rows) == "kdk"


pictures = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([0.001, 0.05, 0.5]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=25,
)


@given(pictures, st.sampled_from(["drop", "dedupe", "downweight"]))
@settings(max_examples=150, deadline=None)
def test_every_cluster_is_treated_as_one_picture(drawn, action):
    first = {key: row for row, (key, *_) in reversed(list(enumerate(drawn)))}
    rows = [{"cluster": first[key], "q_value": q, "excess_growth": 1 / q} for key, q, _, _ in drawn]
    allow = frozenset(f"id-{row}" for row, (*_, allowed, gone) in enumerate(drawn) if allowed and not gone)
    opt_out = frozenset(f"id-{row}" for row, (*_, gone) in enumerate(drawn) if gone)
    found = decided(CurationPolicy("fdr", 0.1, action, allow, opt_out), *rows)
    assert [row["row"] for row in found] == list(range(len(rows)))
    for cluster in set(first.values()):
        members = [row for row in found if row["cluster"] == cluster]
        free = [row for row in members if row["image_id"] not in allow]
        said = Counter(row["action"] for row in free)
        assert all(row["action"] == Action.KEEP and row["weight"] == 1 for row in members if row["image_id"] in allow)
        gone = any(row["image_id"] in opt_out for row in members)
        flagged = any(row["q_value"] <= 0.1 for row in members)
        if gone or (flagged and action == "drop"):
            assert said == {"drop": len(free)} or not free
        elif not flagged:
            assert said == {"keep": len(free)} or not free
        elif action == "downweight" and len(members) > 1:
            assert sum(row["weight"] for row in free) == pytest.approx(len(free) / len(members))
        elif len(members) > 1:
            kept = [row["row"] for row in members if row["action"] != Action.DROP]
            assert kept == ([row["row"] for row in members if row["image_id"] in allow] or [cluster])
        else:
            assert said == {"review": len(free)} or not free


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    """Summary and audit of 200 images, of which ten stand out, one of them with a near duplicate: no eleventh."""
    rows, held = many(200), [{**row, "phash": 10_000 + k} for k, row in enumerate(many(600, seed=9))]
    for row in rows[:10]:
        row["growth"] += 100
    rows[0] |= {"phash": 1, "mean": 0.0}
    return summarized(tmp_path_factory.mktemp("judged"), scores(*rows, {**rows[0], "content_hash": 7}), scores(*held))[
        :2
    ]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            CurationPolicy("top_k", 10),
            r"of these 10 images at most [0-4] are innocent, with 90% confidence",
        ),
        (CurationPolicy("max_score", 20.0), r"of these 10 images at most [0-4] are innocent"),
        (CurationPolicy("top_k", 110), r"of these 110 images at most (9\d|10\d) are innocent"),
        (CurationPolicy("top_k", 0), None),
        (CurationPolicy("fdr", 0.1), None),
    ],
    ids=lambda value: f"{value.by} {value.limit:g}" if isinstance(value, CurationPolicy) else "",
)
def test_who_chooses_a_number_is_told_how_many_are_innocent_at_most(
    judged: tuple[dict[str, Any], Any], policy: CurationPolicy, said: str | None
) -> None:
    summary, audit = judged
    made = Curation(JudgedTables(audit.findings, audit.scores.select(["source", "status"]), None), policy)
    found = made.bound_innocent(summary["detection"])
    assert (found is None) == (said is None)
    assert said is None or re.match(said, found or "")
    if said:
        older = {name: value for name, value in summary["detection"].items() if name != "trials"}
        assert "was not bounded by the version" in (made.bound_innocent(older) or "")
        assert "without held-out images" in (made.bound_innocent({"null": "x"}) or "")


def test_evidence_ranks_where_there_is_any() -> None:
    """Findings of an older version have none: excess growth takes its place, as in the tests above."""
    rows = [{"excess_growth": 9.0, "evidence": 1.0}, {"excess_growth": 1.0, "evidence": 9.0}]
    ranked = pa.Table.from_pylist(
        [{**PLAIN, "row": i, "cluster": i, "identical": i, **row} for i, row in enumerate(rows)]
    )
    assert ranking_column(ranked) == "evidence"
    assert ranking_column(ranked.drop_columns(["evidence"])) == "excess_growth"
