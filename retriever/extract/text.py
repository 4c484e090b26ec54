"""Plain text, reStructuredText and source code, kept as they are.

Headings of text are lines underlined (and perhaps overlined) with one repeated sign; their levels follow
the order in which the signs first appear, as in reStructuredText.
"""

import re
from collections.abc import Iterator

from retriever.document import Block, BlockKind, ExtractedText
from retriever.errors import ExtractError
from retriever.extract.builder import HeadingStack, clean

__all__ = ["decode", "extract"]

MAX_HEADING = 120
ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}\s*")
CONTROL = re.compile("[\x01-\x06\x0e-\x1a\x1c-\x1f\x7f]")
BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def extract(data: bytes, media_type: str) -> ExtractedText:
    """Return the text as it is, cut into blocks at blank lines.

    Raises:
        ExtractError: the data is binary.
    """
    text = clean(decode(data))
    blocks = _code_blocks(text) if media_type == "text/x-code" else _prose_blocks(text)
    return ExtractedText(text, tuple(blocks))


def decode(data: bytes, encoding: str | None = None) -> str:
    """Return bytes as text: by byte order mark, by `encoding`, as UTF-8, then as Windows-1252.

    Raises:
        ExtractError: the data is binary.
    """
    marked = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if marked is None and b"\x00" in data:
        raise ExtractError("it is binary, not text; convert it to a text format or leave it out")
    for candidate in (marked, encoding, "utf-8", "cp1252"):
        try:
            text = data.decode(candidate) if candidate else None
        except (UnicodeDecodeError, LookupError):
            continue
        if text is not None:
            break
    else:
        text = data.decode("latin-1")
    if len(CONTROL.findall(text)) > len(text) // 200:
        raise ExtractError("it is binary, not text; convert it to a text format or leave it out")
    return text


def _groups(text: str) -> Iterator[list[tuple[int, str]]]:
    """Yield the runs of lines between blank lines, each line with its offset."""
    group: list[tuple[int, str]] = []
    offset = 0
    for line in text.split("\n"):
        if line.strip():
            group.append((offset, line))
        elif group:
            yield group
            group = []
        offset += len(line) + 1
    if group:
        yield group


def _block(lines: list[tuple[int, str]], kind: BlockKind, path: tuple[str, ...]) -> Block:
    offset, last = lines[-1]
    return Block(lines[0][0], offset + len(last.rstrip()), kind, path)


def _code_blocks(text: str) -> Iterator[Block]:
    for group in _groups(text):
        yield _block(group, BlockKind.CODE, ())


def _prose_blocks(text: str) -> Iterator[Block]:
    headings = HeadingStack()
    levels: dict[str, int] = {}
    for group in _groups(text):
        taken, title, style = _heading([line for _, line in group[:3]])
        if taken:
            path = headings.push(levels.setdefault(style, len(levels) + 1), title)
            yield _block(group[:taken], BlockKind.HEADING, path)
        if group[taken:]:
            yield _block(group[taken:], BlockKind.PARAGRAPH, headings.path)


def _heading(lines: list[str]) -> tuple[int, str, str]:
    """Return how many of the lines are a heading, its title and the style of its adornment."""
    if len(lines) == 3 and ADORNMENT.fullmatch(lines[0]) and lines[2].rstrip() == lines[0].rstrip():
        if _underlines(lines[1].strip(), lines[2]):
            return 3, lines[1].strip(), lines[0][0] * 2
    elif len(lines) >= 2 and not lines[0][0].isspace() and _underlines(lines[0].strip(), lines[1]):
        return 2, lines[0].strip(), lines[1][0]
    return 0, "", ""


def _underlines(title: str, line: str) -> bool:
    return (
        ADORNMENT.fullmatch(line) is not None
        and ADORNMENT.fullmatch(title) is None
        and len(title) <= MAX_HEADING
        and len(line.rstrip()) >= 0.8 * len(title)
    )
