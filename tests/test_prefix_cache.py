"""The prefix cache: admission, publishing and release, case by case (the state machine mixes them)."""

from typing import Any

import pytest

from engine.ladder import Outcome
from engine.prefix_cache import PrefixCache
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.request import Request

SIZE = 4
T = Segment((1, 2, 3, 4, 5), SegmentKind.TEMPLATE)
A = Segment(tuple(range(10, 20)), SegmentKind.PASSAGE)
B = Segment(tuple(range(20, 28)), SegmentKind.PASSAGE)
C = Segment((30, 31), SegmentKind.PASSAGE)
Q = Segment((7, 8, 9), SegmentKind.TAIL)


@pytest.fixture
def cache() -> PrefixCache:
    return PrefixCache(40, SIZE)


def ask(cache: PrefixCache, *segments: Segment, **options: Any) -> Request:
    request = Request(0, Prompt(segments), 8, **options)
    request.admission = cache.admit(request)
    assert request.admission is not None
    cache.check_invariants()
    return request


def compute(cache: PrefixCache, request: Request, n: int | None = None) -> Request:
    admission = request.held
    admission.num_computed_tokens += admission.num_remaining_tokens if n is None else n
    cache.publish(request)
    cache.check_invariants()
    return request


def sample(cache: PrefixCache, request: Request, *tokens: int) -> None:
    """Append tokens, each computed before the next but the last."""
    for token in tokens:
        compute(cache, request)
        request.output_tokens.append(token)
        request.held.grow()
        assert cache.extend(request)


def put(cache: PrefixCache, *segments: Segment, **options: Any) -> None:
    cache.release(compute(cache, ask(cache, *segments, **options)))
    cache.check_invariants()


def outcomes(request: Request) -> list[str]:
    return [placement.outcome.value for placement in request.held.placements]


def test_every_segment_starts_a_block_and_positions_come_from_segments(cache: PrefixCache) -> None:
    request = ask(cache, T, A, Q)
    assert [(run.start, run.num_tokens, len(run.blocks)) for run in request.held.runs] == [
        (0, 5, 2), (5, 10, 3), (15, 3, 1)
    ]  # fmt: skip
    assert request.held.spans == [(0, 18)]
    assert request.held.next_positions(4) == [range(4)]
    assert cache.pool.num_free == 40 - 6 == 40 - request.prompt.num_blocks(SIZE)


def test_the_second_question_computes_its_tail_only(cache: PrefixCache) -> None:
    put(cache, T, A, Q)
    request = ask(cache, T, A, Segment((6, 6), SegmentKind.TAIL))
    assert request.held.spans == [(15, 17)]
    assert outcomes(request) == ["path", "canonical", "computed"]


def test_nothing_is_published_before_it_is_computed(cache: PrefixCache) -> None:
    request = ask(cache, T, A, Q)
    expected = {0: 0, 4: 0, 5: 2, 14: 2, 15: 5, 18: 5}
    for computed, blocks in expected.items():
        compute(cache, request, computed - request.held.num_computed_tokens)
        assert cache.num_cached_blocks == blocks, f"after {computed} tokens"
        assert request.held.published_to == {0: 0, 2: 5, 5: 15}[blocks]


def test_text_is_published_by_full_blocks_of_the_prompt_only(cache: PrefixCache) -> None:
    request = ask(cache, Segment(tuple(range(10)), SegmentKind.TEXT))
    for computed, blocks in {3: 0, 4: 1, 9: 2, 10: 2}.items():
        compute(cache, request, computed - request.held.num_computed_tokens)
        assert cache.num_cached_blocks == blocks
    sample(cache, request, *range(50, 58))
    compute(cache, request)
    assert cache.num_cached_blocks == 2, "an answer is nobody's text"


def test_the_last_token_of_a_known_prompt_is_computed_again_in_a_block_of_its_own(cache: PrefixCache) -> None:
    put(cache, T, B)
    request = ask(cache, T, B)
    assert request.held.spans == [(9, 13)]
    assert cache.pool.count(request.held.blocks[-1]) == 1
    compute(cache, request)
    cache.release(request)
    assert cache.num_cached_blocks == 4


def test_a_tail_without_a_conversation_is_private(cache: PrefixCache) -> None:
    tail = Segment(tuple(range(60, 70)), SegmentKind.TAIL)
    put(cache, T, tail)
    assert cache.num_cached_blocks == 2
    assert ask(cache, T, tail).held.placements[-1].hit_tokens == 0


