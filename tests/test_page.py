"""The page at `/` in headless Chromium, on a real server with a tiny model: what a newcomer does."""

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from page_helpers import Visitor, chromium, visiting
from rag_helpers import HARBOUR, LIGHTHOUSE, make_chat_model
from server_helpers import Running, make_config, running

from rag.keys import parse_scopes
from rag.server.page.web_page import page as made_page
from rag.service import Service
from retriever.hash_embedder import HashEmbedder

if TYPE_CHECKING:
    from playwright.sync_api import Browser

GUIDE = f"# Orrin\n\nA town by the sea.\n\n## The lighthouse\n\n{LIGHTHOUSE}\n\n## The harbour\n\n{HARBOUR}\n"
QUESTION = "Who lights the lamp of the lighthouse?"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}
# Text colour and what is behind it, by the names of the style sheet.
PAIRS = [
    *[(text, ground) for text in ("text", "muted", "accent") for ground in ("bg", "surface", "sunk")],
    ("on-accent", "accent"), ("bad", "surface"), ("surface", "bad"), ("good", "surface"), ("text", "bad-bg"),
    ("text", "warn-bg"), ("text", "mark"), ("text", "quote"),
    *[("on-outcome", outcome) for outcome in ("path", "canonical", "shifted", "repaired", "computed")],
]  # fmt: skip


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = make_chat_model(tmp_path_factory.mktemp("models") / "tiny")
    config = make_config(tmp_path_factory.mktemp("data"), model)
    with Service(config, embedder=HashEmbedder()) as service, running(service) as running_api:
        yield running_api


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with chromium() as found:
        yield found


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    path = tmp_path / "guide.md"
    path.write_text(GUIDE)
    return path


@pytest.fixture
def town(api: Running) -> str:
    """A collection with one document."""
    assert api.add({"uri": "guide.md", "text": GUIDE, "media_type": "text/markdown"}, collection="town").is_success
    return "town"


def test_the_page_is_one_document_that_loads_nothing(api: Running) -> None:
    response = api.http.get("/")
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not re.search(r"<(script|img|iframe|link)[^>]+(src|href)=[\"'](?!data:)", response.text)
    addresses = set(re.findall(r"https?://[\w./-]+", response.text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG, which is no address to load from"
    assert api.http.head("/").status_code == 200


def test_the_policy_lets_run_what_is_in_the_page_and_nothing_else(api: Running) -> None:
    response = api.http.get("/")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}[^>]*>(.*?)</{kind}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"<[^>]+ (style|on\w+)=", response.text.split("<script")[0]), "the policy would refuse them"


def test_a_page_that_is_known_is_not_sent_again(api: Running) -> None:
    first = api.http.get("/")
    again = api.http.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_can_be_read(theme: int) -> None:
    """Contrast of at least 4.5, as WCAG's level AA asks."""
    blocks = re.findall(r":root \{(.*?)\}", made_page().html, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme]))
    too_faint = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in PAIRS}
    assert {pair: value for pair, value in too_faint.items() if value < 4.5} == {}


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, by WCAG's formula."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_newcomer_adds_a_file_asks_and_sees_the_second_answer_hit(
    api: Running, browser: "Browser", guide: Path
) -> None:
    with visiting(browser, api.url) as visitor:
        page = visitor.page
        visitor.open("library")
        page.fill("#upload-collection", "first")
        page.set_input_files("#upload-files", guide)
        page.wait_for_selector("#tasks .done:has-text('added')")
        page.wait_for_selector("#documents th:has-text('Orrin')")
        assert "Documents in first" in visitor.text("#documents-title")

        page.click("nav a[data-view=ask]")
        page.select_option("#ask-collection", "first")
        visitor.ask(QUESTION)
        assert "0 % of" in visitor.text("#run-figures")
        assert visitor.text(".prompt-bar") != ""
        check_citation(visitor)

        page.click("#run-again")
        visitor.wait_for_run(2)
        second = visitor.text("#run-figures")
        cached = int(re.search(r"(\d+) % of", second)[1])
        assert cached >= 50, second
        assert page.locator(".prompt-bar .computed").count() == 1, "the question alone"
        assert page.locator(".prompt-bar .canonical").count() == 1
        reasons = visitor.text("#why-body")
        assert "for run 1 it computed" in reasons
        assert re.search(r"passages? (was|were) in run 1 too", reasons)
        stages = visitor.text("#stages-body").split()
        assert {"embed", "search", "queue", "load", "prefill", "decode"} <= set(stages)
        page.wait_for_selector("#live:has-text('Answer complete')", state="attached")

        page.click("nav a[data-view=dashboard]")
        page.wait_for_selector("#view-dashboard .tile")
        assert "Prompt tokens from cache" in visitor.text("#dashboard-body")


def check_citation(visitor: Visitor) -> None:
    """A citation opens the passage where it stands: document, heading, characters, text."""
    page = visitor.page
    page.click("#run-answer .cite")
    page.wait_for_selector(".passage .trail")
    assert re.search(r"guide|Orrin", visitor.text(".passage .trail"))
    start, end = map(int, re.search(r"characters (\d+)\W(\d+) of", visitor.text(".passage-facts")).groups())
    marked = page.text_content(".passage mark")
    assert marked in GUIDE
    assert len(marked) <= end - start <= len(marked) + 2, "but for white space at the ends"
    assert page.text_content(".passage mark .quote") in marked
    assert page.get_attribute("#run-answer .cite", "aria-expanded") == "true"
    page.click("#run-answer .cite")
    page.wait_for_selector(".passage", state="hidden")


