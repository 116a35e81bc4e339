"""The page in a real browser: Debian's chromium, driven by Playwright.

What it shows is left as pictures in `test-artefacts/`.
"""

from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page

from tests.report.conftest import Opens
from tests.support.report_data import (
    CALIBRATION,
    DETECTION,
    NO_COUNTS,
    TRUTH,
    full_report,
    many,
    record,
    summary,
    tables,
)
from volgrowth.report import Exhibit, NearestSample, ReportOrigin, ReportPage, Shown, render_report, thumbnail
from volgrowth.report.page import CAP

ARTEFACTS = Path(__file__).parents[2] / "test-artefacts"
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>.png"
SIZE = 24


@pytest.fixture(scope="module")
def gallery() -> ReportPage:
    """60 cards of an audit that never ran; row 7 has no score, row 8 a hostile name."""
    records = [
        record(
            row,
            excess_growth=100.0 - row,
            memorized=row < 30,
            p_value=0.001 * row,
            q_value=0.002 * row,
            image_id=f"name-{row:03d}",
            copies=row % 5 + 1,
        )
        for row in range(60)
    ]
    records[7] |= {"excess_growth": None, "growth": None, "memorized": None}
    records[8] |= {"image_id": HOSTILE, "source": HOSTILE}
    picture = thumbnail(np.zeros((1, 8, 8), np.uint8))
    visitors = Shown([Exhibit(row) for row in range(60)], dict.fromkeys(range(60), picture))
    return render_report(summary(60, detection=DETECTION, calibration=CALIBRATION), *tables(records), visitors)


@pytest.fixture(scope="module")
def showcase(digits: np.ndarray) -> ReportPage:
    """A page with everything, of real digits."""
    rng, rows = np.random.default_rng(0), 400
    flags = {"memorized": True, "precursor": True, "p_value": 0.001, "q_value": 0.03, "marks": ["above_ceiling"]}
    records = [record(row, p_value=0.4, q_value=0.8, memorized=False, precursor=False) for row in range(rows)]
    for row in range(30):
        growth = 60 + rng.normal()
        records[row] |= {**flags, "growth": growth, "excess_growth": growth - 30, "expected_growth": 30.0}
        records[row] |= {"copies": 2, "cluster": row, "verified_hits": row % 4}
        records[400 - 30 + row] |= {"copies": 2, "cluster": row}
    for each in records:
        each["rates"] = (each["growth"] + rng.normal(size=3)).tolist()
        each |= {"evidence": each["excess_growth"] / 3, "evidence_loss": each["excess_growth"] / 2}
    exhibits = [Exhibit(k, (370 + k,), 100 + k, NearestSample(k, 0.2 + k / 40, k < 15)) for k in range(30)]
    exhibits += [Exhibit(row) for row in range(30, 60)]
    pictures = {row: thumbnail(digits[row % 370]) for row in range(rows)}
    samples = {number: thumbnail(digits[number]) for number in range(30)}
    held = tables([record(1000 + k) for k in range(100)])[1]
    truth = {**TRUTH, "rows": list(range(15)), "reproduced_images": 15}
    return render_report(
        summary(rows, calibration=CALIBRATION, detection={**DETECTION, "memorized": 30}, verification=truth),
        *tables(records),
        Shown(exhibits, pictures, samples),
        held,
        origin=ReportOrigin("/data/out", "0123456789abcdef"),
    )


def cards(page: Page) -> Locator:
    return page.locator("#cards > article")


def rows_of(page: Page) -> list[int]:
    return [int(row) for row in cards(page).evaluate_all("all => all.map(card => card.dataset.row)")]


def status(page: Page) -> str:
    return page.locator("#range").inner_text()


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id"))


def test_everything_on_the_page_is_in_it(opens: Opens, showcase: ReportPage) -> None:
    page, _ = opens(showcase)
    assert page.get_by_text("show where scripts run").is_hidden()
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.locator("figure svg").count() == 6
    first = cards(page).first
    for name in ("Image of row 0", "Nearest sample of row 0", "Control of row 0", "Near duplicate of row 0"):
        assert page.get_by_alt_text(name, exact=True).count() == 1
    assert first.bounding_box()


def test_the_gallery_pages(opens: Opens, gallery: ReportPage) -> None:
    page, _ = opens(gallery)
    order = [*range(7), *range(8, 60), 7]  # by excess growth, without a score last
    back, on = (page.get_by_role("button", name=name).first for name in ("Previous", "Next"))
    assert rows_of(page) == order[:SIZE]
    assert status(page) == "Images 1 to 24 of 60"
    on.click()
    assert rows_of(page) == order[SIZE : 2 * SIZE]
    assert on.evaluate("button => button === document.activeElement")
    on.click()
    on.click(force=True)
    assert rows_of(page) == order[2 * SIZE :]
    assert status(page) == "Images 49 to 60 of 60"
    assert on.get_attribute("aria-disabled") == "true"
    assert back.get_attribute("aria-disabled") == "false"
    back.click()
    assert status(page) == "Images 25 to 48 of 60"
    page.get_by_role("button", name="Next").last.click()  # below the cards: back to the first of them
    assert focused(page) == f"row-{order[48]}"


