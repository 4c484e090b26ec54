"""Cuts extracted text into passages within a token budget, at the best places that its structure offers.

Text is first cut into pieces (sentences, list items, lines), whose tokens are counted in one call for a whole batch of
documents. A shortest path over the pieces then chooses the cuts: few passages, well filled, cut before headings rather
than between paragraphs, there rather than between sentences, and only in need inside a line (after Knuth and Plass,
"Breaking paragraphs into lines", 1981). Tokens of pieces do not add up exactly to tokens of the whole, so that each
passage is counted once more and cut again where it does not fit: the budget is never exceeded.

Knows nothing of files, tokenizers, titles or the store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from retriever.config import SplitSettings
from retriever.document import Block, BlockKind, ExtractedText
from retriever.errors import PassageEncoderError
from retriever.pieces import Piece, pieces_of, smaller, text_of

__all__ = ["Count", "Span", "split"]

Count = Callable[[Sequence[str]], list[int]]

# What a passage costs beside its cut, 1, and the square of the share of its budget left empty.
MERGED_SECTION = 1.75  # what a passage pays for each heading inside it: only small neighbours merge
MERGED_CHILD = 1.0  # the same where the heading is the first below the one before


@dataclass(frozen=True, slots=True)
class Span:
    """A passage before it has tokens: characters `start` to `end` of a document's text."""

    start: int
    end: int
    page: int | None
    heading_path: tuple[str, ...]


def split(documents: Sequence[ExtractedText], settings: SplitSettings, count: Count) -> list[list[Span]]:
    """Return the passages of each document, in order, none above the token budget.

    Args:
        documents: extracted texts; counting is batched over all of them.
        settings: the budget and the overlap.
        count: returns the number of tokens of each text.

    Raises:
        SettingsError: a single character takes more tokens than the budget.
        PassageEncoderError: `count` does not return one number a text.
    """
    room = settings.passage_tokens - settings.overlap_tokens
    pieces = [pieces_of(document) for document in documents]
    texts = [document.text for document in documents]
    counted = _fit_pieces(texts, pieces, room, count)
    cuts = [
        _with_overlap(document.blocks, items, tokens, _best_cuts(document.blocks, items, tokens, room), settings)
        for document, (items, tokens) in zip(documents, counted, strict=True)
    ]
    return _within_budget(documents, cuts, settings.passage_tokens, count)


def _counted(count: Count, texts: list[str]) -> list[int]:
    """Return the number of tokens of each text, of which equal ones (short lines mostly are) are counted once."""
    distinct = list(dict.fromkeys(texts))
    tokens = list(count(distinct)) if distinct else []
    if len(tokens) != len(distinct):
        raise PassageEncoderError(
            f"the passage encoder counted {len(tokens)} of {len(distinct)} texts; it must count each"
        )
    tokens_of = dict(zip(distinct, tokens, strict=True))
    return [tokens_of[text] for text in texts]


def _fit_pieces(
    texts: list[str], documents: list[list[Piece]], room: int, count: Count
) -> list[tuple[list[Piece], list[int]]]:
    """Count the pieces and cut those that are too big, until each fits into `room`."""
    flat = [(number, piece) for number, pieces in enumerate(documents) for piece in pieces]
    counts = _counted(count, [text_of(texts[number], piece) for number, piece in flat])
    while any(tokens > room for tokens in counts):
        parts: list[tuple[int, Piece, int | None]] = []
        for (number, piece), tokens in zip(flat, counts, strict=True):
            if tokens <= room:
                parts.append((number, piece, tokens))
            else:
                parts.extend((number, part, None) for part in smaller(texts[number], piece, tokens, room))
        flat = [(number, piece) for number, piece, _ in parts]
        fresh = iter(
            _counted(count, [text_of(texts[number], piece) for number, piece, tokens in parts if tokens is None])
        )
        counts = [next(fresh) if tokens is None else tokens for _, _, tokens in parts]
    result: list[tuple[list[Piece], list[int]]] = [([], []) for _ in documents]
    for (number, piece), tokens in zip(flat, counts, strict=True):
        result[number][0].append(piece)
        result[number][1].append(tokens)
    return result


