import re

import numpy as np
import pytest

from tests.report.page_parser import parse
from volgrowth.report import figures
from volgrowth.report.figures import BINS, Points, complexity_scatter, histogram, inline_svg


def points(rows: int, notable: int = 0) -> Points:
    rng = np.random.default_rng(0)
    expected = rng.normal(20, 2, rows)
    return Points(
        growth=expected + rng.normal(0, 1, rows),
        expected=expected,
        excess=rng.normal(0, 1, rows),
        png_bytes=rng.integers(70, 400, rows).astype(float),
        notable=np.arange(rows) < notable,
        shown=np.zeros(rows, bool),
    )


def svg_of_histogram(values: np.ndarray, heldout: np.ndarray | None = None) -> str:
    notable = np.zeros(values.shape, bool)
    return inline_svg(histogram(values, heldout, notable, "flagged", "growth"), "h", "a histogram")


def test_colours_follow_the_page() -> None:
    rng = np.random.default_rng(0)
    svg = svg_of_histogram(rng.normal(size=500), rng.normal(size=100))
    assert {"var(--ink", "var(--muted", "var(--bar", "var(--cool"} <= set(re.findall(r"var\(--\w+", svg))
    assert not re.search("#00000[0-9]", svg)


def test_words_stay_words() -> None:
    svg = svg_of_histogram(np.arange(10.0))
    assert any("growth" in text for _, text in parse(svg).texts)


def test_a_hostile_description_stays_text() -> None:
    hostile = '"><script>alert(1)</script>'
    svg = inline_svg(complexity_scatter(points(5), "flagged", "growth")[0], "s", hostile)
    assert parse(svg).all("svg")[0]["aria-label"] == hostile
    assert not parse(svg).all("script")


def test_the_same_figure_gives_the_same_bytes() -> None:
    first, second = (inline_svg(complexity_scatter(points(9000), "x", "y")[0], "s", "") for _ in range(2))
    assert first == second


def test_figures_that_share_a_page_share_no_id() -> None:
    drawn = [inline_svg(complexity_scatter(points(50), "x", "y")[0], name, "") for name in ("a", "b")]
    ids = [{a["id"] for _, a in parse(svg).elements if "id" in a} for svg in drawn]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


def test_a_scatter_is_thinned_but_never_of_what_is_notable() -> None:
    _, dots, ordinary = complexity_scatter(points(9000, notable=40), "flagged", "growth")
    assert (dots, ordinary) == (figures.SCATTER_POINTS, 8960)
    svg = inline_svg(complexity_scatter(points(9000, notable=40), "flagged", "growth")[0], "s", "")
    assert len([u for u in parse(svg).all("use") if "--accent" in u["style"]]) == 40 + 1  # one in the legend


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0], [np.nan], [0.0, 1e300]])
def test_degenerate_histograms_draw(values: list[float]) -> None:
    assert "<path" in svg_of_histogram(np.array(values))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_degenerate_scatters_draw(rows: int) -> None:
    assert complexity_scatter(points(rows), "flagged", "growth")[1:] == (rows, rows)


def test_far_values_are_counted_not_dropped() -> None:
    values = np.append(np.random.default_rng(0).normal(size=1000), [1e6, -1e6])
    assert figures.beyond_reach(values) == 2
    edges = figures._edges(values, None)
    assert edges.size == BINS + 1
    assert edges[-1] < 100


def test_a_bin_with_one_notable_image_of_many_has_a_tick() -> None:
    values = np.append(np.random.default_rng(0).normal(size=100_000), 9.0)
    notable = np.arange(values.size) == values.size - 1
    svg = inline_svg(histogram(values, None, notable, "flagged", "growth"), "h", "")
    assert len([u for u in parse(svg).all("use") if "--accent" in u["style"]]) == 1
