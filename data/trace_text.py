"""Lays real text over the ids of a recorded trace, which holds none: equal ids get equal tokens of the recorded length.

Knows token ids; the caller has a tokenizer.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

from data.errors import TraceError
from data.traces import TracePart, TraceRequest

__all__ = ["lay_text", "parts_of"]


def parts_of(requests: Iterable[TraceRequest]) -> list[TracePart]:
    """Return every piece of these requests once, by id."""
    pieces = chain.from_iterable(
        (*one.system_prompt, *one.passages, *one.history, *one.web_search, *one.user_input) for one in requests
    )
    return sorted(set(pieces))


def lay_text(parts: Iterable[TracePart], text: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Give each piece tokens of its own: consecutive slices of a text, which begins again where it ends.

    Args:
        parts: pieces with distinct ids; one of no tokens gets none.
        text: tokens of a real text.

    Returns:
        The tokens by id. No two pieces of the same length have the same, whatever the text repeats.

    Raises:
        TraceError: the text is too short for so many distinct pieces.
    """
    laid: dict[int, tuple[int, ...]] = {}
    given: set[tuple[int, ...]] = {()}
    begin = 0
    for part in parts:
        if not part.num_tokens:
            laid[part.id] = ()
            continue
        for _ in text:
            tokens = _slice(text, begin, part.num_tokens)
            if tokens not in given:
                break
            begin += 1
        else:
            raise TraceError(f"{len(text)} tokens of text are too few for all pieces of the trace: use a longer text")
        given.add(tokens)
        laid[part.id] = tokens
        begin += part.num_tokens
    return laid


def _slice(text: Sequence[int], begin: int, n: int) -> tuple[int, ...]:
    """Return n tokens of a text that begins again where it ends."""
    begin %= len(text)
    tokens = tuple(text[begin : begin + n])
    while len(tokens) < n:
        tokens += tuple(text[: n - len(tokens)])
    return tokens
