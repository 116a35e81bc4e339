"""Named experiments that fill a page of docs/, and the command line that runs them.

An experiment takes a setting and returns an `Outcome`. Each is published as soon as it is done, so a run that was
stopped goes on with `--only` the rest, and the page keeps what it had for the others.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.figure import Figure

from jobs.added_rows import add_rows, add_run, add_sentences, models_in, models_line, models_said, rows_in_markdown
from jobs.charts import save_figure
from jobs.pages import fill_page, made_by, markdown_table, on_page, page_in
from volgrowth.plain import print_plain

Rows = Sequence[Mapping[str, Any]]
Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Outcome:
    """What one experiment measured.

    Attributes:
        sentences: what the numbers say, for the place NAME of the page.
        tables: rows by the name of their table, for the places NAME-TABLE.
        settings: sizes of the run by their names, for the place NAME-run, which also says what made the numbers.
        figures: by the name of their file, which the page links as PAGE/NAME-FIGURE.png.
        stored: further rows, which the page does not show.
    """

    sentences: Sequence[str]
    tables: Mapping[str, Rows]
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    stored: Mapping[str, Rows] = field(default_factory=dict)


def experiment_parser(page: str, description: str, names: Sequence[str]) -> argparse.ArgumentParser:
    """Return a command line with --output, --quick and --only some of the named experiments."""
    parser = argparse.ArgumentParser(prog=page, description=description)
    parser.add_argument(
        "--output", type=Path, required=True, help=f"folder for the page; --output docs updates docs/{page}.md"
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a look")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    return parser


def run_experiments(
    page: str,
    experiments: Mapping[str, Callable[[Setting], Outcome]],
    only: Sequence[str],
    setting: Setting,
    output: Path,
) -> Path:
    """Run experiments one after the other and fill their places in the page. Returns the page."""
    for name in only:
        say(f"{name}: {(experiments[name].__doc__ or '').splitlines()[0]}")
        start = time.perf_counter()
        outcome = experiments[name](setting)
        publish_outcome(page, name, outcome, output, time.perf_counter() - start)
    say(f"page: {page_in(output, page)}")
    return page_in(output, page)


def publish_outcome(page: str, name: str, outcome: Outcome, output: Path, seconds: float, *, add: bool = False) -> None:
    """Write one experiment's figures, its rows as `output`/PAGE/NAME.json, and its places in the page.

    Args:
        page: name of the page.
        name: of the experiment.
        outcome: what it measured.
        output: folder of the page.
        seconds: that it took.
        add: keep what the page says of other models (`jobs.added_rows`); of the settings and the seconds in the JSON
            file those of this run are left.
    """
    for figure, drawn in outcome.figures.items():
        save_figure(drawn, output / page / f"{name}-{figure}.png")
    settings = "; ".join(f"{what}: {value}" for what, value in outcome.settings.items())
    sentences, tables = outcome.sentences, outcome.tables
    measured = models_in(tables) | models_said(sentences)
    sizes = f"*Sizes.* {settings}." if settings else ""
    run = "\n\n".join(filter(None, [models_line(measured), sizes, made_by(seconds, packages=("diffusers",))]))
    if add:
        there = page_in(output, page)
        said = [line.removeprefix("- ") for line in on_page(there, name).splitlines()]
        earlier = {table: rows_in_markdown(on_page(there, f"{name}-{table}")) for table in tables}
        sentences = add_sentences(said, sentences, models_in(tables), models_in(earlier))
        tables = {table: add_rows(earlier[table], rows) for table, rows in tables.items()}
        run = add_run(on_page(there, f"{name}-run"), run, measured)
    stored = {"settings": outcome.settings, "tables": {**tables, **outcome.stored}, "seconds": seconds}
    (output / page).mkdir(parents=True, exist_ok=True)
    (output / page / f"{name}.json").write_text(json.dumps(stored, indent=1, default=_plain_value))
    places = {
        name: "\n".join(f"- {sentence}" for sentence in sentences),
        **{f"{name}-{table}": markdown_table(rows) for table, rows in tables.items()},
        f"{name}-run": run,
    }
    fill_page(page_in(output, page), places)


def say(line: str) -> None:
    """Print a line of progress with the time of day."""
    print_plain(f"{datetime.now(UTC):%H:%M:%S} {line}")


def _plain_value(value: Any) -> Any:
    """Return a numpy scalar as the Python number that JSON holds."""
    return value.item()
