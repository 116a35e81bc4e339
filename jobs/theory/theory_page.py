"""The page of the theory: what each experiment is about, in words, and what it measured."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from jobs.reproduce_paper.paper_page import cell, kind, provenance
from jobs.sections import Written
from jobs.theory.theory_words import AFTER, BEFORE, WORDS
from volgrowth.report.formats import duration


def markdown(sections: Sequence[Written]) -> str:
    """The page; pictures lie beside it under `theory/`."""
    lines = [BEFORE.strip(), ""]
    for section in sections:
        lines += [f"## {section.title}", "", WORDS[section.name].strip(), "", "**Measured.**", ""]
        lines += [f"- {line}" for line in section.findings]
        for chart in section.charts:
            lines += ["", f"![{chart['alt']}](theory/{section.name}-{chart['name']}.png)", "", f"*{chart['caption']}*"]
        for table in section.tables:
            lines += ["", table["caption"], "", *_table(table["columns"], table["rows"], table)]
        if section.differences:
            lines += ["", "What could not be reproduced, or is ours:", ""]
            lines += [f"- {line}" for line in section.differences]
        lines += ["", f"*What was run.* {section.setting} It took {duration(section.seconds)}.", ""]
    lines += [AFTER.strip(), "", "## Provenance", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in provenance(sections).items()]
    return "\n".join(lines) + "\n"


def _table(columns: list[str], rows: list[list[object]], table: dict[str, object]) -> list[str]:
    rule = "|".join("---:" if kind(table, column) == "figure" else "---" for column in range(len(columns)))
    # a bar in a cell would end it
    body = ["| " + " | ".join(cell(value).replace("|", "\\|") for value in row) + " |" for row in rows]
    head = "| " + " | ".join(columns) + " |"
    return [head, f"|{rule}|", *body]


def publish(sections: Sequence[Written], folder: Path) -> Path:
    """Write `theory.md` and its pictures under `theory/`. Returns the page."""
    pictures = folder / "theory"
    pictures.mkdir(exist_ok=True)
    for section in sections:
        for chart in section.charts:
            name = chart["name"]
            shutil.copy(folder / section.name / f"{name}.png", pictures / f"{section.name}-{name}.png")
    page = folder / "theory.md"
    page.write_text(markdown(sections))
    return page
