"""The experiments as one self-contained HTML page and as Markdown."""

import math
from collections.abc import Sequence
from typing import Any

from jobs.sections import Written
from volgrowth.report.formats import MISSING, duration, score
from volgrowth.report.page import template_environment
from volgrowth.version import VERSION

TITLE = "Volume growth: the paper's experiments, repeated"
INTRODUCTION = (
    "What Hasegawa & Yasuda (arXiv 2503.19429) measure, on data and networks that fit a small machine, and what their "
    "paper leaves open. Numbers of the paper itself are quoted; everything else was measured by this run."
)

_PAGE = """{% extends "shell.html.j2" %}
{% block style %}
.charts { display: grid; gap: 28px; margin: 24px 0; }
.charts figure { max-width: 860px; }
.charts figure.narrow { max-width: 560px; }
.points { max-width: 46em; padding-left: 1.2em; }
.points li { margin: 6px 0; }
.setting { max-width: 52em; color: var(--muted); font-size: 0.9375rem; }
h3 { margin: 24px 0 8px; }
td, th { white-space: nowrap; padding-right: 14px; }
table { font-size: 0.875rem; }
td.words, th.words { white-space: normal; min-width: 13em; }
{% endblock %}
{% block body %}
<header>
  <p class="eyebrow">volgrowth, arXiv 2503.19429</p>
  <h1>{{ title }}</h1>
  <p class="intro">{{ introduction }}</p>
</header>
<main>
<nav aria-label="Experiments">
  {% for section in sections %}
  <a href="#{{ section.name }}">{{ section.title }}</a>
  {% endfor %}
  <a href="#provenance">Provenance</a></nav>
{% for section in sections %}
<section aria-labelledby="{{ section.name }}">
  <h2 id="{{ section.name }}">{{ section.title }}</h2>
  <ul class="points">{% for line in section.findings %}<li>{{ line }}</li>{% endfor %}</ul>
  {% if section.charts %}
  <div class="charts">
    {% for chart in section.charts %}
    <figure{% if narrow(chart.svg) %} class="narrow"{% endif %}>{{ chart.svg|safe }}
      <figcaption>{{ chart.caption }}</figcaption></figure>
    {% endfor %}
  </div>
  {% endif %}
  {% for table in section.tables %}
  {% if table.rows|length > 40 %}<details><summary>{{ table.caption }} {{ table.rows|length }} rows.</summary>{% else %}
  <h3>{{ table.caption }}</h3>{% endif %}
  <div class="scroll"><table>
    <thead><tr>
      {% for column in table.columns %}
      <th class="{{ kind(table, loop.index0) }}">{{ column }}</th>
      {% endfor %}
    </tr></thead>
    <tbody>
      {% for row in table.rows %}
      <tr>{% for value in row %}<td class="{{ kind(table, loop.index0) }}">{{ cell(value) }}</td>{% endfor %}</tr>
      {% endfor %}
    </tbody>
  </table></div>
  {% if table.rows|length > 40 %}</details>{% endif %}
  {% endfor %}
  {% if section.differences %}
  <h3>Where this differs from the paper, and why</h3>
  <ul class="points">{% for line in section.differences %}<li>{{ line }}</li>{% endfor %}</ul>
  {% endif %}
  <h3>What was run</h3>
  <p class="setting">{{ section.setting }} It took {{ section.seconds|duration }}.</p>
</section>
{% endfor %}
<section aria-labelledby="provenance">
  <h2 id="provenance">Provenance</h2>
  <dl class="facts">
    {% for name, value in provenance.items() %}<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}
  </dl>
</section>
</main>
{% endblock %}
"""


def cell(value: Any) -> str:
    """A number as a reader wants it; what is missing is a dash."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    return score(value) if abs(value) >= 1e-300 else "< 1e−300"


def kind(table: dict[str, Any], column: int) -> str:
    """The class of a column's cells."""
    values = [row[column] for row in table["rows"]]
    if any(isinstance(value, str) for value in values):
        return "words" if max(len(str(value)) for value in values) > 24 else ""
    return "figure"


def html(sections: Sequence[Written]) -> str:
    """The page."""
    page = template_environment().from_string(_PAGE)
    return page.render(
        title=TITLE,
        introduction=INTRODUCTION,
        version=VERSION,
        sections=sections,
        provenance=provenance(sections),
        cell=cell,
        kind=kind,
        narrow=_narrow,
    )


def _narrow(svg: str) -> bool:
    """Whether a chart has a single panel: those are 5.2 inches wide, at 72 points each."""
    return float(svg.split('viewBox="', 1)[1].split('"', 1)[0].split()[2]) < 450


def markdown(sections: Sequence[Written], pictures: str = "{section}/{chart}.png") -> str:
    """The same as Markdown; `pictures` says where a chart's file is."""
    lines = [f"# {TITLE}", "", INTRODUCTION, ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        lines += [f"- {line}" for line in section.findings]
        for chart in section.charts:
            path = pictures.format(section=section.name, chart=chart["name"])
            lines += ["", f"![{chart['alt']}]({path})", "", f"*{chart['caption']}*"]
        for table in section.tables:
            if len(table["rows"]) <= 40:
                lines += ["", table["caption"], "", *_markdown_table(table)]
        if section.differences:
            lines += ["", "Where this differs from the paper, and why:", ""]
            lines += [f"- {line}" for line in section.differences]
        lines += ["", f"*What was run.* {section.setting} It took {duration(section.seconds)}.", ""]
    lines += ["## Provenance", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in provenance(sections).items()]
    return "\n".join(lines) + "\n"


def _markdown_table(table: dict[str, Any]) -> list[str]:
    columns = range(len(table["columns"]))
    rule = "|".join("---:" if kind(table, column) == "figure" else "---" for column in columns)
    rows = ["| " + " | ".join(cell(value) for value in row) + " |" for row in table["rows"]]
    return ["| " + " | ".join(table["columns"]) + " |", f"|{rule}|", *rows]


def provenance(sections: Sequence[Written]) -> dict[str, str]:
    """What the sections have in common, and for each that differs its own value; the time of all together."""
    facts: dict[str, str] = {}
    for name in dict.fromkeys(name for section in sections for name in section.provenance):
        values = {section.name: section.provenance.get(name, MISSING) for section in sections}
        distinct = list(dict.fromkeys(values.values()))
        facts[name] = distinct[0] if len(distinct) == 1 else "; ".join(f"{k}: {v}" for k, v in values.items())
    facts["time"] = duration(sum(section.seconds for section in sections))
    return facts
