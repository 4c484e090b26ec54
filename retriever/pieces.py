"""Text cut into pieces: the smallest things that a passage takes whole, and what it costs to cut before each.

Knows the structure of a text, not how many tokens it has.
"""

import re
from dataclasses import dataclass

from retriever.document import Block, BlockKind, ExtractedText
from retriever.errors import SettingsError

__all__ = ["Piece", "pieces_of", "smaller", "text_of"]

# What a cut before a piece costs, where a passage costs 1.
SECTION, PARAGRAPH, SENTENCE, LINE, WORD = 0.0, 0.25, 0.8, 1.6, 3.0
AFTER_HEADING = 3.0  # a heading belongs to what follows
AFTER_COLON = 0.6  # so does "for example:"

MAX_PIECE = 2000  # characters: bounds the work of one count on text without line breaks
SENTENCE_END = re.compile(
    r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)(?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bDr\.)(?<!\bMrs\.)"
    r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)\]]))[ \t]+(?=[\"'“‘(\[*_`]*[^\W_a-z])|(?<=[。！？])[ \t]*"  # noqa: RUF001
)
LINE_ITEM = re.compile(r"[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]")
LINE_ENDS = ".!?:。！？"  # noqa: RUF001
COLONS = ":："  # noqa: RUF001
TOP_LEVEL_CODE = re.compile(r"[^\s)\]}]")


@dataclass(frozen=True, slots=True)
class Piece:
    """The smallest thing that is moved whole; `cut` is what it costs to start a passage with it."""

    start: int
    end: int
    cut: float
    block: int


def pieces_of(document: ExtractedText) -> list[Piece]:
    """Return the pieces of a document in order: sentences, list items, lines."""
    pieces: list[Piece] = []
    for number, block in enumerate(document.blocks):
        cut = _block_cut(document, number)
        for start, end, inner in _lines(document.text, block):
            for left, right in _bounded(document.text, start, end):
                pieces.append(Piece(left, right, (inner if left == start else WORD) if pieces else 0.0, number))
                if start == left and start == block.start:
                    pieces[-1] = Piece(left, right, cut, number)
    return pieces


def _block_cut(document: ExtractedText, number: int) -> float:
    """Return what a cut before a block costs, by what it is and by what precedes it."""
    block = document.blocks[number]
    cut = SECTION if block.kind is BlockKind.HEADING else PARAGRAPH
    if number:
        before = document.blocks[number - 1]
        if before.kind is BlockKind.HEADING:
            cut += AFTER_HEADING
        elif document.text[before.end - 1] in COLONS:
            cut += AFTER_COLON
    if block.kind is BlockKind.CODE and not TOP_LEVEL_CODE.match(document.text, block.start):
        cut += SENTENCE
    return cut


def _lines(text: str, block: Block) -> list[tuple[int, int, float]]:
    """Return the sentences and lines of a block as (start, end, cost of a cut before it)."""
    found: list[tuple[int, int, float]] = []
    start, cut = block.start, 0.0
    boundaries = [
        (match.start(), match.end(), SENTENCE) for match in SENTENCE_END.finditer(text, block.start, block.end)
    ]
    is_code = block.kind is BlockKind.CODE
    boundaries = [] if is_code else boundaries
    newline = text.find("\n", block.start, block.end)
    while newline >= 0:
        sentence = is_code or text[newline - 1] in LINE_ENDS or LINE_ITEM.match(text, newline + 1) is not None
        boundaries.append((newline, newline + 1, SENTENCE if sentence else LINE))
        newline = text.find("\n", newline + 1, block.end)
    for stop, following, next_cut in sorted(boundaries):
        if text[start:stop].strip():
            found.append((start, stop, cut))
            start, cut = following, next_cut
    found.append((start, block.end, cut))
    return [item for item in found if item[1] > item[0]]


def _bounded(text: str, start: int, end: int, limit: int = MAX_PIECE) -> list[tuple[int, int]]:
    """Cut a stretch of text into parts of at most `limit` characters, at white space where there is some."""
    parts = []
    while end - start > limit:
        space = max(
            text.rfind(" ", start + limit // 2, start + limit), text.rfind("\t", start + limit // 2, start + limit)
        )
        stop = space + 1 if space > start else start + limit
        parts.append((start, stop))
        start = stop
    return [*parts, (start, end)]


def text_of(text: str, piece: Piece) -> str:
    """Return a piece with the line break after it, so that the tokens of pieces roughly add up."""
    return (
        text[piece.start : piece.end + 1]
        if text[piece.end : piece.end + 1].isspace()
        else text[piece.start : piece.end]
    )


def smaller(text: str, piece: Piece, tokens: int, room: int) -> list[Piece]:
    """Cut a piece of so many tokens into parts that probably fit into `room`.

    Raises:
        SettingsError: it is a single character.
    """
    length = piece.end - piece.start
    if length <= 1:
        raise SettingsError(
            f"the character {text[piece.start : piece.end]!r} takes {tokens} tokens, above the budget of {room}; "
            "raise passage_tokens"
        )
    limit = max(1, min(length // 2, length * room // (2 * tokens)))
    parts = _bounded(text, piece.start, piece.end, limit)
    return [Piece(start, end, piece.cut if start == piece.start else WORD, piece.block) for start, end in parts]
