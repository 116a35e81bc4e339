"""The page writer: places are filled and prose is left alone; tables hold whatever a value holds."""

import math
import re
from pathlib import Path

import pytest

from jobs.pages import DOCS, fill_page, made_by, markdown_table, page_in, relative_command, table_cell


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "one.md"
    page.write_text("# One\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nProse.\n\n<!-- begin b --><!-- end b -->\n")
    fill_page(page, {"a": "new\n", "b": "| x |"})
    filled = page.read_text()
    assert filled == (
        "# One\n\n<!-- begin a -->\n\nnew\n\n<!-- end a -->\n\nProse.\n\n<!-- begin b -->\n\n| x |\n\n<!-- end b -->\n"
    )
    fill_page(page, {"a": "new", "b": "| x |"})
    assert page.read_text() == filled


def test_a_page_without_a_place_is_left_as_it_was(tmp_path: Path) -> None:
    page = tmp_path / "one.md"
    page.write_text("<!-- begin a --><!-- end a --> <!-- begin b -->")
    for missing in ("b", "c"):
        with pytest.raises(ValueError, match=f"no place for {missing}: expected the lines <!-- begin {missing} -->"):
            fill_page(page, {"a": "x", missing: "y"})
    assert page.read_text() == "<!-- begin a --><!-- end a --> <!-- begin b -->"


def test_a_folder_without_a_page_gets_the_one_of_docs_and_keeps_its_own(tmp_path: Path) -> None:
    page = page_in(tmp_path / "new", "theory")
    assert page.read_text() == (DOCS / "theory.md").read_text()
    page.write_text("mine")
    assert page_in(tmp_path / "new", "theory").read_text() == "mine"


def test_numbers_are_right_aligned_and_what_a_row_lacks_is_a_dash() -> None:
    assert markdown_table([{"name": "one", "count": 1234}, {"name": "two", "share": 0.5}]).splitlines() == [
        "| name | count | share |",
        "| --- | ---: | ---: |",
        "| one | 1,234 | – |",
        "| two | – | 0.500 |",
    ]
    assert markdown_table([(1, 0.25)], ["n", "share"], {"share": ".0%", "n": lambda n: f"{n} h"}).splitlines()[2] == (
        "| 1 h | 25% |"
    )


def test_bars_and_line_breaks_in_values_do_not_break_a_table() -> None:
    """Names of scores such as |J e| were cells of their own."""
    lines = markdown_table([("|J e|,\n norm", 1)], ["score|name", "n"]).splitlines()
    assert lines[0] == r"| score\|name | n |"
    assert lines[2] == r"| \|J e\|, norm | 1 |"
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (1234, "1,234"), (1e-20, "1.0e−20"), (0.5, "0.500"), ("x", "x"), (-3.0, "−3.00")],
)
def test_cells_read_as_numbers(value: object, shown: str) -> None:
    assert table_cell(value) == shown
    assert markdown_table([(math.nan,)], ["n"]).endswith("| – |")


def test_a_table_without_rows_says_so() -> None:
    assert markdown_table([]) == "*No rows.*"


def test_no_path_of_a_machine_is_in_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = str(Path.cwd() / "jobs" / "theory.py")
    command = relative_command([inside, "--output", "/home/someone/out", "--models=/srv/models", "--only", "a b"])
    assert command == "python jobs/theory.py --output out --models=models --only 'a b'"
    monkeypatch.setattr("sys.argv", ["/somewhere/jobs.py", "--output", "/elsewhere/out"])
    line = made_by(120.0, device="one H100", packages=("diffusers",))
    assert "in 2.0 min on one H100, with Python 3" in line
    assert ", diffusers " in line
    assert line.endswith("by* `python jobs.py --output out`")


@pytest.mark.parametrize("page", ["paper", "theory", "detection", "performance", "engine"])
def test_the_committed_pages_tell_no_path_of_a_machine(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text()
    assert re.findall(r"(?<![\w:/.])/(?:tmp|work|home|root|Users)/\S*", text) == []
    pictures = set(re.findall(rf"\]\({page}/(.*\.png)\)", text))
    assert pictures == {path.name for path in (DOCS / page).glob("*.png")}