def test_the_gallery_filters(opens: Opens, gallery: ReportPage) -> None:
    page, _ = opens(gallery)
    show, find = page.get_by_role("combobox", name="Show"), page.get_by_role("searchbox", name="Find")
    assert "flagged as memorized (29)" in show.inner_text()
    page.get_by_role("button", name="Next").first.click()
    show.select_option("memorized")
    assert status(page) == "Images 1 to 24 of 29"
    show.select_option("unflagged")
    assert rows_of(page) == list(range(30, 54))
    show.select_option("")
    find.fill("NAME-05")
    assert rows_of(page) == list(range(50, 60))
    show.select_option("memorized")
    assert status(page) == "No image passes"
    assert rows_of(page) == []
    show.select_option("")
    find.fill("12")
    assert 12 in rows_of(page)
    find.fill("")
    assert status(page) == "Images 1 to 24 of 60"


def test_the_gallery_sorts(opens: Opens, gallery: ReportPage) -> None:
    page, _ = opens(gallery)
    sort = page.get_by_role("combobox", name="Sort by")
    sort.select_option("row:1")
    assert rows_of(page) == list(range(24))
    sort.select_option("evidence:1")
    assert rows_of(page) == list(range(59, 35, -1))
    sort.select_option("growth:-1")
    growth = cards(page).evaluate_all("all => all.map(card => Number(card.dataset.growth))")
    assert growth == sorted(growth, reverse=True)
    sort.select_option("copies:-1")
    assert rows_of(page)[:12] == [row for row in range(60) if row % 5 == 4]
    sort.select_option("q:1")
    page.get_by_role("button", name="Next").first.click()
    page.get_by_role("button", name="Next").first.click()
    sort.select_option("growth:-1")
    assert status(page) == "Images 1 to 24 of 60"
    for _ in range(2):
        page.get_by_role("button", name="Next").first.click()
    assert rows_of(page)[-1] == 7  # without a score it is the last in any order


def test_the_keyboard_is_enough(opens: Opens, gallery: ReportPage) -> None:
    page, _ = opens(gallery)
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the report"
    page.get_by_role("searchbox", name="Find").focus()
    page.keyboard.type("name-")
    page.keyboard.press("Tab")
    page.keyboard.type("flagged as")
    assert status(page) == "Images 1 to 24 of 28"
    for _ in range(4):  # sort, copy, previous, next
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert status(page) == "Images 25 to 28 of 28"
    page.keyboard.press("Tab")
    assert focused(page) == f"row-{rows_of(page)[0]}"
    outline = page.locator(":focus").evaluate("card => getComputedStyle(card).outlineStyle")
    assert outline == "solid"


def test_page_up_and_down_move_from_card_to_card_and_from_page_to_page(opens: Opens, gallery: ReportPage) -> None:
    page, _ = opens(gallery)
    feed = page.get_by_role("feed", name="Images")
    assert feed.locator("article[tabindex='0']").count() == 1
    cards(page).first.focus()
    page.keyboard.press("PageDown")
    assert focused(page) == "row-1"
    page.keyboard.press("End")
    assert focused(page) == "row-24"
    page.keyboard.press("PageDown")
    assert focused(page) == "row-25"
    assert status(page) == "Images 25 to 48 of 60"
    assert page.locator(":focus").get_attribute("aria-posinset") == "25"
    assert page.locator(":focus").get_attribute("aria-setsize") == "60"
    page.keyboard.press("PageUp")
    assert focused(page) == "row-24"
    page.keyboard.press("Home")
    page.keyboard.press("PageUp")
    assert focused(page) == "row-0"


def test_an_address_can_name_a_card(opens: Opens, gallery: ReportPage) -> None:
    page, _ = opens(gallery, fragment="#row-40")
    assert focused(page) == "row-40"
    assert status(page) == "Images 25 to 48 of 60"
    page.get_by_role("combobox", name="Show").select_option("memorized")
    page.evaluate("location.hash = '#row-59'")
    page.wait_for_function("document.activeElement.id === 'row-59'")
    assert page.get_by_role("combobox", name="Show").input_value() == ""


