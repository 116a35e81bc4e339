"""Rows of later runs in the tables of a page: models that were measured again are replaced, and all else stays."""

import json
from pathlib import Path

from jobs.added_rows import add_rows, add_run, add_sentences, models_line, rows_in_markdown
from jobs.experiments import Outcome, publish_outcome
from jobs.pages import markdown_table, on_page


def test_a_table_is_read_as_it_was_written() -> None:
    rows = [
        {"case": "one", "seed": 1, "a|b": "x | y", "copies": 1234, "share": -0.5},
        {"case": "two", "seed": 2, "a|b": "–", "copies": None, "share": 41.25},
    ]
    read = rows_in_markdown(markdown_table(rows))
    assert read == rows
    assert markdown_table(read) == markdown_table(rows)
    assert rows_in_markdown(markdown_table([])) == []


def test_rows_of_a_model_are_replaced_and_cases_stay_together() -> None:
    def row(case: str, seed: int, level: str, value: int) -> dict[str, object]:
        return {"case": case, "seed": seed, "level": level, "value": value}

    earlier = [row("one", 2, "a", 1), row("one", 2, "b", 2), row("two", 1, "a", 3)]
    new = [row("one", 1, "a", 4), row("two", 1, "b", 5), row("three", 1, "a", 6)]
    found = [tuple(one.values()) for one in add_rows(earlier, new)]
    assert found == [
        ("one", 1, "a", 4),
        ("one", 2, "a", 1),
        ("one", 2, "b", 2),
        ("two", 1, "b", 5),
        ("three", 1, "a", 6),
    ]
    assert add_rows(earlier, []) == earlier
    assert add_rows([], new) == new


def test_a_table_with_a_column_for_each_model_gets_further_columns() -> None:
    earlier = [{"score": "loss", "one 1": ".9", "one 2": ".8"}, {"score": "growth", "one 1": ".7"}]
    new = [{"score": "loss", "one 2": ".6", "two 1": ".5"}, {"score": "other", "two 1": ".4"}]
    assert add_rows(earlier, new) == [
        {"score": "loss", "one 1": ".9", "one 2": ".6", "two 1": ".5"},
        {"score": "growth", "one 1": ".7"},
        {"score": "other", "two 1": ".4"},
    ]


def test_sentences_of_models_that_were_measured_are_replaced() -> None:
    earlier = [
        "one with seed 1: missed.",
        "one with seed 2: missed.",
        "two with seed 1: left out.",
        "All of 3 are met.",
    ]
    new = ["two with seed 1: missed.", "one with seed 3: left out.", "All of 5 are met."]
    assert add_sentences(earlier, new, {("one", 1)}, set()) == [
        "one with seed 2: missed.",
        "one with seed 3: left out.",
        "two with seed 1: missed.",
        "All of 5 are met.",
    ]


def test_a_model_that_the_page_knows_is_not_called_absent() -> None:
    absent = "Left out, since its model is not trained: {} with seed 1."
    earlier = ["one with seed 1: not judged.", absent.format("two"), absent.format("four")]
    new = [absent.format("one"), absent.format("three"), "two with seed 1: missed.", absent.format("four")]
    assert add_sentences(earlier, new, {("two", 1)}, {("three", 1)}) == [
        "one with seed 1: not judged.",
        "two with seed 1: missed.",
        absent.format("four"),
    ]


def test_a_run_names_its_models_until_they_are_measured_again() -> None:
    unnamed, made = "*Sizes.* a: 1.\n\n*Measured on Monday*", "*Measured on Tuesday*"
    first, second = {("b-1", 2), ("a", 1), ("a", 3)}, {("a", 3), ("c", 1)}
    runs = add_run(unnamed, f"{models_line(first)}\n\n{made}", first)
    assert runs == f"{unnamed}\n\n*Models.* a 1, 3; b-1 2.\n\n{made}"
    later = f"{models_line(second)}\n\n*Measured on Wednesday*"
    runs = add_run(runs, later, second)
    assert runs == f"{unnamed}\n\n*Models.* a 1; b-1 2.\n\n{made}\n\n{later}"
    assert add_run(runs, later, first | second) == f"{unnamed}\n\n{later}"
    assert add_run("", later, set()) == later
    assert models_line(set()) == ""


def test_a_run_is_added_to_a_page_and_both_say_when_they_were_made(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- begin {place} -->\n<!-- end {place} -->\n" for place in ("x", "x-table", "x-run")))
    for seed, add in ((1, False), (2, True), (1, True), (3, False)):
        row = {"case": "one", "seed": seed, "found": 7 + seed}
        outcome = Outcome([f"one with seed {seed}: said."], {"table": [row]}, {"size": seed})
        publish_outcome("page", "x", outcome, tmp_path, 1.0, add=add)
        rows, runs = rows_in_markdown(on_page(page, "x-table")), on_page(page, "x-run")
        if add:
            assert [one["seed"] for one in rows] == [1, 2]
            kept = json.loads((tmp_path / "page/x.json").read_text())
            assert (kept["tables"]["table"], kept["settings"]) == (rows, {"size": seed})
            assert on_page(page, "x") == "- one with seed 1: said.\n- one with seed 2: said."
            assert f"*Models.* one {seed}.\n\n*Sizes.* size: {seed}.\n\n*Measured on" in runs
            # the run of a model that was measured again is gone
            assert runs.count("*Models.*") == runs.count("*Measured on") == 2
    assert [one["seed"] for one in rows] == [3]
    assert runs.count("Measured on") == 1