@pytest.mark.parametrize("kind", [SegmentKind.TAIL, SegmentKind.TEXT])
def test_a_conversation_continues_for_its_owner_alone(cache: PrefixCache, kind: SegmentKind) -> None:
    head = [T, A] if kind is SegmentKind.TAIL else []
    request = ask(cache, *head, Segment(tuple(range(60, 66)), kind), owner=("ann", "1"))
    sample(cache, request, *range(70, 76))
    cache.release(compute(cache, request))
    longer = Segment((*range(60, 66), *range(70, 76), 80, 81), kind)
    hits = [
        ask(cache, *head, longer, owner=o).held.placements[-1].hit_tokens for o in (("ann", "1"), ("bob", "1"), None)
    ]
    assert hits == [12, 0, 0]


def test_a_conversation_whose_prompt_ends_sealed_owns_its_answer(cache: PrefixCache) -> None:
    request = ask(cache, T, A, owner="ann")
    sample(cache, request, *range(70, 76))
    cache.release(compute(cache, request))
    again = ask(cache, T, A, Segment((*range(70, 76), 1), SegmentKind.TAIL), owner="ann")
    assert again.held.spans == [(19, 22)]


def test_a_refused_admission_changes_nothing() -> None:
    cache = PrefixCache(8, SIZE)
    put(cache, T, A)
    running = ask(cache, Segment((99,) * 12, SegmentKind.TEXT))
    before = [cache.pool.count(block) for block in range(8)], cache.num_cached_blocks, cache.num_evicted_blocks
    nodes = [(node.last_used, node.uses) for node in cache.tree("").nodes()]
    assert cache.admit(Request(1, Prompt([T, A, Q]), 1)) is None
    assert before == (
        [cache.pool.count(block) for block in range(8)], cache.num_cached_blocks, cache.num_evicted_blocks
    )  # fmt: skip
    assert nodes == [(node.last_used, node.uses) for node in cache.tree("").nodes()]
    cache.release(running)
    assert ask(cache, T, A, Q).held.spans == [(15, 18)]


def test_extend_gives_a_block_when_the_last_is_full_and_refuses_when_there_is_none() -> None:
    cache = PrefixCache(3, SIZE)
    request = ask(cache, T, Segment((7, 8, 9), SegmentKind.TAIL))
    sample(cache, request, 1)
    blocks = request.held.blocks
    compute(cache, request)
    request.output_tokens.append(2)
    request.held.grow()
    assert not cache.extend(request)
    assert request.held.blocks == blocks
    cache.check_invariants()


def test_a_new_order_of_known_passages_writes_nothing_and_evicts_nothing() -> None:
    cache = PrefixCache(40, SIZE)
    for passage in (A, B):
        put(cache, T, passage)
    before = [(node.keys, node.blocks) for node in cache.tree("").nodes()]
    for order in ((A, B), (B, A)):
        request = ask(cache, T, *order, Q, reuse=Reuse.CHUNK, repair=SIZE)
        assert outcomes(request) == ["path", "canonical", "shifted", "computed"]
        sample(cache, request, 1, 2, 3, 4)
        cache.release(request)
    assert [(node.keys, node.blocks) for node in cache.tree("").nodes()] == before
    assert cache.num_evicted_blocks == 0
    assert cache.pool.num_free + cache.num_cached_blocks == 40


def test_a_shifted_run_keeps_its_own_positions_and_the_repair_replaces_its_head() -> None:
    cache = PrefixCache(40, SIZE)
    for passage in (A, B):
        put(cache, T, passage)
    request = ask(cache, T, B, A, Q, reuse=Reuse.CHUNK, repair=SIZE)
    assert request.held.spans == [(13, 17), (23, 26)]
    assert [(run.start, run.num_tokens, run.shift) for run in request.held.runs] == [
        (0, 5, 0), (5, 8, 0), (13, 4, 0), (17, 6, 8), (23, 3, 0)
    ]  # fmt: skip
    assert request.held.next_positions(6) == [range(13, 17), range(23, 25)]
    request.held.num_computed_tokens = 4
    assert request.held.computed_end == 23
    cache.check_invariants()


def test_chunk_reuse_publishes_nothing_behind_the_first_passage(cache: PrefixCache) -> None:
    """C is unknown, and computed in its exact context: exact reuse would publish it, a new order writes nothing."""
    for passage in (A, B):
        put(cache, T, passage)
    request = compute(cache, ask(cache, T, A, C, B, Q, reuse=Reuse.CHUNK, owner="ann"))
    assert [p.outcome for p in request.held.placements][2:4] == [Outcome.COMPUTED, Outcome.SHIFTED]
    assert request.held.published_to == 15
    assert not cache.is_cached("", [T, A, C])
    assert cache.is_cached("", [T, A])


