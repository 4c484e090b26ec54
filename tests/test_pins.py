"""Pinned passages stay in the pool, whatever else is asked for, and never keep a request from running."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from engine.pins import MAX_PINNED_SHARE
from engine.prefix_cache import PrefixCache
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.request import Request

BLOCK = 2
TEMPLATE = Segment((1, 1, 1), SegmentKind.TEMPLATE)
PASSAGES = [Segment((2 + n,) * (2 + n), SegmentKind.PASSAGE, str(n)) for n in range(4)]
PASSAGES.append(Segment(PASSAGES[3].tokens[:4], SegmentKind.PASSAGE, "prefix"))  # a prefix of another one
SPACE = "1"


def ask(cache: PrefixCache, segments: list[Segment], **options: Any) -> bool:
    """Run a request alone from its admission to its end; tell whether there was room."""
    request = Request(0, Prompt(segments), 0, namespace=SPACE, reuse=Reuse.EXACT, **options)
    request.admission = cache.admit(request)
    if request.admission is None:
        return False
    request.held.num_computed_tokens += request.held.num_remaining_tokens
    cache.publish(request)
    cache.release(request)
    return True


def read(cache: PrefixCache, passage: Segment) -> None:
    assert ask(cache, [TEMPLATE, passage]), "a lone request has no room"


def press(cache: PrefixCache, num_blocks: int, *, start: int = 100) -> bool:
    """Ask for something that is as long as so many blocks and matches nothing."""
    return ask(cache, [Segment(tuple(range(start, start + num_blocks * BLOCK)), SegmentKind.TEXT)])


def is_cached(cache: PrefixCache, passage: Segment) -> bool:
    return cache.is_cached(SPACE, [TEMPLATE, passage])


def test_what_is_pinned_survives_any_pressure_and_what_is_not_goes() -> None:
    cache = PrefixCache(16, BLOCK)
    for passage in PASSAGES[:3]:
        read(cache, passage)
    assert cache.pin(SPACE, TEMPLATE, PASSAGES[0])
    for start in range(100, 400, 30):
        assert press(cache, 12, start=start)
    assert [is_cached(cache, passage) for passage in PASSAGES[:3]] == [True, False, False]
    cache.check_invariants()
    assert cache.unpin(SPACE) == 1
    assert press(cache, 16, start=1000)
    assert not is_cached(cache, PASSAGES[0])


def test_only_what_is_cached_can_be_pinned_and_only_up_to_a_share() -> None:
    cache = PrefixCache(10, BLOCK)
    assert not cache.pin(SPACE, TEMPLATE, PASSAGES[0])
    for passage in PASSAGES[:3]:
        read(cache, passage)
    pinned = [cache.pin(SPACE, TEMPLATE, passage) for passage in PASSAGES[:3]]
    assert pinned == [True, True, False], "a template of two blocks, passages of one, two and two"
    assert cache.pins.num_blocks == 5 == MAX_PINNED_SHARE * 10
    assert cache.pin(SPACE, TEMPLATE, PASSAGES[1]), "once more is no more"
    assert cache.pins.num_blocks == 5


def test_pins_give_way_to_a_request_that_could_never_run_beside_them(caplog: pytest.LogCaptureFixture) -> None:
    cache = PrefixCache(8, BLOCK)
    read(cache, PASSAGES[1])
    assert cache.pin(SPACE, TEMPLATE, PASSAGES[1])
    other = Request(1, Prompt.from_tokens(range(50, 52)), 8, namespace=SPACE)
    other.admission = cache.admit(other)
    assert not press(cache, 8), "others run, so that it can wait"
    assert cache.pins.passages(SPACE) == [PASSAGES[1]]
    cache.release(other)
    assert press(cache, 8)
    assert not cache.pins
    assert "pinned no longer" in caplog.text
    cache.check_invariants()


def test_letting_go_of_one_passage_looks_at_its_own_blocks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(Counter[int]):
        def items(self) -> Any:
            raise AssertionError("all pinned blocks are walked")

    cache = PrefixCache(40, BLOCK)
    monkeypatch.setattr(cache.pins, "_holders", Watched())
    for passage in PASSAGES[:3]:
        read(cache, passage)
        assert cache.pin(SPACE, TEMPLATE, passage)
    pinned = cache.pins.num_blocks
    assert cache.unpin(SPACE, lambda passage: passage is not PASSAGES[1]) == 1
    assert cache.pins.num_blocks == pinned - len(PASSAGES[1].tokens) // BLOCK - len(PASSAGES[1].tokens) % BLOCK
    assert cache.unpin(SPACE) == 2
    assert cache.pins.num_blocks == 0


@pytest.mark.parametrize("how", ["purge", "drop", "clear"])
def test_what_is_forgotten_is_pinned_no_longer(how: str) -> None:
    cache = PrefixCache(20, BLOCK)
    for passage in PASSAGES[:2]:
        read(cache, passage)
        assert cache.pin(SPACE, TEMPLATE, passage)
    if how == "purge":
        assert cache.purge(SPACE, [PASSAGES[0].tokens])
    else:
        cache.drop_namespace(SPACE) if how == "drop" else cache.clear()
    cache.check_invariants()
    assert cache.pins.passages(SPACE) == ([PASSAGES[1]] if how == "purge" else [])
    assert is_cached(cache, PASSAGES[1]) is (how == "purge")
    assert not is_cached(cache, PASSAGES[0])


def test_a_new_template_takes_the_place_of_the_old_one() -> None:
    cache = PrefixCache(20, BLOCK)
    other = Segment((9, 9), SegmentKind.TEMPLATE)
    read(cache, PASSAGES[0])
    assert cache.pin(SPACE, TEMPLATE, PASSAGES[0])
    assert ask(cache, [other, PASSAGES[0]])
    assert cache.pin(SPACE, other, PASSAGES[0])
    assert cache.pins.passages(SPACE) == [PASSAGES[0]]
    assert cache.pins.num_blocks == 2


class PinMachine(RuleBasedStateMachine):
    """Pins come and go between requests of every size; a pinned passage is always there."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(14, BLOCK)

    @rule(passage=st.sampled_from(PASSAGES), pin=st.booleans())
    def read(self, passage: Segment, pin: bool) -> None:
        read(self.cache, passage)
        if pin:
            held = {segment.name for segment in self.cache.pins.passages(SPACE)}
            pinned = self.cache.pin(SPACE, TEMPLATE, passage)
            assert pinned or self.cache.pins.num_blocks + 5 > MAX_PINNED_SHARE * 14
            now = {segment.name for segment in self.cache.pins.passages(SPACE)}
            assert now == (held | {passage.name} if pinned else held - {passage.name})

    @rule(blocks=st.integers(1, 14), start=st.integers(100, 140))
    def press(self, blocks: int, start: int) -> None:
        before = self.cache.pins.passages(SPACE)
        assert press(self.cache, blocks, start=start)
        assert self.cache.pins.passages(SPACE) == before or blocks > MAX_PINNED_SHARE * 14

    @rule(passage=st.sampled_from(PASSAGES), purge=st.booleans())
    def let_go(self, passage: Segment, purge: bool) -> None:
        if purge:
            assert self.cache.purge(SPACE, [passage.tokens])
            assert not is_cached(self.cache, passage) or passage.name == "prefix"
        else:
            self.cache.unpin(SPACE, lambda segment: segment.name != passage.name)
        assert passage.name not in {segment.name for segment in self.cache.pins.passages(SPACE)}

    @invariant()
    def pinned_is_cached(self) -> None:
        self.cache.check_invariants()
        for passage in self.cache.pins.passages(SPACE):
            assert is_cached(self.cache, passage)
        assert self.cache.pins.num_blocks <= MAX_PINNED_SHARE * 14

    def teardown(self) -> None:
        self.cache.clear()
        assert self.cache.pool.num_free == 14


def test_pins_beside_everything_else() -> None:
    run_state_machine_as_test(PinMachine, settings=settings(max_examples=50, stateful_step_count=20, deadline=None))