def _best_cuts(blocks: Sequence[Block], pieces: list[Piece], tokens: list[int], room: int) -> list[tuple[int, int]]:
    """Return the cheapest division as ranges of pieces, none of more than `room` tokens, as no piece has.

    Time is pieces times pieces per passage. That is a lot where lines are tiny, so NumPy looks at all possible starts
    of a passage at once; of equally good ones it takes the last.
    """
    sums = np.array([0, *accumulate(tokens)], np.float64)
    merges = np.array([0.0, *accumulate(_merge_costs(blocks, pieces))])
    cuts = [*(piece.cut for piece in pieces), 0.0]
    start_costs = np.array(cuts)  # becomes that of the cut and of all passages before it, one after the other
    best = [0] * (len(pieces) + 1)
    first = 0
    for end in range(1, len(pieces) + 1):
        while sums[end] - sums[first] > room:
            first += 1
        empty = 1 - (sums[end] - sums[first:end]) / room
        cost = start_costs[first:end] + 1 + empty * empty + merges[end] - merges[first + 1 : end + 1]
        best[end] = end - 1 - int(cost[::-1].argmin())
        start_costs[end] = cost[best[end] - first] + cuts[end]
    ranges = []
    end = len(pieces)
    while end:
        ranges.append((best[end], end))
        end = best[end]
    return ranges[::-1]


def _merge_costs(blocks: Sequence[Block], pieces: list[Piece]) -> list[float]:
    """Return, for each piece, what a passage pays for having it anywhere but at its start."""
    costs = []
    previous = -1
    for piece in pieces:
        block = blocks[piece.block]
        starts_section = piece.block != previous and block.kind is BlockKind.HEADING and previous >= 0
        if starts_section:
            is_child = block.heading_path[:-1] == blocks[previous].heading_path
            costs.append(MERGED_CHILD if is_child else MERGED_SECTION)
        else:
            costs.append(0.0)
        previous = piece.block
    return costs


def _with_overlap(
    blocks: Sequence[Block],
    pieces: list[Piece],
    tokens: list[int],
    ranges: list[tuple[int, int]],
    settings: SplitSettings,
) -> list[list[Piece]]:
    """Return the pieces of each passage, those repeated from the passage before first."""
    groups = []
    for number, (start, end) in enumerate(ranges):
        lowest = ranges[number - 1][0] + 1 if number else start
        room = min(settings.overlap_tokens, settings.passage_tokens - sum(tokens[start:end]))
        path = blocks[pieces[start].block].heading_path
        first = start
        while first > lowest and tokens[first - 1] <= room and blocks[pieces[first - 1].block].heading_path == path:
            first -= 1
            room -= tokens[first]
        groups.append(pieces[first:end])
    return groups


def _within_budget(
    documents: Sequence[ExtractedText], groups: list[list[list[Piece]]], budget: int, count: Count
) -> list[list[Span]]:
    """Count whole passages and halve those above the budget until none is."""
    result: list[list[Span]] = [[] for _ in documents]
    waiting = [(number, group) for number, passages in enumerate(groups) for group in passages]
    while waiting:
        ranges = [_trimmed(documents[number].text, group) for number, group in waiting]
        texts = [documents[number].text[start:end] for (number, _), (start, end) in zip(waiting, ranges, strict=True)]
        again: list[tuple[int, list[Piece]]] = []
        for (number, group), (start, end), tokens in zip(waiting, ranges, _counted(count, texts), strict=True):
            if start == end:
                continue
            if tokens > budget:
                again.extend((number, half) for half in _halves(documents[number].text, group, tokens, budget))
            else:
                result[number].append(_span(documents[number], group, start, end))
        waiting = again
    for spans in result:
        spans.sort(key=lambda span: (span.start, span.end))
    return result


def _trimmed(text: str, group: list[Piece]) -> tuple[int, int]:
    """Return the characters of a passage without blank lines around it; indentation of its first line stays."""
    start, end = group[0].start, group[-1].end
    end = start + len(text[start:end].rstrip())
    if start < end and text[start] in " \t" and text[start - 1 : start] not in ("", "\n"):
        start = end - len(text[start:end].lstrip())
    return start, end


def _halves(text: str, group: list[Piece], tokens: int, budget: int) -> list[list[Piece]]:
    if len(group) == 1:
        return [[piece] for piece in smaller(text, group[0], tokens, budget)]
    middle = len(group) / 2
    cut = min(range(1, len(group)), key=lambda index: group[index].cut + abs(index - middle) / middle)
    return [group[:cut], group[cut:]]


def _span(document: ExtractedText, group: list[Piece], start: int, end: int) -> Span:
    """Return the passage with the headings that all of it is below."""
    paths = [document.blocks[number].heading_path for number in range(group[0].block, group[-1].block + 1)]
    shared = paths[0]
    for path in paths[1:]:
        length = next(
            (i for i, (a, b) in enumerate(zip(shared, path, strict=False)) if a != b), min(len(shared), len(path))
        )
        shared = shared[:length]
    return Span(start, end, document.page_at(start), shared)
