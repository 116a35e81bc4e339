"""Decisions on the page in a real browser, and their list in `volgrowth curate --list`."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Locator, Page

import volgrowth as vg
from tests.report.conftest import Opens
from tests.support.report_data import DETECTION, record, summary, tables
from volgrowth.cli import run_command
from volgrowth.demo.cases import write_image_parquet
from volgrowth.report import Exhibit, ReportOrigin, ReportPage, Shown, render_report

COPIES = {0: 4, 1: 2}
"""Rows of which so many copies follow at the end."""


@pytest.fixture(scope="module")
def audited(tiny_model: Path, digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real audit of 66 rows, some of them copies, whose ids a spreadsheet would evaluate."""
    folder = tmp_path_factory.mktemp("decided")
    images = np.concatenate([digits[:60], *(digits[[row] * count] for row, count in COPIES.items())])
    write_image_parquet(folder / "train.parquet", images, [f"=name,{row}" for row in range(len(images))])
    write_image_parquet(folder / "held.parquet", digits[300:400], [f"held-{row}" for row in range(100)])
    config = vg.AuditConfig.build(
        model=str(tiny_model),
        data=str(folder / "train.parquet"),
        holdout=str(folder / "held.parquet"),
        output=str(folder / "out put"),
        id_column="name",
        engine="local",
    )
    vg.run_audit(config, quiet=True)
    return folder / "out put"


@pytest.fixture
def out(audited: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited, tmp_path / "out put"))


def card(page: Page, row: int) -> Locator:
    return page.locator(f"#row-{row}")


def focus(page: Page, row: int) -> None:
    page.evaluate(f"location.hash = '#row-{row}'")
    page.wait_for_function(f"document.activeElement.id === 'row-{row}'")


def download(page: Page, to: Path) -> list[dict[str, str]]:
    with page.expect_download() as found:
        page.get_by_role("button", name="Download list").click()
    found.value.save_as(to / found.value.suggested_filename)
    with open(to / found.value.suggested_filename, newline="") as lines:
        return list(csv.DictReader(lines))


def shown(page: Page, rows: tuple[int, ...]) -> int:
    """The one of these rows that has a card."""
    known = set(page.evaluate("volgrowthCards.map((card) => Number(card.dataset.row))"))
    return next(row for row in rows if row in known)


def actions(out: Path) -> dict[str, list[int]]:
    table = pq.read_table(out / "curation.parquet").to_pylist()
    return {action: [each["row"] for each in table if each["action"] == action] for action in ("drop", "review")}


def test_decisions_by_keyboard_and_mouse_are_dropped_by_curate_to_the_row(
    opens: Opens, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["report", str(out)]) == 0  # its commands name the output where it lies now
    page, _ = opens(out / "report.html", accept_downloads=True)
    cut = page.get_by_role("slider")
    cut.focus()
    page.keyboard.press("Home")
    assert "Nothing is cut off" in page.locator("#bound").inner_text()
    cluster, pair = (shown(page, rows) for rows in ((0, 60, 61, 62, 63), (1, 64, 65)))
    focus(page, cluster)
    page.keyboard.press("d")  # by keyboard: all rows of the cluster
    assert card(page, cluster).get_by_role("button", name="Drop").get_attribute("aria-pressed") == "true"
    focus(page, 20)
    page.keyboard.press("r")
    page.get_by_role("searchbox").fill("=name,31")
    card(page, 31).get_by_role("button", name="Drop").click()  # by mouse
    page.get_by_role("searchbox").fill("")
    focus(page, pair)
    page.keyboard.press("d")
    card(page, pair).get_by_role("combobox").select_option("others")
    focus(page, 40)
    page.keyboard.press("d")
    page.keyboard.press("u")
    assert "decided by you" in page.locator("#counts").inner_text()
    before = page.locator("#counts").inner_text()
    page.reload()
    assert page.locator("#counts").inner_text() == before, "decisions are kept"

    lines = download(page, tmp_path)
    assert {line["listed"] for line in lines} == {str(len(lines))}
    file = next(tmp_path.glob("volgrowth-*.csv"))
    assert f"curate '{out}' --list {file.name} --apply curated" in page.locator("#next + p + .steps").inner_text()
    assert run_command(["curate", str(out), "--list", str(file)]) == 0
    dropped = sorted({0, 60, 61, 62, 63, 31, *({1, 64, 65} - {pair})})
    assert actions(out) == {"drop": dropped, "review": sorted({20} | unjudged(lines))}
    assert f"drop {len(dropped)}" in capsys.readouterr().out


def unjudged(lines: list[dict[str, str]]) -> set[int]:
    """Rows of single images that were listed for review because they are outside the range."""
    return {int(line["row"]) for line in lines if line["reason"].startswith("not judged")}


def some_page(count: int = 40, flagged: int = 5) -> ReportPage:
    """A page of images in the order of their rows, with bounds that rise."""
    records = [
        record(
            row,
            evidence=10.0 - row / 10,
            q_value=0.01 + row / 60,
            memorized=row < flagged,
            false_bound=row / 50,
            verified_hits=0,
        )
        for row in range(count)
    ]
    origin = ReportOrigin("/data/out", "0123456789abcdef")
    return render_report(
        summary(count, detection={**DETECTION, "memorized": flagged}),
        *tables(records),
        Shown([Exhibit(row) for row in range(count)]),
        origin=origin,
    )


def test_the_cut_off_begins_at_the_flags_and_says_its_bound(opens: Opens) -> None:
    page, _ = opens(some_page())
    cut, counts, bound = page.get_by_role("slider"), page.locator("#counts"), page.locator("#bound")
    assert cut.input_value() == "5"
    assert "Drop 5 images, 5 rows · Keep 35 images, 35 rows" in counts.inner_text()
    assert "at most 8% are false flags" in bound.inner_text()
    cut.focus()
    page.keyboard.press("ArrowRight")
    assert "Drop 6 images" in counts.inner_text()
    assert "at most 10% are false flags" in bound.inner_text()
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Download list"
    focus(page, 2)
    page.keyboard.press("k")
    assert "Drop 5 images" in counts.inner_text()
    page.get_by_role("button", name="Take back all decisions").click()
    said = "Drop 5 images, 5 rows · Keep 35 images, 35 rows · Review 0 images, 0 rows · 0 decided by you"
    assert counts.inner_text() == said


def test_arrow_keys_move_and_escape_leads_out(opens: Opens) -> None:
    page, _ = opens(some_page())
    focus(page, 0)
    for key, row in (("ArrowDown", 1), ("ArrowRight", 2), ("ArrowUp", 1), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == f"row-{row}"
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Drop"
    assert page.locator(":focus").evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "row-0"
    find = page.get_by_role("searchbox")
    find.fill("image-7")
    find.press("Escape")
    assert find.input_value() == ""
    assert "D drops, K keeps, R marks for review" in page.locator("#keys").inner_text()


def test_the_list_of_an_untouched_page_drops_what_the_rate_drops(opens: Opens, out: Path, tmp_path: Path) -> None:
    """Nothing is flagged in some audits: then the page gives no list, and says so by its button."""
    page, _ = opens(out / "report.html", accept_downloads=True)
    button = page.get_by_role("button", name="Download list")
    assert run_command(["curate", str(out), "--fdr", "0.1"]) == 0
    by_rate = actions(out)["drop"]
    if button.get_attribute("aria-disabled") == "true":
        assert by_rate == []
        return
    download(page, tmp_path)
    file = next(tmp_path.glob("volgrowth-*.csv"))
    assert run_command(["curate", str(out), "--list", str(file)]) == 0
    assert actions(out)["drop"] == by_rate
