"""What the tests of the page share: a browser, and pages that notice what they should not do."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

STRAY = re.compile(r"\b(?:undefined|null|NaN|false|true)\b|\[object")
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> "Iterator[Browser]":
    """Run the installed Chromium without a window; the test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip(f"no Chromium is installed (looked for {', '.join(CHROMIUMS)}); Debian has it as `chromium`")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it comes with .[test]")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run as root otherwise
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """Somebody who looks at the page, and what the browser complained of."""

    page: "Page"
    url: str
    complaints: list[str] = field(default_factory=list)

    def open(self, view: str = "ask") -> None:
        self.page.goto(f"{self.url}/#{view}")
        self.page.wait_for_selector("#server-state[data-state=ready]")

    def ask(self, question: str) -> None:
        """Type a question and wait for the end of its answer."""
        run = self.run_number() + 1
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        self.wait_for_run(run)

    def wait_for_run(self, number: int) -> None:
        """Wait for the end of a run."""
        self.page.wait_for_selector(f"#run:has(#run-label:text('Run {number} in')) #run-answer[aria-busy=false]")

    def run_number(self) -> int:
        """Return the number of the run that is shown, 0 before the first one."""
        label = self.page.text_content("#run-label") or "Run 0"
        return int(label.split()[1])

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)


@contextmanager
def visiting(browser: "Browser", url: str, **context: object) -> "Iterator[Visitor]":
    """Open a fresh session; in the end the console must have been silent, no other host asked, nothing odd shown."""
    session = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context})
    session.set_default_timeout(15_000)
    visitor = Visitor(session.new_page(), url)
    page, complaints = visitor.page, visitor.complaints
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("request", lambda request: _check_host(request.url, url, complaints))
    yield visitor
    stray = STRAY.findall(page.inner_text("body"))
    session.close()
    assert not complaints, complaints
    assert not stray, "a value that is not for people was shown"


def _check_host(asked: str, url: str, complaints: list[str]) -> None:
    if not asked.startswith((f"{url}/", "data:")):
        complaints.append(f"it asked another host: {asked}")
