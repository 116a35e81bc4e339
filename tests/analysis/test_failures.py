"""Reasons of failed rows are counted by what they say, and exemplified."""

import pyarrow as pa

from tests.support.tables import failed, scores
from volgrowth.analysis.failures import MOST, count_failures
from volgrowth.report.words import failure_sentences

BAD = [
    failed(error="6 encoded bytes, more than the limit of 5 (max_bytes)", status="too_large"),
    {},
    failed(error="the value is null"),
    failed(error="the file does not exist"),
    failed(error="the file does not exist"),
    failed(error="70 encoded bytes, more than the limit of 5 (max_bytes)", status="too_large"),
    failed(error="8,123 encoded bytes, more than the limit of 5 (max_bytes)", status="too_large"),
    failed(error="class 'x y' is none of the model's", status="wrong_condition"),
    failed(error="class 12 is none of the model's", status="wrong_condition"),
]


def table(*rows: dict) -> pa.Table:
    return scores(*({"source": f"a.parquet#{number}", **row} for number, row in enumerate(rows)))


def test_the_most_frequent_reason_comes_first_with_its_first_row():
    found = count_failures(table(*BAD))
    assert (found["rows"], found["other_rows"]) == (8, 0)
    assert [(each["rows"], each["status"], each["row"], each["source"]) for each in found["reasons"]] == [
        (3, "too_large", 0, "a.parquet#0"),
        (2, "undecodable", 3, "a.parquet#3"),
        (2, "wrong_condition", 7, "a.parquet#7"),
        (1, "undecodable", 2, "a.parquet#2"),
    ]
    assert found["reasons"][1]["error"] == "the file does not exist"
    assert count_failures(table({}, {})) == {"rows": 0, "reasons": [], "other_rows": 0}


def test_rare_reasons_are_counted_together():
    rows = [failed(error=f"reason {letter}") for letter in "abcdefgh"] + [failed(error=None)]
    found = count_failures(table(*rows))
    assert len(found["reasons"]) == MOST
    assert found["other_rows"] == 9 - MOST


def test_sentences_name_both_sets_and_spell_out_what_hides():
    odd = failed(error="broken \x1b[2J header", source="a\nb")
    summary = {"failures": {"audited": count_failures(table(*BAD)), "held_out": count_failures(scores(odd))}}
    said = failure_sentences(summary)
    assert said[0] == (
        "3 rows too large, such as row 0 (a.parquet#0): 6 encoded bytes, more than the limit of 5 (max_bytes)"
    )
    assert said[-1] == "1 held-out row undecodable, such as row 0 (a[U+000A]b): broken [U+001B][2J header"
    assert failure_sentences({}) == []
    rare = count_failures(table(*(failed(error=f"reason {letter}") for letter in "abcdefgh")))
    assert failure_sentences({"failures": {"audited": rare, "held_out": None}})[-1] == (
        f"{8 - MOST} rows for rarer reasons, which scores have as error"
    )
