"""The figures of the bench's pages, drawn of the tables that stand there: these hold the rows of all runs."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jobs.added_rows import rows_in_markdown
from jobs.benchmark.truth.world import FEW
from jobs.charts import Line, Marks, curves, marks_by_row, null_bars, save_figure
from jobs.pages import on_page, page_in
from volgrowth.report.charts.figures import ACCENT, BAR, COOL, INK, MUTED

Rows = Sequence[Mapping[str, Any]]
COLOURS = (ACCENT, INK, COOL, BAR, MUTED)


def first_number(cell: Any) -> float:
    """Return the first number of a cell; NaN if it has none, such as a dash."""
    found = re.match(r"[-−]?[\d,]*\.?\d+", str(cell))
    return float(found[0].replace(",", "").replace("−", "-")) if found else np.nan


def calibrated(cell: str) -> float:
    """Return the second AUROC of a cell `raw / calibrated / TPR`."""
    return first_number(cell.partition(" / ")[2])


def styled(names: Iterable[str]) -> Iterator[tuple[str, str, bool]]:
    """Yield each name with its colour, and whether the colour had its turn before."""
    for place, name in enumerate(names):
        yield name, COLOURS[place % len(COLOURS)], place >= len(COLOURS)


def by_case(rows: Rows) -> dict[str, Rows]:
    """Return the rows of each case, in the order of the table."""
    return {case: [row for row in rows if row["case"] == case] for case in dict.fromkeys(row["case"] for row in rows)}


def means_by_place(rows: Rows, at: str, column: str) -> tuple[list[float], np.ndarray]:
    """Return the values of a column that say where a row stands, in order, and the means of another one there."""
    places = sorted({first_number(row[at]) for row in rows})
    return places, np.array(
        [np.mean([first_number(row[column]) for row in rows if first_number(row[at]) == x]) for x in places]
    )


def exposures(rows: Rows) -> Figure:
    """Draw the share of images that are reproduced over the number of times that the training shows them."""
    cases, lines = by_case(rows), []
    for case, colour, again in styled(cases):
        shown, share = means_by_place(cases[case], "times shown", "reproduced, %")
        lines.append(Line(case, share, colour, dashed=again, x=shown))
    ticks = [50, 100, 200, 500, 1000, 2000, 5000, 10_000]
    return curves(ticks, {"reproduced, % of the images": lines}, "times shown in training, log scale", ticks)


def levels(rows: Rows) -> Figure:
    """Draw the AUROC of both parts of the evidence over the noise level, a line for each case."""
    cases = by_case(rows)
    panels = {
        f"AUROC of the {part}": [
            Line(case, means_by_place(cases[case], "level", f"{part}: AUROC")[1], colour, dashed=again)
            for case, colour, again in styled(cases)
        ]
        for part in ("noise norm", "loss")
    }
    shown = sorted({first_number(row["level"]) for row in rows})
    return curves(shown, panels, "noise level, log scale")


def captions(rows: Rows, roles: Rows) -> Figure:
    """Draw the calibrated AUROC of each score on each conditional model whose unguided samples reproduce enough."""
    came = Counter[str]()
    for role in roles:
        came[f"{role['case']} {role['seed']}"] += role["pairs reproduced"]
    cases = list(dict.fromkeys(name.rpartition(" ")[0] for name in rows[0] if came[name] >= FEW))
    groups = []
    for case, colour, again in styled(cases):
        mine = [name for name in came if name.startswith(f"{case} ")]
        groups.append(Marks(case, colour, [[calibrated(row[name]) for name in mine] for row in rows], hollow=again))
    return marks_by_row([row["score"] for row in rows], groups, "calibrated AUROC", across=0.5)


def sums(rows: Rows) -> Figure:
    """Draw the AUROC of each sum of parts in each case, mean over its models."""
    cases = [name for name in rows[0] if re.fullmatch(r"[a-z]+-[a-z]+", name)]
    groups = [
        Marks(case, colour, [[first_number(row[case])] for row in rows], hollow=again)
        for case, colour, again in styled(cases)
    ]
    return marks_by_row([row["evidence"].replace("`", "") for row in rows], groups, "AUROC, mean over models")


def found_copies(rows: Rows) -> Figure:
    """Draw the share of altered copies that the hash joins with their image, and a learned embedding."""
    groups = [
        Marks(name, colour, [[first_number(row[column])] for row in rows])
        for name, colour, column in (
            ("hash", COOL, "by the hash, %"),
            ("learned embedding", ACCENT, "from 0.95 on, %"),
        )
    ]
    return marks_by_row([f"{row['set']}, {row['copies']}" for row in rows], groups, "found of the copies, %")


def passes(rows: Rows) -> Figure:
    """Draw how well parts know members, and the realised rate of false flags, over the passes of a training."""
    trained = [row for row in rows if row["trained on"].endswith("passes")]
    panels = {
        "AUROC of members": [
            Line(name, np.array([first_number(row[f"{name}, AUROC"]) for row in trained]), colour)
            for name, colour in (("growth", COOL), ("loss", INK), ("evidence", ACCENT))
        ],
        "FDR realised, %": [
            Line("10% promised", np.array([first_number(row["FDR, 10% promised"]) for row in trained]), ACCENT)
        ],
    }
    return curves(
        [first_number(row["trained on"]) for row in trained], panels, "passes over the training set, log scale"
    )


def curated(rows: Rows) -> Figure:
    """Draw the share of samples that are copies after each treatment, mean over the models, with its null."""
    treatments = list(dict.fromkeys(row["trained on"] for row in rows))
    hits, nulls = (
        np.array(
            [np.mean([first_number(row[column]) for row in rows if row["trained on"] == each]) for each in treatments]
        )
        for column in ("hits", "held-out null")
    )
    return null_bars([each.partition(":")[0].replace("`", "") for each in treatments], hits, nulls, "share of samples")


def rate_ranges(rows: Rows) -> Figure:
    """Draw the rates of images over the shares of samples that hit them, the least, the mean and the largest."""
    ranges = [[first_number(end) for end in row["rate over share of hits"].partition(" to ")[::2]] for row in rows]
    groups = [
        Marks("least and largest", COOL, ranges, joined=True),
        Marks("geometric mean", ACCENT, [[first_number(row["geometric mean"])] for row in rows]),
    ]
    names = [f"{row['case']} {row['seed']}, {row['measurable']} of {row['images']} images" for row in rows]
    return marks_by_row(names, groups, "rate over share of samples that hit, log scale", across=1.0, scale="log")


# page and command of each figure, its name, the tables that it is drawn of, and what draws it
FIGURES: Sequence[tuple[str, str, str, Sequence[str], Callable[..., Figure]]] = (
    ("truth", "learned", "found", ["table"], found_copies),
    ("truth", "truth", "exposures", ["exposures"], exposures),
    ("truth", "membership", "passes", ["table"], passes),
    ("truth", "curation", "hits", ["table"], curated),
    ("truth", "levels", "parts", ["table"], levels),
    ("truth", "rates", "ranges", ["table"], rate_ranges),
    ("truth", "conditions", "scores", ["scores", "roles"], captions),
    ("detection", "evidence", "sums", ["table"], sums),
)


def drawn_of(page: Path, command: str, tables: Sequence[str]) -> tuple[list[Rows], str]:
    """Return the rows of a figure's tables on a page, and a digest of them, which the figure's file holds."""
    shown = [on_page(page, f"{command}-{table}") for table in tables]
    return [rows_in_markdown(each) for each in shown], hashlib.sha256("".join(shown).encode()).hexdigest()


def draw_figures(output: Path, commands: Sequence[str] | None = None) -> list[Path]:
    """Draw the figures of all commands, or of some, of the pages in a folder, as PAGE/COMMAND-FIGURE.png there.

    A figure one of whose tables has no rows is left as it is. Returns the files that were written.
    """
    written = []
    for page, command, name, tables, draw in FIGURES:
        if commands is not None and command not in commands:
            continue
        rows, digest = drawn_of(page_in(output, page), command, tables)
        if all(rows):
            written.append(output / page / f"{command}-{name}.png")
            save_figure(draw(*rows), written[-1], digest)
    return written
