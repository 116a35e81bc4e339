"""The page of several checkpoints in a real browser; pictures of it are left in `test-artefacts/`."""

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.report.conftest import Opens
from volgrowth.analysis.comparison.trend import Trend, TrendPoint
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
    bars = page.locator("td span").evaluate_all("all => all.map(bar => bar.getBoundingClientRect().width)")
    shown = [220, 212, 180, 220, 1310, 1305, 980, 1101, 11]
    assert [bar / bars[4] for bar in bars] == pytest.approx([number / 1310 for number in shown], abs=0.01)
    first = page.locator("td").first.bounding_box()
    assert first is not None
    assert first["x"] + first["width"] <= width  # the first number is on the screen of a phone too
    assert Axe().run(page).response["violations"] == []
