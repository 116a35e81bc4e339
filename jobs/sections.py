"""What an experiment of the paper hands over: settings, tables, charts, and what they say.

A section is written to its folder as soon as it is done, tables as Parquet, charts as PNG and SVG, and everything the
page needs as `section.json`, so that experiments can be run one at a time and a page shows those that are there.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from jobs.benchmark.detection.suite import Setup
from jobs.charts import PAGE, PRINT, Palette, save
from volgrowth.report.charts.figures import inline_svg

Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much of each experiment is run. `FULL` has the paper's sizes, on networks so small that a core takes an hour.

    Attributes:
        images: trained and held-out images of the overfit experiment, each.
        axes, steps: of its volume.
        channels: of the blocks of its network, which decide what it costs.
        overfit_steps: numbers of training steps; the last one is the overfit model.
        overfit_samples: drawn from each of those models.
        ablation_axes, ablation_steps, ablation_radii: the paper's grids.
        whole_case: network evaluations an image up to which a setting is measured on every image of the case.
        budget: network evaluations that another setting may cost in all; it decides on how many images.
        fewest: images of a setting for which the budget is too small.
        trajectory_images: in each group.
        ancestral_samples, ancestral_steps: of the stochastic sampler.
        curation_samples: drawn from each retrained model.
    """

    images: int = 27
    axes: int = 100
    steps: int = 1000
    channels: tuple[int, ...] = (8, 16)
    overfit_steps: tuple[int, ...] = (250, 500, 1000, 2000, 4000)
    overfit_samples: int = 500
    ablation_axes: tuple[int, ...] = (1, 10, 50, 100)
    ablation_steps: tuple[int, ...] = (1, 10, 100, 1000)
    ablation_radii: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    whole_case: int = 110
    budget: int = 300_000
    fewest: int = 10
    trajectory_images: int = 10
    ancestral_samples: int = 3000
    ancestral_steps: int = 100
    curation_samples: int = 3000


FULL = Scale()
QUICK = Scale(
    images=6,
    overfit_steps=(250, 1000),
    overfit_samples=200,
    ablation_steps=(1, 10, 100),
    budget=30_000,
    fewest=6,
    trajectory_images=5,
    ancestral_samples=1000,
    ancestral_steps=50,
    curation_samples=1000,
)


@dataclass(frozen=True)
class Workshop:
    """Where an experiment works: how much of it, on what, with models kept in `models`, saying what it does.

    Attributes:
        data: folder of the planted case's file.
        images: .npz with `x` for the overfit experiment; None for scikit-learn's digits, enlarged to 12x12.
    """

    scale: Scale
    setup: Setup
    data: Path
    images: Path | None
    models: Path
    say: Say
    seed: int = 1


@dataclass(frozen=True)
class Table:
    """Rows with one unit per column; `name` is that of its file."""

    name: str
    caption: str
    rows: pa.Table


@dataclass(frozen=True)
class Chart:
    """A figure that can be drawn in the colours of the page or of paper; `alt` says what it shows."""

    name: str
    caption: str
    alt: str
    draw: Callable[[Palette], Figure]


@dataclass(frozen=True)
class Section:
    """One experiment: what was run, what came out, and where it differs from the paper and why."""

    name: str
    title: str
    setting: str
    tables: Sequence[Table]
    charts: Sequence[Chart] = ()
    findings: Sequence[str] = ()
    differences: Sequence[str] = ()


@dataclass(frozen=True)
class Written:
    """A section as it lies in its folder: everything the page needs, as JSON values."""

    name: str
    title: str
    setting: str
    findings: list[str]
    differences: list[str]
    tables: list[dict[str, Any]]
    charts: list[dict[str, str]]
    seconds: float
    provenance: dict[str, str] = field(default_factory=dict)


def write(section: Section, folder: Path, seconds: float, provenance: dict[str, str]) -> None:
    """Publish a section; `section.json` comes last, so that a section is there whole or not at all."""
    home = folder / section.name
    home.mkdir(parents=True, exist_ok=True)
    for table in section.tables:
        pq.write_table(table.rows, home / f"{table.name}.parquet")
    charts = []
    for chart in section.charts:
        save(chart.draw(PRINT), home / chart.name)
        svg = str(inline_svg(chart.draw(PAGE), f"{section.name}-{chart.name}", chart.alt))
        charts.append({"name": chart.name, "caption": chart.caption, "alt": chart.alt, "svg": svg})
    written = Written(
        name=section.name,
        title=section.title,
        setting=section.setting,
        findings=list(section.findings),
        differences=list(section.differences),
        tables=[_json(table) for table in section.tables],
        charts=charts,
        seconds=seconds,
        provenance=provenance,
    )
    partial = home / "section.json.partial"
    partial.write_text(json.dumps(asdict(written), indent=1))
    partial.rename(home / "section.json")


def read(folder: Path, names: Sequence[str]) -> list[Written]:
    """The sections that are there, in the given order."""
    files = [folder / name / "section.json" for name in names]
    return [Written(**json.loads(file.read_text())) for file in files if file.exists()]


def timed(run: Callable[[], Section]) -> tuple[Section, float]:
    """A section and the seconds it took."""
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def table(name: str, caption: str, rows: Sequence[Row]) -> Table:
    """A table from rows; a key that a row lacks is a null."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return Table(name, caption, pa.table({column: [row.get(column) for row in rows] for column in columns}))


def _json(table: Table) -> dict[str, Any]:
    columns = table.rows.column_names
    rows = [[row[name] for name in columns] for row in table.rows.to_pylist()]
    return {"name": table.name, "caption": table.caption, "columns": columns, "rows": rows}
