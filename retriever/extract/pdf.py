"""PDF through pypdf: the text layer page by page, below the headings of its outline."""

import io
import logging
import re
from collections import defaultdict
from typing import Any

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from retriever.document import ExtractedText
from retriever.errors import ExtractError
from retriever.extract.builder import TextBuilder

__all__ = ["extract"]

logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns of files that it then reads well
HYPHENATION = re.compile(r"(?<=[a-z])-\n(?=[a-z])")
PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n\s*")


def extract(data: bytes, media_type: str) -> ExtractedText:  # noqa: ARG001 - the extractors share one signature
    """Return the text layer of every page.

    Raises:
        ExtractError: the file needs a password, is broken, or has no text layer.
    """
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ExtractError("it is encrypted; remove its password")
        outline = _outline(reader)
        builder = TextBuilder()
        for number, page in enumerate(reader.pages):
            builder.page()
            _add_page(builder, HYPHENATION.sub("", page.extract_text()), outline[number])
    except (PyPdfError, NotImplementedError) as error:
        raise ExtractError(f"it is not a readable PDF ({error}); repair or print it to a new PDF") from error
    text = builder.build(reader.metadata.title if reader.metadata else None)
    if not text.blocks:
        raise ExtractError("it has no text layer, so it is probably scanned; run OCR on it first")
    return text


def _add_page(builder: TextBuilder, text: str, headings: list[tuple[int, str]]) -> None:
    """Add a page's text; outline entries become headings where their words are found on the page."""
    for level, title in headings:
        words = r"\s+".join(map(re.escape, title.split()))
        found = re.search(words, text, re.IGNORECASE) if words else None
        if found is None:
            builder.enter(level, title)
            continue
        _add_paragraphs(builder, text[: found.start()])
        builder.heading(level, found[0])
        text = text[found.end() :]
    _add_paragraphs(builder, text)


def _add_paragraphs(builder: TextBuilder, text: str) -> None:
    for paragraph in PARAGRAPH_BREAK.split(text):
        builder.paragraph(paragraph)


def _outline(reader: PdfReader) -> dict[int, list[tuple[int, str]]]:
    """Return the (level, title) outline entries of each page number, counted from 0; none when it is damaged."""
    entries: dict[int, list[tuple[int, str]]] = defaultdict(list)

    def collect(items: list[Any], level: int) -> None:
        for item in items:
            if isinstance(item, list):
                collect(item, level + 1)
                continue
            page = reader.get_destination_page_number(item)
            if page is not None and item.title:
                entries[page].append((level, " ".join(item.title.split())))

    try:
        collect(reader.outline, 1)
    except (PyPdfError, KeyError, AttributeError, TypeError, ValueError, RecursionError):
        return defaultdict(list)  # headings are a bonus: the pages still read
    return entries
