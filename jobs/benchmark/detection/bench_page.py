"""The bench's output: a Parquet table, one self-contained page, and the same tables as Markdown."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from jobs.benchmark.detection.bench_tables import (
    Table,
    Verdict,
    case_table,
    detection_table,
    markdown,
    pooled,
    promise_table,
    verdict_table,
    verdicts,
)
from jobs.benchmark.detection.compared_scores import Score
from jobs.benchmark.detection.experiment import Result, Subject, table
from volgrowth.report.charts import figures
from volgrowth.report.page import template_environment
from volgrowth.version import VERSION

NAME = "detection"
PACKAGES = ("torch", "diffusers", "numpy", "scikit-learn", "scipy", "pyarrow")

TEMPLATE = """{% extends "shell.html.j2" %}
{% block style %}
table { font-size: 0.8125rem; }
th, td { padding-right: 14px; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td:last-child { padding-right: 0; }
{% endblock %}
{% macro show(table) %}
  <div class="scroll" tabindex="0" role="region" aria-label="{{ table.title }}">
  <table>
    <thead><tr>{% for column in table.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
    <tbody>
    {% for row in table.rows %}
      <tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
{% endmacro %}
{% block body %}
<header><p class="eyebrow">Detection bench</p></header>
<main>
<section class="verdict"><h1>{{ title }}</h1>
  {% for sentence in sentences %}<p>{{ sentence }}</p>{% endfor %}
</section>
{% for table in overview %}
<section><h2>{{ table.title }}</h2><p class="intro">{{ table.note }}</p>{{ show(table) }}</section>
{% endfor %}
{% for case in cases %}
<section><h2>{{ case.name }}</h2>
  <div class="pair">
  {% for figure in case.figures %}<figure>{{ figure }}</figure>{% endfor %}
  </div>
  {% for table in case.tables %}
  <h3>{{ table.title }}</h3><p class="intro">{{ table.note }}</p>{{ show(table) }}
  {% endfor %}
</section>
{% endfor %}
<section><h2>{{ scores.title }}</h2><p class="intro">{{ scores.note }}</p>{{ show(scores) }}</section>
<section><h2>Provenance</h2>
  <dl class="facts">{% for name, value in provenance.items() %}
  <div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
</section>
</main>
{% endblock %}
"""


def provenance() -> dict[str, str]:
    """What the numbers come from: command, versions, device, date."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "volgrowth": VERSION,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "device": f"{_processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores for torch",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def write(output: Path, results: list[Result], subjects: list[Subject]) -> None:
    """detection.parquet, detection.html and detection.md in `output`."""
    names = list(dict.fromkeys(subject.trained.setup.name for subject in subjects))
    found, origin = verdicts(results, names), provenance()
    overview = [verdict_table(found), case_table(subjects)]
    tables = {name: [detection_table(results, name), promise_table(results, name)] for name in names}
    scores = score_table(list(dict.fromkeys(result.score for result in results)))
    metadata = {"volgrowth": json.dumps(origin)}
    output.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(results).replace_schema_metadata(metadata), output / f"{NAME}.parquet")
    parts = [*overview, *(table for name in names for table in tables[name]), scores]
    text = "# Detection bench\n\n" + "\n\n".join(_sentences(found)) + "\n\n" + "\n".join(map(markdown, parts))
    text += "\n## Provenance\n\n" + "".join(f"- {name}: `{value}`\n" for name, value in origin.items())
    (output / f"{NAME}.md").write_text(text, encoding="utf-8")
    page = template_environment().from_string(TEMPLATE)
    html = page.render(
        title=_title(found),
        sentences=_sentences(found),
        overview=overview,
        cases=[{"name": name, "figures": _figures(results, name), "tables": tables[name]} for name in names],
        scores=scores,
        provenance=origin,
        version=VERSION,
    )
    (output / f"{NAME}.html").write_text(html, encoding="utf-8")


def score_table(scores: list[Score]) -> Table:
    """What each score is."""
    return Table(
        "Scores",
        "High is suspicious in all of them: what falls with memorization is negated. An evaluation is one pass through "
        "the network, forward or backward; presets' columns share those of the whole preset.",
        ["score", "evaluations", "what it is"],
        [[score.name, "–" if score.nfe is None else str(score.nfe), score.source] for score in scores],
    )


def _title(found: list[Verdict]) -> str:
    matched = sum(verdict.matched for verdict in found)
    return f"Calibrated standard matches the best other score in {matched} of {len(found)} cases"


def _sentences(found: list[Verdict]) -> list[str]:
    kept = sum(verdict.kept for verdict in found)
    return [
        "Models were trained on sets with planted copies, what they reproduce was found by sampling them, and every "
        "score is judged by how well it tells the reproduced images from all others in the training set.",
        f"{_title(found)}. Its flags at a promised 20% keep that promise, and find enough, in {kept} of {len(found)}.",
    ]


def _figures(results: list[Result], case: str) -> list[Markup]:
    """Raw and calibrated side by side: area under the curve, and true positives at few false ones."""
    drawn = []
    for metric, label in (("tpr_at_1_fpr", "true positive rate at 1% false positives"), ("auroc", "AUROC")):
        figure = _dumbbells(results, case, metric, label)
        alt = f"{label} of every score on {case}, raw and calibrated; the numbers are in the table below."
        drawn.append(figures.inline_svg(figure, f"{case}-{metric}", alt))
    return drawn


def _dumbbells(results: list[Result], case: str, metric: str, label: str) -> Figure:
    kinds = (("raw", pooled(results, case, calibrated=False)), ("calibrated", pooled(results, case, calibrated=True)))
    with figures.plot(0.8 + 0.27 * len(kinds[0][1])) as (figure, axes):
        names = [result.score.name for result in kinds[0][1]]
        for (kind, chosen), colour, shift in zip(kinds, (figures.BAR, figures.ACCENT), (-0.14, 0.14), strict=True):
            rows = np.array([names.index(result.score.name) for result in chosen]) + shift
            value, low, high = (
                np.array([result.values[f"{metric}{end}"] for result in chosen]) for end in ("", "_low", "_high")
            )
            axes.hlines(rows, low, high, color=colour, linewidth=1.4)
            axes.plot(value, rows, "o", color=colour, markersize=4.5, label=kind)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        axes.set(xlabel=label)
        figures.legend(axes)
    return figure
