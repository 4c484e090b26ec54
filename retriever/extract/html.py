"""HTML through selectolax: visible text, block by block, without navigation and scripts."""

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

from retriever.document import ExtractedText
from retriever.extract.builder import TextBuilder
from retriever.extract.text import decode

__all__ = ["extract"]

CHARSET = re.compile(rb"<meta[^>]+charset=[\"']?([\w-]+)", re.IGNORECASE)
SKIPPED_TAGS = """
button canvas dialog head iframe input math nav noscript object option script select style svg template
textarea -comment
"""
BLOCK_TAGS = """
address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure footer form
header hr html legend li main ol p section summary table tbody tfoot thead tr ul
"""
SKIPPED = frozenset(SKIPPED_TAGS.split())
BLOCKS = frozenset(BLOCK_TAGS.split())
HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
LINE_BREAK = "\x00"
PERMALINK = re.compile(r"\s*[¶#🔗]\s*$")


def extract(data: bytes, media_type: str) -> ExtractedText:  # noqa: ARG001 - the extractors share one signature
    """Return the visible text of the page, of its `main` element when it has one with text.

    Raises:
        ExtractError: the data is binary.
    """
    declared = CHARSET.search(data[:4096])
    tree = LexborHTMLParser(decode(data, declared[1].decode("ascii") if declared else None))
    title = tree.css_first("title")
    main = tree.css_first("main")
    root = main if main is not None and main.text().strip() else tree.root
    writer = _Writer()
    if root is not None:
        writer.walk(root)
    return writer.builder.build(title.text() if title is not None else None)


class _Writer:
    """Walks the tree without recursion and hands paragraphs, headings and code to the builder."""

    def __init__(self) -> None:
        self.builder = TextBuilder()
        self._inline: list[str] = []

    def walk(self, root: LexborNode) -> None:
        """Hand everything below a node to the builder, in reading order."""
        stack: list[tuple[LexborNode, bool]] = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            tag = node.tag or ""
            if leaving:
                self._leave(tag)
            elif tag == "-text":
                self._inline.append((node.text_content or "").replace(LINE_BREAK, ""))
            elif tag == "pre":
                self._flush()
                self.builder.code(node.text())
            elif tag not in SKIPPED and "hidden" not in node.attributes:
                self._enter(tag)
                stack.append((node, True))
                stack.extend((child, False) for child in reversed(list(node.iter(include_text=True, skip_empty=False))))
        self._flush()

    def _enter(self, tag: str) -> None:
        if tag in BLOCKS or tag in HEADINGS:
            self._flush()
        if tag == "li":
            self._inline.append("- ")
        elif tag == "br":
            self._inline.append(LINE_BREAK)

    def _leave(self, tag: str) -> None:
        if tag in HEADINGS:
            self.builder.heading(int(tag[1]), PERMALINK.sub("", self._take()))
        elif tag in ("td", "th"):
            self._inline.append(" | ")
        elif tag in BLOCKS:
            self._flush()

    def _flush(self) -> None:
        text = self._take()
        if text.strip("- |"):
            self.builder.paragraph(text)

    def _take(self) -> str:
        lines = "".join(self._inline).split(LINE_BREAK)
        self._inline.clear()
        return "\n".join(" ".join(line.split()) for line in lines).strip().removesuffix("|").rstrip()
