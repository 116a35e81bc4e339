"""Rows of a run put into the tables of a page that has those of earlier runs, model by model.

Trainings of all cases and seeds take longer than one sitting, and their models stay on the machine that made them. What
a page says of a model, by its case and its seed, is replaced by what a later run says of it; all else stays.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

# the columns that name a model
OF_MODEL = ("case", "seed")
# begins the sentences about models that are not there
ABSENT = "Left out, since its model is not trained"
NAMED = re.compile(r"([\w-]+) with seed (\d+)")
# begins the line of a run that names its models, and ends a run
MODELS, MADE = "*Models.* ", "*Measured on"

Model = tuple[str, int]


def rows_in_markdown(markdown: str) -> list[dict[str, Any]]:
    """Return the rows of a table that `pages.markdown_table` wrote.

    Columns that are aligned to the right hold numbers, or None for a dash.
    """
    lines = [line.strip()[2:-2].split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    if not lines:
        return []
    columns, aligned, *rows = lines
    numeric = [mark.endswith(":") for mark in aligned]
    return [
        {
            column.replace(r"\|", "|"): _number(cell) if number else cell.replace(r"\|", "|")
            for column, number, cell in zip(columns, numeric, row, strict=True)
        }
        for row in rows
    ]


def add_rows(earlier: Rows, new: Rows) -> Rows:
    """Return earlier rows with those of a run put in.

    Rows that name a case or a seed are replaced model by model, and sorted by case, in the order in which cases first
    appear, and by seed. In other tables rows are told apart by their first column, and columns are replaced.
    """
    if not earlier or not new:
        return new or earlier
    if any(name in new[0] for name in OF_MODEL):
        measured = {_model(row) for row in new}
        return _by_model([*(row for row in earlier if _model(row) not in measured), *new], [*earlier, *new])
    first = next(iter(new[0]))
    merged: dict[Any, dict[str, Any]] = {row[first]: dict(row) for row in earlier}
    for row in new:
        merged[row[first]] = merged.get(row[first], {}) | dict(row)
    return list(merged.values())


def add_sentences(earlier: Sequence[str], new: Sequence[str], measured: set[Model], known: set[Model]) -> list[str]:
    """Return earlier sentences with those of a run put in: all that name a model of the run, or none, are replaced.

    Args:
        earlier: sentences of the page.
        new: sentences of the run; those that say that a model is not there are left out where the page knows it.
        measured: models that the run has rows of.
        known: models that the page has rows of.
    """
    known = known | models_said(earlier)
    new = [said for said in new if not said.startswith(ABSENT) or not set(_named(said)) <= known - measured]
    replaced = measured | {model for sentence in new for model in _named(sentence)}
    kept = [said for said in earlier if (names := set(_named(said))) and not names & replaced]
    cases = list(dict.fromkeys(case for said in (*earlier, *new) for case, _ in _named(said)))

    def place(sentence: str) -> tuple[int, int]:
        named = next(_named(sentence), None)
        return (cases.index(named[0]), named[1]) if named else (len(cases), 0)

    return sorted([*kept, *new], key=place)


def models_in(tables: Mapping[str, Rows]) -> set[Model]:
    """Return case and seed of each model that has a row in some table."""
    return {(row["case"], row["seed"]) for rows in tables.values() for row in rows if {"case", "seed"} <= row.keys()}


def models_said(sentences: Sequence[str]) -> set[Model]:
    """Return case and seed of each model that some sentence names, but for those that are not there."""
    return {model for said in sentences if not said.startswith(ABSENT) for model in _named(said)}


def models_line(models: set[Model]) -> str:
    """Return the line of a run that names its models, case by case with their seeds; nothing for no models."""
    seeds: dict[str, list[str]] = {}
    for case, seed in sorted(models):
        seeds.setdefault(case, []).append(str(seed))
    named = "; ".join(f"{case} {', '.join(each)}" for case, each in seeds.items())
    return f"{MODELS}{named}." if named else ""


def add_run(earlier: str, new: str, measured: set[Model]) -> str:
    """Return what a page says of its runs, with a new one put last.

    An earlier run no longer names the models that were measured again, and goes where none is left. A run that names
    no models stays.
    """
    runs, paragraphs = list[list[str]](), list[str]()
    for paragraph in earlier.split("\n\n"):
        paragraphs.append(paragraph)
        if paragraph.startswith(MADE):
            runs.append(paragraphs)
            paragraphs = []
    kept = [[_without(first, measured), *rest] for first, *rest in runs]
    return "\n\n".join([*("\n\n".join(run) for run in kept if run[0]), new])


def _without(line: str, measured: set[Model]) -> str:
    if not line.startswith(MODELS):
        return line
    groups = [group.rsplit(" ", group.count(",") + 1) for group in line[len(MODELS) :].rstrip(".").split("; ")]
    named = {(case, int(seed.rstrip(","))) for case, *seeds in groups for seed in seeds}
    return models_line(named - measured)


def _by_model(rows: Rows, order: Rows) -> Rows:
    cases = list(dict.fromkeys(row.get("case") for row in order))
    return sorted(rows, key=lambda row: (cases.index(row.get("case")), row.get("seed") or 0))


def _model(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in OF_MODEL)


def _named(sentence: str) -> Iterator[Model]:
    return ((case, int(seed)) for case, seed in NAMED.findall(sentence))


def _number(cell: str) -> int | float | None:
    plain = cell.replace(",", "").replace("−", "-")
    try:
        return int(plain)
    except ValueError:
        try:
            return float(plain)
        except ValueError:
            return None
