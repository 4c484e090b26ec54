"""The report as one page that loads nothing: text and tables of the Markdown report, with the pictures in between."""

import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from rag.bench.analysis.models import Figures
from rag.bench.pictures.album import pictures_of
from rag.bench.pictures.export import dark_rules, svg
from rag.bench.pictures.sheet import HOW_TO_DRAW, NARROW, WIDE, Picture, can_draw
from rag.bench.pictures.style import unbroken

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

__all__ = ["make_page", "write_page"]

PLACES = {"grid": "number-and-length-of-passages", "holdings": "what-engines-hold"}  # sections of several experiments
DOUBTS = ("Read with care:", "Not measured (yet):", "Doubtful:", "Not finished:")
DARK_PLACE = "/* pictures */"


def write_page(report: str, figures: Figures, path: Path) -> None:
    """Write the page into a file.

    Args:
        report: in Markdown, without pictures.
        figures: that it tells.
        path: of the file; its folder exists.
    """
    path.write_text(make_page(report, figures), encoding="utf-8")


def make_page(report: str, figures: Figures) -> str:
    """Return the page; without matplotlib it has no pictures, and says how to get them."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(report)
    headings = list(_mark(tokens))
    body = _body(parser, tokens, pictures_of(figures))
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    title = escape(f"Benchmark: {figures.header.suite.name}")
    missing = "" if can_draw() else f'<p class="doubt">{escape(HOW_TO_DRAW)}</p>\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style.replace(DARK_PLACE, dark_rules('svg '))}</style>\n</head>\n"
        f"<body>\n<main>\n{_with_contents(body, headings, missing)}</main>\n</body>\n</html>\n"
    )


def _mark(tokens: "Sequence[Token]") -> "Iterator[tuple[str, str]]":
    """Give headings their ids and cells and doubts their classes; yield id and text of each section."""
    for at, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            text = tokens[at + 1].content
            name = re.search(r"\(`([\w-]+)`\)$", text)
            anchor = name[1] if name else re.sub(r"\W+", "-", text.lower()).strip("-")
            token.attrSet("id", anchor)
            yield anchor, re.sub(r" \(`[\w-]+`\)$", "", text)
        elif token.type in {"th_open", "td_open"} and token.attrs.pop("style", "") == "text-align:right":
            token.attrSet("class", "n")
        elif token.type == "paragraph_open" and tokens[at + 1].content.startswith(tuple(f"**{one}" for one in DOUBTS)):
            token.attrSet("class", "doubt")


def _body(parser: "MarkdownIt", tokens: "Sequence[Token]", pictures: Sequence[Picture]) -> str:
    """Render the report, each picture before the first table of its section, or at the section's end."""
    waiting = list(pictures)
    parts: list[str] = []
    section, begun = "", 0

    def flush(end: int) -> None:
        nonlocal begun
        parts.append(parser.renderer.render(tokens[begun:end], parser.options, {}))
        begun = end

    def place() -> None:
        here = [picture for picture in waiting if PLACES.get(picture.section, picture.section) == section]
        parts.extend(_figure(picture) for picture in here)
        waiting[:] = [picture for picture in waiting if picture not in here]

    for at, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            flush(at)
            place()
            section = str(token.attrGet("id"))
        elif token.type == "table_open":
            flush(at)
            place()
    flush(len(tokens))
    place()
    parts.extend(_figure(picture) for picture in waiting)
    return _scrolling("".join(parts))


def _figure(picture: Picture) -> str:
    drawn = "\n".join(svg(picture, width, alone=False) for width in (WIDE, NARROW))
    words = f"<strong>{escape(picture.title)}</strong> {escape(unbroken(picture.note))}"
    return f'<figure id="{picture.name}">\n<figcaption>{words}</figcaption>\n{drawn}\n</figure>\n'


def _scrolling(html: str) -> str:
    """Put tables into boxes that scroll, which the keyboard can reach; drop heads that are empty."""
    html = re.sub(r"<table>\n<thead>\n<tr>\n(<th[^>]*></th>\n)+</tr>\n</thead>", '<table class="facts">', html)
    opening = '<div class="table-wrap" role="region" aria-label="Table" tabindex="0">'
    return re.sub(r"<table[ >]", lambda found: f"{opening}{found[0]}", html).replace("</table>", "</table></div>")


def _with_contents(body: str, headings: Sequence[tuple[str, str]], missing: str) -> str:
    links = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>\n' for anchor, text in headings)
    contents = f'<details class="contents">\n<summary>Contents</summary>\n<ul>\n{links}</ul>\n</details>\n'
    head, end, rest = body.partition("</h1>\n")
    return f"{head}{end}{contents}{missing}{rest}"
