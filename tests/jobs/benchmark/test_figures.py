"""The figures of the bench's pages: those of docs/ are drawn of the tables that stand there, and are shown."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jobs.benchmark.figures import FIGURES, draw_figures, drawn_of, first_number, means_by_place
from jobs.charts import save_figure
from jobs.pages import DOCS, fill_page


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("0.9998 (0.9996–1.0000)", 0.9998), (1234, 1234), ("5% (5 to 5)", 5), ("−2.59", -2.59), ("1,530 passes", 1530)],
)
def test_a_cell_s_number_is_its_first(cell: object, expected: float) -> None:
    assert first_number(cell) == expected


@pytest.mark.parametrize("cell", ["–", None, "not measured"])
def test_a_cell_without_a_number_is_no_number(cell: object) -> None:
    assert np.isnan(first_number(cell))


def test_seeds_of_a_case_are_one_point() -> None:
    rows = [{"level": "0.1", "AUROC": "0.9"}, {"level": "0.3", "AUROC": "0.5"}, {"level": "0.1", "AUROC": "1.0"}]
    places, means = means_by_place(rows, "level", "AUROC")
    assert places == [0.1, 0.3]
    np.testing.assert_allclose(means, [0.95, 0.5])


@pytest.mark.parametrize(("page", "command", "name", "tables", "draw"), FIGURES)
def test_a_committed_figure_is_drawn_of_the_table_of_its_page(
    page: str, command: str, name: str, tables: list[str], draw: Callable[..., Figure]
) -> None:
    rows, digest = drawn_of(DOCS / f"{page}.md", command, tables)
    link = f"({page}/{command}-{name}.png)"
    assert link in (DOCS / f"{page}.md").read_text(encoding="utf-8")
    with Image.open(DOCS / page / f"{command}-{name}.png") as figure:
        assert figure.info["Source"] == digest, "run `python jobs/benchmark.py figures --output docs`"
    for axes in draw(*rows).axes:
        drawn = np.concatenate([np.ravel(line.get_xydata()) for line in axes.lines])
        assert np.isfinite(drawn).sum() >= 4


@pytest.mark.parametrize(("page", "command", "name", "tables", "draw"), FIGURES)
def test_what_was_not_measured_is_left_out_of_a_figure(
    page: str, command: str, name: str, tables: list[str], draw: Callable[..., Figure], tmp_path: Path
) -> None:
    rows, _ = drawn_of(DOCS / f"{page}.md", command, tables)
    blank = [[{column: unmeasured(column, cell) for column, cell in row.items()} for row in table] for table in rows]
    save_figure(draw(*blank), tmp_path / "figure.png")


def unmeasured(column: str, cell: object) -> object:
    """Return a cell without its number, if it is one that a model may lack."""
    place = column in ("level", "trained on")
    return "–" if isinstance(cell, str) and re.match(r"[\d–−]", cell) and not place else cell


def test_only_figures_of_the_command_are_drawn_and_none_of_a_table_without_rows(tmp_path: Path) -> None:
    page = tmp_path / "truth.md"
    shutil.copyfile(DOCS / page.name, page)
    assert draw_figures(tmp_path, ["curation"]) == [tmp_path / "truth/curation-hits.png"]
    fill_page(page, {"curation-table": "*No rows.*"})
    assert draw_figures(tmp_path, ["curation"]) == []
