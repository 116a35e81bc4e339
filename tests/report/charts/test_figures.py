import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.support.page_parser import parse
from volgrowth.report.charts import figures
from volgrowth.report.charts.figures import ChartPoints, draw_complexity, draw_histogram, figure_files, inline_svg
from volgrowth.report.charts.numbers import LevelRates, Spread, count_bars, expected_by_size


def points(rows: int, notable: int = 0) -> ChartPoints:
    rng = np.random.default_rng(0)
    expected = rng.normal(20, 2, rows)
    return ChartPoints(
        growth=expected + rng.normal(0, 1, rows),
        expected=expected,
        excess=rng.normal(0, 1, rows),
        evidence=rng.normal(0, 1, rows),
        png_bytes=rng.integers(70, 400, rows).astype(float),
        flagged=np.arange(rows) < notable,
        reproduced=None,
    )


def inline(figure: Figure, name: str, alt: str) -> str:
    return inline_svg(figure_files(name, figure)[f"{name}.svg"], name, alt)


def svg_of_histogram(values: np.ndarray, heldout: np.ndarray | None = None) -> str:
    notable = np.zeros(values.shape, bool)
    return inline(draw_histogram(count_bars(values, heldout, notable), "flagged", "growth"), "h", "a histogram")


def scatter(some: ChartPoints) -> tuple[Figure, int, int]:
    return draw_complexity(some, expected_by_size(some.png_bytes, some.expected), "growth")


def test_colours_follow_the_page() -> None:
    rng = np.random.default_rng(0)
    svg = svg_of_histogram(rng.normal(size=500), rng.normal(size=100))
    assert {"var(--ink", "var(--muted", "var(--bar", "var(--cool"} <= set(re.findall(r"var\(--\w+", svg))
    assert not re.search(r"(?<!, )#(?!000000|ffffff)[0-9a-f]{6}", svg)


def test_words_stay_words() -> None:
    svg = svg_of_histogram(np.arange(10.0))
    assert any("growth" in text for _, text in parse(svg).texts)


def test_a_hostile_description_stays_text() -> None:
    hostile = '"><script>alert(1)</script>'
    svg = inline(scatter(points(5))[0], "s", hostile)
    assert parse(svg).all("svg")[0]["aria-label"] == hostile
    assert not parse(svg).all("script")


def test_the_same_figure_gives_the_same_bytes() -> None:
    first, second = (inline(scatter(points(9000))[0], "s", "") for _ in range(2))
    assert first == second


def test_figures_that_share_a_page_share_no_id() -> None:
    drawn = [inline(scatter(points(50))[0], name, "") for name in ("a", "b")]
    ids = [{a["id"] for _, a in parse(svg).elements if "id" in a} for svg in drawn]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


def test_a_scatter_is_thinned_but_never_of_what_is_notable() -> None:
    _, dots, ordinary = scatter(points(9000, notable=40))
    assert (dots, ordinary) == (figures.SCATTER_POINTS, 8960)
    svg = inline(scatter(points(9000, notable=40))[0], "s", "")
    assert len([u for u in parse(svg).all("use") if "--accent" in u["style"]]) == 40 + 1  # one in the legend


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0], [np.nan], [0.0, 1e300]])
def test_degenerate_histograms_draw(values: list[float]) -> None:
    assert "<path" in svg_of_histogram(np.array(values))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_degenerate_scatters_draw(rows: int) -> None:
    assert scatter(points(rows))[1:] == (rows, rows)


def test_a_bin_with_one_notable_image_of_many_has_a_tick() -> None:
    values = np.append(np.random.default_rng(0).normal(size=100_000), 9.0)
    notable = np.arange(values.size) == values.size - 1
    svg = inline(draw_histogram(count_bars(values, None, notable), "flagged", "growth"), "h", "")
    assert len([u for u in parse(svg).all("use") if "--accent" in u["style"]]) == 1


@pytest.mark.parametrize("count", [1, 2, 19])
def test_rates_are_drawn_at_one_level_and_at_many(count: int) -> None:
    spread = Spread(np.geomspace(0.1, 10, count), *np.ones((3, count)))
    svg = inline(figures.draw_levels(LevelRates(5, "noise level", spread, spread), "growth"), "l", "")
    assert {"var(--accent", "var(--cool"} <= set(re.findall(r"var\(--\w+", svg))


def test_files_are_on_white_and_in_the_light_colours() -> None:
    made = figures.figure_files(
        "h", draw_histogram(count_bars(np.arange(10.0), None, np.zeros(10, bool)), "flagged", "growth")
    )
    assert set(made) == {"h.png", "h.svg"}
    assert figures.BAR.encode() in made["h.svg"]
    assert b"ffffff" in made["h.svg"]


def test_flags_are_marked_and_what_samples_reproduced_as_well() -> None:
    some = points(100, notable=10)
    both = replace(some, reproduced=np.arange(100) < 4)
    figure, dots, _ = scatter(both)
    svg = inline(figure, "s", "")
    assert dots == 90
    styles = [use["style"] for use in parse(svg).all("use") if "--accent" in use["style"]]
    assert len([style for style in styles if "fill: var(--accent" in style]) == 4 + 1
    assert len([style for style in styles if "stroke: var(--accent" in style]) == 10 + 1
