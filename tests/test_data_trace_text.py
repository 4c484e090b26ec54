"""Text for traces that hold none."""

import random

import pytest

from data.errors import TraceError
from data.trace_text import lay_text, parts_of
from data.traces import TracePart, TraceRequest

TEXT = random.Random(1).choices(range(50), k=300)


def request(*passages: TracePart, history: tuple[TracePart, ...] = ()) -> TraceRequest:
    return TraceRequest(0.0, "s", 9, 1, (TracePart(1, 5),), passages, history, (TracePart(2, 3),), (TracePart(3, 4),))


def test_every_piece_is_listed_once_by_id() -> None:
    a, b, c = TracePart(7, 10), TracePart(8, 20), TracePart(6, 2)
    found = parts_of([request(b, a), request(a, history=(c,))])
    assert [part.id for part in found] == [1, 2, 3, 6, 7, 8]


def test_pieces_have_their_length_and_follow_each_other() -> None:
    laid = lay_text([TracePart(5, 10), TracePart(9, 3), TracePart(2, 0)], TEXT)
    assert laid == {5: tuple(TEXT[:10]), 9: tuple(TEXT[10:13]), 2: ()}


def test_the_text_begins_again_and_no_two_pieces_are_equal() -> None:
    parts = [TracePart(i, 60) for i in range(200)]
    laid = lay_text(parts, TEXT)
    assert len(set(laid.values())) == 200
    assert {len(tokens) for tokens in laid.values()} == {60}
    endless = TEXT * 3
    assert all(any(endless[i : i + 60] == list(tokens) for i in range(300)) for tokens in laid.values())
    assert lay_text(parts, TEXT) == laid


def test_a_piece_longer_than_the_text() -> None:
    assert lay_text([TracePart(0, 7)], [1, 2, 3])[0] == (1, 2, 3, 1, 2, 3, 1)


def test_repetition_in_the_text_is_stepped_over() -> None:
    laid = lay_text([TracePart(i, 4) for i in range(4)], [1, 1, 1, 1, 1, 1, 1, 1, 2])
    assert len(set(laid.values())) == 4


def test_a_text_too_short_is_refused() -> None:
    with pytest.raises(TraceError, match="3 tokens of text are too few"):
        lay_text([TracePart(i, 2) for i in range(4)], [1, 2, 3])