def test_a_sample_helps_who_has_no_documents(api: Running, browser: "Browser") -> None:
    for collection in api.http.get("/v1/collections").json()["collections"]:
        api.http.delete(f"/v1/collections/{collection['name']}")
    with visiting(browser, api.url) as visitor:
        visitor.open()
        visitor.page.click("text=Add the sample")
        visitor.page.click("text=What does repair mean?")
        visitor.wait_for_run(1)
        visitor.page.click("#run-sources .source-head:has-text('Repair')")
        visitor.page.wait_for_selector(".passage .trail:has-text('Repair')")


def test_a_collection_that_was_read_ahead_makes_the_first_answer_hit(
    api: Running, browser: "Browser", town: str
) -> None:
    with visiting(browser, api.url) as visitor:
        page = visitor.page
        visitor.open("library")
        page.click(f"#collections button[aria-label='Read {town} ahead']")
        page.wait_for_selector("#tasks .done:has-text('passage')")
        page.click("nav a[data-view=ask]")
        page.select_option("#ask-collection", town)
        visitor.ask(QUESTION)
        assert page.locator(".prompt-bar .canonical").count() == 1


def test_a_document_is_deleted_by_keyboard_after_a_question(api: Running, browser: "Browser", town: str) -> None:
    with visiting(browser, api.url) as visitor:
        page = visitor.page
        visitor.open("library")
        page.click(f"#collections button:text-is('{town}')")
        page.wait_for_selector(f"#documents-title:has-text('{town}')")
        delete = page.locator("#documents button[aria-label^='Delete']")
        for answer in ("Escape", "Enter"):
            delete.focus()
            page.keyboard.press("Enter")
            page.wait_for_selector("#confirm-dialog[open]")
            if answer == "Enter":
                page.keyboard.press("Tab")
            page.keyboard.press(answer)
            page.wait_for_selector("#confirm-dialog", state="hidden")
        page.wait_for_selector("#documents >> text=It is empty.")
    assert api.http.get(f"/v1/collections/{town}/documents").json()["documents"] == []


def test_errors_come_with_their_remedy(api: Running, browser: "Browser", town: str, tmp_path: Path) -> None:
    broken = tmp_path / "scan.pdf"
    broken.write_bytes(b"%PDF-1.4 cut")
    with visiting(browser, api.url) as visitor:
        page = visitor.page
        visitor.open("library")
        page.fill("#upload-collection", town)
        page.set_input_files("#upload-files", broken)
        page.wait_for_selector("#tasks .why")
        assert "scan.pdf" in visitor.text("#tasks .why")

        page.click("nav a[data-view=ask]")
        page.select_option("#ask-collection", town)
        page.click("#ask-options summary")
        page.select_option("#opt-reuse", "chunk")
        page.fill("#question", QUESTION)
        page.click("#ask-send")
        page.wait_for_selector("#ask-error [role=alert]")
        assert "certif" in visitor.text("#ask-error")
        assert page.is_visible("#ask-error button:text-is('Try again')")
        assert all("422" in complaint for complaint in visitor.complaints), "a browser tells failed requests by itself"
        visitor.complaints.clear()


def test_the_keyboard_is_enough(api: Running, browser: "Browser", town: str) -> None:
    with visiting(browser, api.url) as visitor:
        page = visitor.page
        visitor.open("dashboard")
        page.keyboard.press("/")
        page.wait_for_selector("#question:focus")
        page.select_option("#ask-collection", town)
        page.focus("#ask-options summary")
        page.keyboard.press("Space")
        page.fill("#opt-tokens", "3000")
        page.fill("#question", QUESTION)
        page.press("#question", "Enter")
        page.wait_for_selector("#ask-stop:visible")
        page.keyboard.press("Escape")
        page.wait_for_selector("#run-answer[aria-busy=false]", state="attached")
        page.wait_for_selector("#live:text-is('Stopped.')", state="attached")
    api.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(
    api: Running, browser: "Browser", town: str, scheme: str
) -> None:
    with visiting(browser, api.url, **PHONE, color_scheme=scheme) as visitor:
        page = visitor.page
        visitor.open()
        page.select_option("#ask-collection", town)
        visitor.ask(QUESTION)
        page.click("#run-answer .cite")
        page.wait_for_selector(".passage .trail")
        for view in ("ask", "library", "dashboard"):
            page.click(f"nav a[data-view={view}]")
            page.wait_for_selector(f"#view-{view}", state="visible")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"], view
        assert unnamed(visitor) == []


def unnamed(visitor: Visitor) -> list[str]:
    """Controls that a screen reader has no name for."""
    return visitor.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, summary, a[href]")].filter((node) =>
            !(node.ariaLabel || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML)"""
    )


def test_a_server_with_keys_asks_for_one(api: Running, browser: "Browser", town: str) -> None:
    """The last one here: a first key turns keys on for good."""
    _, token = api.service.components.keys().create("visitor", parse_scopes([f"read:{town}"]))
    with visiting(browser, api.url) as visitor:
        page = visitor.page
        visitor.open()
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key-input", token)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog", state="hidden")
        page.wait_for_selector(f"#ask-collection option[value={town}]", state="attached")
        visitor.ask(QUESTION)
        assert page.evaluate("localStorage.length") == 0, "the key is kept for this tab alone"
        page.click("nav a[data-view=dashboard]")
        page.wait_for_selector("#usage-body .card")
        assert "administrator" in visitor.text("#dashboard-body"), "live metrics tell of everyone's questions"
        assert all("401" in complaint or "403" in complaint for complaint in visitor.complaints), visitor.complaints
        visitor.complaints.clear()
