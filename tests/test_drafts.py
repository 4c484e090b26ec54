"""Drafts: what followed the same words before, and how many of them are worth a try."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.drafts import LONGEST_MATCH, Continuations, Drafter, Drafts
from engine.prompt import Prompt
from engine.request import Request

PASSAGE = list(range(100, 160))


def naive_longest_match(tokens: list[int]) -> int:
    """The longest suffix, of two tokens or more, that occurs before and has something behind it there."""
    best = 0
    for end in range(1, len(tokens)):
        n = 0
        while n < min(end, LONGEST_MATCH) and tokens[end - 1 - n] == tokens[-1 - n]:
            n += 1
        best = max(best, n)
    return best if best >= 2 else 0


@given(st.lists(st.integers(0, 5), max_size=16), st.lists(st.lists(st.integers(0, 5), max_size=5), max_size=6))
def test_the_longest_match_is_found(start: list[int], additions: list[list[int]]) -> None:
    """As a naive search finds it, however the text came; the 16 latest candidates are all there are in so few."""
    text, tokens = Continuations(start), list(start)
    for added in [[], *additions]:
        text.extend(added)
        tokens += added
        end, length = text.find()
        if len(tokens) <= 16:
            assert length == naive_longest_match(tokens)
        if length:
            assert 2 <= length <= LONGEST_MATCH
            assert end < len(tokens)
            assert tokens[end - length : end] == tokens[len(tokens) - length :]
            assert list(text.continuation(end, 3)[: len(tokens) - end]) == tokens[end : end + 3]


def test_the_latest_of_equal_matches_and_the_longest_of_all() -> None:
    assert Continuations([1, 2, 8, 1, 2, 9, 1, 2]).find() == (5, 2)
    assert Continuations([3, 1, 2, 8, 1, 2, 9, 3, 1, 2]).find() == (3, 3)
    assert Continuations([1, 2, 3, 4]).find() == (0, 0)
    assert Continuations([]).find() == (0, 0)


def test_a_text_that_repeats_itself_goes_on_repeating() -> None:
    text = Continuations([7, 1, 2, 3, 1, 2, 3])
    end, length = text.find()
    assert (end, length) == (4, 3)
    assert text.continuation(end, 8) == (1, 2, 3, 1, 2, 3, 1, 2)


def feed(drafter: Drafter, answer: list[int], *, limit: int = 8, cost: float = 0.05) -> list[tuple[int, ...]]:
    """The drafts at each length of an answer that is sampled token by token."""
    return [drafter.propose(answer[:n], limit, cost) for n in range(len(answer) + 1)]


def test_quoting_a_passage_drafts_what_follows_there() -> None:
    drafts = feed(Drafter([*PASSAGE, 1, 2]), PASSAGE[10:40])
    assert all(draft == tuple(PASSAGE[10 + n : 10 + n + len(draft)]) for n, draft in enumerate(drafts))
    assert [len(draft) for draft in drafts[:2]] == [0, 0], "one token is no match"
    assert all(len(draft) == 8 for draft in drafts[8:])
    assert len(drafts[2]) <= len(drafts[4]) <= len(drafts[8])


def test_an_answer_of_its_own_words_drafts_nothing() -> None:
    assert not any(feed(Drafter(PASSAGE), list(range(200, 260))))


def test_a_habit_of_not_copying_is_learned_and_unlearned() -> None:
    """Pairs of tokens from the passage, each followed by something else; then a quotation."""
    strange = [token for i in range(0, 40, 2) for token in (PASSAGE[i], PASSAGE[i + 1], 500 + i)]
    drafter = Drafter(PASSAGE)
    lengths = [len(draft) for draft in feed(drafter, strange, cost=0.2)]
    assert sum(lengths[:12]) > 0
    assert sum(lengths[15:]) == 0
    quoting = feed(drafter, strange + PASSAGE, cost=0.2)[len(strange) :]
    assert all(len(draft) > 0 for draft in quoting[20:-10])


@pytest.mark.parametrize(("cheap", "dear"), [*pairwise([0.0, 0.1, 0.5, 5.0])])
def test_the_dearer_the_shorter(cheap: float, dear: float) -> None:
    first, second = (feed(Drafter(PASSAGE), PASSAGE[5:25], cost=cost) for cost in (cheap, dear))
    assert all(len(a) >= len(b) for a, b in zip(first, second, strict=True))
    assert sum(map(len, first)) > sum(map(len, second))
    assert not any(feed(Drafter(PASSAGE), PASSAGE[5:25], cost=5.0))
    assert not any(feed(Drafter(PASSAGE), PASSAGE[5:25], cost=float("inf")))


def request_of(tokens: list[int], answer: list[int]) -> Request:
    return Request(0, Prompt.from_tokens(tokens), 50, output_tokens=answer)


def test_drafts_of_several_requests_are_apart_and_can_be_forgotten() -> None:
    drafts = Drafts(4)
    one, other = request_of(PASSAGE, PASSAGE[:6]), request_of(PASSAGE[::-1], PASSAGE[::-1][:6])
    assert drafts.propose(one, 9, 1) == tuple(PASSAGE[6:10])
    assert drafts.propose(other, 9, 1) == tuple(PASSAGE[::-1][6:10])
    assert drafts.propose(one, 2, 1) == tuple(PASSAGE[6:8])
    for request in (one, other, one):
        drafts.forget(request)
    assert not drafts._drafters


@pytest.mark.parametrize(("most", "limit"), [(0, 9), (9, 0), (9, -1)])
def test_no_room_no_draft(most: int, limit: int) -> None:
    assert Drafts(most).propose(request_of(PASSAGE, PASSAGE[:6]), limit, 1) == ()
