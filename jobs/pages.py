"""The one writer of the measured pages under docs/: tables and sentences go between marks, prose stays in the Markdown.

A page's prose stands once, in docs/NAME.md. The file holds marked places,

    <!-- begin overfit-table -->
    ...
    <!-- end overfit-table -->

and an experiment replaces only what is between its marks: tables and sentences that carry measured numbers. Figures are
linked by the prose as `NAME/figure.png` beside the page; an experiment overwrites the file.

Which page an experiment fills is one rule: the page in its output folder, which is copied from docs/ if it is not there
yet. `--output docs` therefore updates the committed page, and any other folder gets a page of its own.
"""

import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from volgrowth.report.formats import duration, missing, score

DOCS = Path(__file__).parent.parent / "docs"

Format = str | Callable[[Any], str]
Row = Mapping[str, Any] | Sequence[Any]


def page_in(output: Path, name: str) -> Path:
    """Return the page `output`/`name`.md, copied from docs/ if the folder has none yet."""
    page = output / f"{name}.md"
    if not page.exists():
        output.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(DOCS / page.name, page)
    return page


def on_page(page: Path, place: str) -> str:
    """Return what stands between the marks of a place; nothing where the page has no such marks."""
    begin, end = f"<!-- begin {place} -->", f"<!-- end {place} -->"
    return page.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()


def fill_page(page: Path, places: Mapping[str, str]) -> None:
    """Replace what stands between the marks of each place, and nothing else; all places or none.

    Args:
        page: a Markdown file with a pair of marks for every place.
        places: Markdown by the name of its place.

    Raises:
        ValueError: the page lacks a mark.
    """
    text = page.read_text(encoding="utf-8")
    for name, content in places.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not opened or not closed:
            raise ValueError(f"{page} has no place for {name}: expected the lines {begin} and {end}; add both")
        text = f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"
    partial = page.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(page)


def markdown_table(
    rows: Sequence[Row], columns: Sequence[str] | None = None, formats: Mapping[str, Format] | None = None
) -> str:
    """Return rows as a Markdown table. Columns without any text are right-aligned.

    Args:
        rows: mappings from column to value, or sequences of values in the order of `columns`. A missing key, None and
            non-finite numbers show as a dash.
        columns: headings in order; by default the keys of the rows as they first appear.
        formats: for a column either a format specification such as ".3f" or a function from value to text. Others show
            text as it is, counts with thousands separated, and measured quantities with three or four figures.
    """
    if not rows:
        return "*No rows.*"
    if columns is None:
        columns = list(dict.fromkeys(key for row in rows if isinstance(row, Mapping) for key in row))
    values = [[row.get(name) for name in columns] if isinstance(row, Mapping) else list(row) for row in rows]
    chosen = [(formats or {}).get(name, table_cell) for name in columns]
    numeric = [not any(isinstance(row[k], str) for row in values) for k in range(len(columns))]
    lines = [list(columns), ["---:" if right else "---" for right in numeric]]
    lines += [[_formatted(*pair) for pair in zip(row, chosen, strict=True)] for row in values]
    escaped = [[re.sub(r"\s*\n\s*", " ", cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def listed(values: Iterable[Any]) -> str:
    """Return values as text, one after the other."""
    return ", ".join(map(str, values)) or "none"


def table_cell(value: Any) -> str:
    """Return a value as a reader wants it: text as it is, 1,234 for counts, three or four figures for measurements."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return "0" if value == 0 else score(value)


def _formatted(value: Any, form: Format) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    if missing(value):
        return score(None)
    return form(value) if callable(form) else format(value, form)


def made_by(seconds: float | None = None, *, device: str | None = None, packages: Sequence[str] = ()) -> str:
    """Return the line that says what made the numbers above it: date, device, versions, command and time.

    Args:
        seconds: time taken; None leaves it out.
        device: name of the device; the CPU and the threads that torch uses by default.
        packages: installed packages whose versions decide the numbers, beside volgrowth, Python, torch and numpy.
    """
    names = dict.fromkeys(("volgrowth", "torch", "numpy", *packages))
    versions = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])
    took = "" if seconds is None else f" in {duration(seconds)}"
    return (
        f"*Measured on {datetime.now(UTC):%d %B %Y}{took} on {device or _processor()}, with {versions}, by* "
        f"`{relative_command(sys.argv)}`"
    )


def relative_command(arguments: Sequence[str]) -> str:
    """Return a command line in which no path tells of the machine: paths are relative, or a last component alone."""
    return shlex.join(["python", *(re.sub(r"(^|=)(/.*)", _relative, argument) for argument in arguments)])


def _relative(found: re.Match[str]) -> str:
    path = Path(found[2])
    inside = path.is_relative_to(Path.cwd())
    return found[1] + (str(path.relative_to(Path.cwd())) if inside else path.name)


def _processor() -> str:
    return f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} cores"
