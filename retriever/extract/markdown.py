"""Markdown through markdown-it-py; the source itself is the text, so that offsets point into the file."""

import re
from itertools import accumulate, zip_longest

from markdown_it import MarkdownIt
from markdown_it.token import Token

from retriever.document import Block, BlockKind, ExtractedText
from retriever.extract.builder import HeadingStack, clean
from retriever.extract.text import decode

__all__ = ["extract"]

FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|$)", re.DOTALL)
TITLE_FIELD = re.compile(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->\s*", re.DOTALL)
CODE_TOKENS = ("fence", "code_block")


def extract(data: bytes, media_type: str) -> ExtractedText:  # noqa: ARG001 - the extractors share one signature
    """Return the Markdown source with its headings, paragraphs and code blocks; front matter is no passage.

    Raises:
        ExtractError: the data is binary.
    """
    text = clean(decode(data))
    front = FRONT_MATTER.match(text)
    body_start = front.end() if front else 0
    title = TITLE_FIELD.search(front[1]) if front else None
    lines = text[body_start:].split("\n")
    starts = [body_start, *accumulate((len(line) + 1 for line in lines), initial=body_start)][1:]
    tokens = MarkdownIt("commonmark").enable("table").parse(text[body_start:])
    blocks = []
    headings = HeadingStack()
    for token, following in zip_longest(tokens, tokens[1:]):
        if token.level or not token.map or token.nesting < 0:
            continue
        path = headings.path
        if token.type == "heading_open" and following is not None:
            path = headings.push(int(token.tag[1:]), _plain(following))
        start, stop = starts[token.map[0]], min(starts[token.map[1]], len(text))
        end = start + len(text[start:stop].rstrip())
        if not COMMENT.fullmatch(text[start:end]) and end > start:
            blocks.append(Block(start, end, _kind(token), path))
    return ExtractedText(text, tuple(blocks), title[1] if title else None)


def _kind(token: Token) -> BlockKind:
    if token.type == "heading_open":
        return BlockKind.HEADING
    return BlockKind.CODE if token.type in CODE_TOKENS else BlockKind.PARAGRAPH


def _plain(inline: Token) -> str:
    """Return the text of an inline token without its markup."""
    texts = (" " if child.type in ("softbreak", "hardbreak") else child.content for child in inline.children or [])
    return "".join(texts).strip() or inline.content
