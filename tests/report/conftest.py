"""A browser for the tests of pages: Debian's chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from volgrowth.report import ReportPage

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Heard:
    """What the browser said and asked for."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Opens = Callable[..., tuple[Page, Heard]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing = f"no browser ({', '.join(NAMES)}): `apt-get install chromium`, or `make test`, which does that"
        (pytest.fail if "CI" in os.environ else pytest.skip)(missing)
    with sync_playwright() as driver:
        # Playwright leaves chromium's own sandbox off, which root and many containers cannot have; the page is ours
        running = driver.chromium.launch(executable_path=path)
        yield running
        running.close()


@pytest.fixture
def opens(browser: Browser, tmp_path: Path) -> Iterator[Opens]:
    """Open a report, or a page on disk: `opens(report, width=..., color_scheme=...)`. Nothing may go wrong in it."""
    contexts = []

    def open_(report: ReportPage | Path, width: int = 1200, fragment: str = "", **options: Any) -> tuple[Page, Heard]:
        file, heard = report if isinstance(report, Path) else tmp_path / "report.html", Heard()
        if isinstance(report, ReportPage):
            file.write_text(report.html, encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: heard.console.append(message.text))
        page.on("pageerror", lambda error: heard.console.append(str(error)))
        page.on("request", lambda request: heard.requests.append(request.url))
        page.goto(file.as_uri() + fragment)
        pages.append((file.as_uri() + fragment, heard))
        return page, heard

    pages: list[tuple[str, Heard]] = []
    yield open_
    for context in contexts:
        context.close()
    for url, heard in pages:
        assert heard.console == []
        fetched = {request for request in heard.requests if not request.startswith(("data:", "blob:"))}
        assert fetched == {url.split("#")[0]}