def test_a_conversation_over_approximate_context_finds_its_own_tail_over_the_same_runs_alone(
    cache: PrefixCache,
) -> None:
    for passage in (A, B, C):
        put(cache, T, passage)
    question = Segment(tuple(range(60, 66)), SegmentKind.TAIL)
    request = ask(cache, T, A, B, question, reuse=Reuse.CHUNK, owner=("ann", "1"))
    sample(cache, request, *range(70, 76))
    cache.release(compute(cache, request))
    longer = Segment((*range(60, 66), *range(70, 76), 80, 81), SegmentKind.TAIL)

    def hit(*head: Segment, **options: Any) -> int:
        again = ask(cache, *head, longer, **{"reuse": Reuse.CHUNK, "owner": ("ann", "1"), **options})
        found = again.held.placements[-1].hit_tokens
        cache.release(again)
        return found

    assert hit(T, A, B) == 12
    assert hit(T, A, B, owner=("bob", "1")) == 0
    assert hit(T, A, B, owner=None) == 0
    assert hit(T, A, B, reuse=Reuse.EXACT) == 0
    assert hit(T, A, B, repair=SIZE) == 0, "other runs: their heads are repaired"
    assert hit(T, B, A) == hit(T, A, C, B) == hit(T, A) == 0
    assert cache.drop_namespace("") == 40 - cache.pool.num_free or cache.pool.num_free == 40
    assert hit(T, A, B) == 0


def test_namespaces_share_nothing(cache: PrefixCache) -> None:
    put(cache, T, A, namespace="x")
    assert ask(cache, T, A, Q, namespace="y").held.spans == [(0, 18)]
    assert ask(cache, T, A, Q, namespace="x").held.spans == [(15, 18)]


def test_a_dropped_namespace_does_not_come_back(cache: PrefixCache) -> None:
    put(cache, T, A)
    first, second = ask(cache, T, A, Q, owner="ann"), ask(cache, T, A, Q)
    assert cache.drop_namespace("") == 0, "both requests hold all of it"
    compute(cache, first)
    compute(cache, second)
    assert cache.num_cached_blocks == 0
    cache.release(first)
    cache.release(second)
    assert cache.pool.num_free == 40
    put(cache, T, A)
    assert cache.num_cached_blocks == 5
    assert cache.clear() == 5
    assert cache.drop_namespace("unknown") == 0


def test_a_conversations_text_does_not_become_a_shared_passage(cache: PrefixCache) -> None:
    """The same tokens, first as private text and then as passages: each is computed for its own readers."""
    text = Segment((1,) * 12, SegmentKind.TEXT)
    put(cache, text, owner="ann")
    template = Segment((1,) * 4, SegmentKind.TEMPLATE)
    request = ask(cache, template, Segment((1,) * 8, SegmentKind.PASSAGE), Q, owner="ann")
    assert request.held.spans == [(0, 15)]
    cache.release(compute(cache, request))
    assert ask(cache, text).held.spans == [(8, 12)]


def test_two_requests_that_compute_the_same_at_once_keep_one_copy(cache: PrefixCache) -> None:
    first, second = ask(cache, T, A, Q), ask(cache, T, A, Q)
    compute(cache, first)
    compute(cache, second)
    assert cache.num_cached_blocks == 5
    cache.release(first)
    cache.release(second)
    assert cache.pool.num_free == 35


def test_a_request_counts_once_as_a_use_of_each_node() -> None:
    cache = PrefixCache(40, SIZE)
    for passage in (A, B, C):
        put(cache, T, passage)
    (template,) = cache.tree("").root.children.values()
    uses = template.uses
    ask(cache, T, A, B, C, Q, reuse=Reuse.CHUNK)
    assert template.uses == uses + 1


def test_admitting_twice_is_our_mistake(cache: PrefixCache) -> None:
    request = ask(cache, T, Q)
    with pytest.raises(AssertionError, match="admitted already"):
        cache.admit(request)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda cache, request: request.held.runs[0].blocks.pop(), "has count 1, but 0 holders"),
        (lambda cache, request: request.held.spans.append((0, 1)), "not ordered"),
        (lambda cache, request: setattr(request.held, "published_to", 99), "published to 99"),
        (lambda cache, request: setattr(request.held.runs[1], "start", 6), "a run starts at 6, not 5"),
        (lambda cache, request: cache.pool.allocate(1), "has count 1, but 0 holders"),
    ],
)
def test_the_invariants_can_fail(cache: PrefixCache, damage: Any, message: str) -> None:
    request = ask(cache, T, A, Q)
    damage(cache, request)
    with pytest.raises(AssertionError, match=message):
        cache.check_invariants()