def test_row_numbers_of_what_passes_are_copied(opens: Opens, gallery: ReportPage) -> None:
    page, _ = opens(gallery, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("searchbox", name="Find").fill("name-00")
    page.get_by_role("button", name="Copy row numbers").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").split() == ["0", "1", "2", "3", "4", "5", "6", "9", "7"]
    assert "9 row numbers copied." in page.locator("#copied").inner_text()


def test_names_that_look_like_markup_stay_text(opens: Opens, gallery: ReportPage) -> None:
    page, _ = opens(gallery)
    page.get_by_role("searchbox", name="Find").fill("<script>window")
    assert rows_of(page) == [8]
    assert "<script>window.hacked = 1</script>" in cards(page).first.inner_text()
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1


def test_what_limits_the_verdict_is_seen_beside_it(opens: Opens) -> None:
    """Without scrolling, beside the title on a wide screen and below it on a phone; evil names in it stay text."""
    scores, findings = tables([record(row) for row in range(4)])
    asked = summary(4, counts={**NO_COUNTS, "rows": 8, "ok": 4}, detection={**DETECTION, "null": "cross-fitted"})
    page, _ = opens(render_report(asked, scores, findings, Shown()))
    title, caveats = page.get_by_role("heading", level=1), page.get_by_role("list", name="What limits this verdict")
    assert "the error rate is an assumption" in caveats.inner_text()
    assert "4 of 8 rows have no score" in caveats.inner_text()
    for width, beside in ((1200, True), (390, False)):
        page.set_viewport_size({"width": width, "height": 900})
        head, limits = title.bounding_box(), caveats.bounding_box()
        assert head is not None
        assert limits is not None
        assert limits["y"] + limits["height"] < 900
        assert (limits["x"] >= head["x"] + head["width"]) == beside


def test_without_scripts_the_first_cards_are_there(opens: Opens, gallery: ReportPage) -> None:
    page, _ = opens(gallery, java_script_enabled=False)
    assert cards(page).count() == SIZE
    assert not page.get_by_role("searchbox").is_visible()
    assert page.get_by_text("36 more images show where scripts run.").is_visible()


def test_five_thousand_flagged_images_open_and_page(opens: Opens) -> None:
    count = 5000
    scores, findings = many(2 * count)
    findings = findings.set_column(
        findings.schema.get_field_index("memorized"), "memorized", [np.ones(2 * count, bool).tolist()]
    )
    picture = thumbnail(np.zeros((1, 8, 8), np.uint8))
    shown = Shown([Exhibit(2 * k) for k in range(count)], {2 * k: picture for k in range(count)})
    report = render_report(summary(2 * count, detection={**DETECTION, "memorized": count}), scores, findings, shown)
    assert len(report.html.encode()) < CAP
    page, _ = opens(report)
    assert status(page) == "Images 1 to 24 of 5000"
    page.get_by_role("button", name="Next").first.click()
    assert status(page) == "Images 25 to 48 of 5000"
    page.get_by_role("searchbox", name="Find").fill("image-9998")
    assert rows_of(page) == [9998]


@pytest.mark.parametrize("kind", ["pictures", "redacted"])
def test_nothing_stands_in_the_way_of_a_screen_reader(opens: Opens, showcase: ReportPage, kind: str) -> None:
    """By the rules of axe: names, roles, contrast, order of headings, keyboard; in light and dark colours."""
    page, _ = opens(showcase if kind == "pictures" else full_report(rows={}, samples={}, redacted=True))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        results = Axe().run(page)
        assert len(results.response["passes"]) > 20
        assert results.violations_count == 0, f"{scheme}: {results.generate_report()}"


def test_nothing_is_wider_than_a_phone(opens: Opens, showcase: ReportPage, gallery: ReportPage) -> None:
    for report in (gallery, showcase):  # long names without a space, and pictures
        page, _ = opens(report)
        for width in (320, 390, 768):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            sizes = page.locator("button:visible, select:visible, input:visible, nav a:visible").evaluate_all(
                "all => all.map(each => each.getBoundingClientRect().height)"
            )
            assert min(sizes) >= 24


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1200, "light"), ("dark", 1200, "dark"), ("phone", 390, "light")]
)
def test_it_is_seen_in_light_and_dark_and_on_a_phone(
    opens: Opens, showcase: ReportPage, name: str, width: int, scheme: str
) -> None:
    page, _ = opens(showcase, width=width, color_scheme=scheme)
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"report-{name}.png", full_page=True)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").split(",")[0]
    assert (int(paper) < 128) == (scheme == "dark")


def test_it_prints(opens: Opens, showcase: ReportPage) -> None:
    """On white, without controls, and no figure or card torn apart where that can be helped."""
    page, _ = opens(showcase, width=794, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.get_by_role("searchbox").is_visible()
    assert not page.get_by_role("button", name="Next").first.is_visible()
    assert not page.get_by_role("slider").is_visible()
    assert status(page) == "Images 1 to 24 of 60"
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTEFACTS / "report-print.png", full_page=True)
    page.pdf(path=ARTEFACTS / "report-print.pdf", format="A4", prefer_css_page_size=True)
    assert (ARTEFACTS / "report-print.pdf").read_bytes().startswith(b"%PDF")
