"""The page of several checkpoints in a real browser; pictures of it are left in `test-artefacts/`."""

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.report.conftest import Opens
from volgrowth.analysis.comparison.trend import Trend, TrendBreakdown, TrendGroup, TrendPoint
from volgrowth.report.trend import render_trend

ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"
NOTE = "runs/out-10k was not verified: `volgrowth verify` would tell how many images it really reproduces."
TREND = Trend(
    (
        TrendPoint("runs/out-10k", "runs/ddpm/checkpoint-10000", 49_870, 0, None, 0, 0, None),
        TrendPoint("runs/out-20k", "runs/ddpm/checkpoint-20000", 49_870, 212, 180, 220, 220, 0),
        TrendPoint(
            "s3://bucket/a-long-name/of/out-40k", "runs/ddpm/checkpoint-40000", 49_870, 1_305, 980, 1_310, 1_101, 11
        ),
    ),
    0.1,
    (NOTE,),
    TrendBreakdown(
        (
            TrendGroup("train-00000-of-00002.parquet", 25_000, (0, 120, 1_300)),
            TrendGroup("train-00001-of-00002.parquet", 24_870, (0, 100, 10)),
        ),
        2,
        TrendGroup("", 49_870, (0, 220, 1_310)),
    ),
    TrendBreakdown(
        (
            TrendGroup("tench <i>", 30_000, (None, 200, 1_200)),
            TrendGroup("", 12_000, (None, 20, 100)),
        ),
        3,
        TrendGroup("", 49_870, (None, 220, 1_310)),
    ),
)


@pytest.mark.parametrize(
    ("name", "width", "options"),
    [("light", 1200, {}), ("dark", 1200, {"color_scheme": "dark"}), ("phone", 390, {})],
)
def test_the_page_is_accessible_and_fits(
    name: str, width: int, options: dict[str, Any], opens: Opens, tmp_path: Path
) -> None:
    file = tmp_path / "trend.html"
    file.write_text(render_trend(TREND), encoding="utf-8")
    page, _ = opens(file, width=width, **options)
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"trend-{name}.png", full_page=True)
    assert (
        page.get_by_role("heading", level=1).inner_text()
        == "1,310 images found at the last of 3 checkpoints, 0 at the first"
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    bars = page.locator("td .bar").evaluate_all("all => all.map(bar => bar.getBoundingClientRect().width)")
    shown = [220, 212, 180, 220, 1310, 1305, 980, 1101, 11]
    assert [bar / bars[4] for bar in bars] == pytest.approx([number / 1310 for number in shown], abs=0.01)
    first = page.locator("td").first.bounding_box()
    assert first is not None
    assert first["x"] + first["width"] <= width  # the first number is on the screen of a phone too
    assert Axe().run(page).response["violations"] == []


def test_it_prints(opens: Opens, tmp_path: Path) -> None:
    """On white and with its bars, and no table is cut off at the edge of the paper."""
    file = tmp_path / "trend.html"
    file.write_text(render_trend(TREND), encoding="utf-8")
    page, _ = opens(file, width=1000, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    styles = page.locator("td .bar").evaluate_all("all => all.map(bar => getComputedStyle(bar).printColorAdjust)")
    assert set(styles) == {"exact"}
    cut = page.locator(".scroll").evaluate_all("all => all.map(box => getComputedStyle(box).overflowX)")
    assert cut == ["visible"] * 3
    page.screenshot(path=ARTEFACTS / "trend-print.png", full_page=True)
    page.pdf(path=ARTEFACTS / "trend-print.pdf", prefer_css_page_size=True)
    assert (ARTEFACTS / "trend-print.pdf").read_bytes().startswith(b"%PDF")


def test_groups_are_listed_with_what_every_checkpoint_found(opens: Opens, tmp_path: Path) -> None:
    file = tmp_path / "trend.html"
    file.write_text(render_trend(TREND), encoding="utf-8")
    page, _ = opens(file)
    by_class = page.get_by_role("region", name="Found images by class").locator("tr")
    assert [row.split("\t") for row in by_class.all_inner_texts()] == [
        ["Class", "Distinct images", "1", "2", "3"],
        ["tench <i>", "30,000", "–", "200", "1,200"],
        ["none, or scored by an earlier version", "12,000", "–", "20", "100"],
        ["All classes", "49,870", "–", "220", "1,310"],
    ]
    assert "Shows 2 of 3 classes" in page.locator("main").inner_text()
