"""What is evicted, in which order, and what never is."""

import pytest

from engine.errors import ConfigError
from engine.eviction import lru, plan_eviction, policy_named
from engine.prefix_cache import PrefixCache
from engine.prompt import Prompt, Segment, SegmentKind, block_keys
from engine.radix_tree import Node
from engine.request import Request

SIZE = 4
TEMPLATE = Segment((1, 2, 3, 4, 5), SegmentKind.TEMPLATE)  # two blocks
PASSAGES = {name: Segment((n,) * 10, SegmentKind.PASSAGE) for n, name in enumerate("abc", start=11)}  # three blocks


def put(cache: PrefixCache, *segments: Segment, owner: object = None, keep: bool = False) -> Request:
    """Compute and publish a prompt; keep it running or release it."""
    request = Request(0, Prompt(segments), 0, owner=owner)
    admission = cache.admit(request)
    assert admission is not None
    request.admission = admission
    admission.num_computed_tokens += admission.num_remaining_tokens
    cache.publish(request)
    if not keep:
        cache.release(request)
    cache.check_invariants()
    return request


def take(cache: PrefixCache, num_blocks: int) -> bool:
    """Make room for something unknown, and give it back."""
    request = Request(0, Prompt.from_tokens([99] * num_blocks * SIZE), 0)
    admitted = cache.admit(request) is not None
    if admitted:
        cache.release(request)
    cache.check_invariants()
    return admitted


def cached(cache: PrefixCache, *segments: Segment) -> int:
    """How many blocks of these segments are in the tree."""
    keys = [key for s in segments for key in block_keys(s.tokens, SIZE, sealed=s.sealed)]
    return len(cache.tree("").match(keys).blocks)


def names(cache: PrefixCache) -> str:
    return "".join(name for name, passage in PASSAGES.items() if cache.is_cached("", [TEMPLATE, passage]))


def test_the_least_recently_used_passage_goes_first_and_whole() -> None:
    cache = PrefixCache(11, SIZE)
    for name in "abc":
        put(cache, TEMPLATE, PASSAGES[name])
    assert cache.pool.num_free == 0
    put(cache, TEMPLATE, PASSAGES["a"], Segment((9,), SegmentKind.TAIL))  # uses a again; the tail needs a block
    assert names(cache) == "ac"
    assert cache.num_evicted_blocks == 3
    assert cached(cache, TEMPLATE, PASSAGES["b"]) == 2
    assert take(cache, 4)
    assert names(cache) == "a"
    assert take(cache, 9)
    assert names(cache) == ""
    assert cached(cache, TEMPLATE) == 2, "the template goes after its last passage"
    assert take(cache, 10)
    assert cached(cache, TEMPLATE) == 0
    assert cache.num_evicted_blocks == 3 + 3 + 3 + 2


def test_publishing_counts_as_use_and_so_does_matching() -> None:
    cache = PrefixCache(40, SIZE)
    for name in "cab":
        put(cache, TEMPLATE, PASSAGES[name])
    put(cache, TEMPLATE, PASSAGES["c"], Segment((7,), SegmentKind.TAIL))
    order = []
    while names(cache):
        before = set(names(cache))
        assert take(cache, cache.pool.num_free + 1)
        order += before - set(names(cache))
    assert order == ["a", "b", "c"]


def test_text_is_trimmed_from_its_tail_by_no_more_than_is_needed() -> None:
    cache = PrefixCache(8, SIZE)
    text = Segment(tuple(range(24)), SegmentKind.TEXT)
    put(cache, text)
    assert take(cache, 3)
    assert cached(cache, text) == 5
    assert cache.num_evicted_blocks == 1
    assert take(cache, 8)
    assert cached(cache, text) == 0


def test_a_conversation_is_trimmed_like_text() -> None:
    cache = PrefixCache(10, SIZE)
    tail = Segment(tuple(range(30, 46)), SegmentKind.TAIL)
    put(cache, TEMPLATE, tail, owner="ann")
    assert cache.num_cached_blocks == 6
    assert take(cache, 6)
    assert cache.num_cached_blocks == 4
    assert cached(cache, TEMPLATE) == 2


def test_nothing_is_evicted_while_blocks_are_free() -> None:
    cache = PrefixCache(11, SIZE)
    put(cache, TEMPLATE, PASSAGES["a"])
    assert take(cache, 6)
    assert cache.num_evicted_blocks == 0


def test_held_blocks_stay_and_nothing_is_evicted_in_vain() -> None:
    cache = PrefixCache(11, SIZE)
    for name in "ab":
        put(cache, TEMPLATE, PASSAGES[name])
    running = put(cache, TEMPLATE, PASSAGES["a"], Segment((9,), SegmentKind.TAIL), keep=True)
    assert not take(cache, 6), "five are not held: two free, three of passage b"
    assert names(cache) == "ab", "what cannot be enough is not begun"
    assert take(cache, 5)
    assert names(cache) == "a"
    cache.release(running)
    assert take(cache, 11)


def test_a_leaf_whose_head_is_held_loses_its_tail() -> None:
    """Or a request alone in the engine could wait for ever."""
    cache = PrefixCache(6, SIZE)
    put(cache, Segment((1,) * 16, SegmentKind.TEXT))
    request = Request(0, Prompt.from_tokens([1] * 8 + [2] * 16), 0)
    assert cache.admit(request) is not None
    assert cache.num_evicted_blocks == 2
    cache.check_invariants()


def test_cuts_are_planned_leaf_first_and_change_nothing() -> None:
    cache = PrefixCache(20, SIZE)
    for name in "ab":
        put(cache, TEMPLATE, PASSAGES[name])
    tree = cache.tree("")
    cuts = plan_eviction([tree], cache.pool, lru, 8)
    assert cuts is not None
    assert [(cut.node.keys[0][0], cut.num_blocks) for cut in cuts] == [(11, 3), (12, 3), (1, 2)]
    assert plan_eviction([tree], cache.pool, lru, 9) is None
    assert plan_eviction([tree], cache.pool, lru, 0) == []
    assert cache.num_cached_blocks == 8


def test_order_among_leaves_is_all_a_policy_decides() -> None:
    """A policy that would rather lose the template still loses the passages first."""

    def roots_first(node: Node) -> float:
        return 0 if node.parent is not None and node.parent.parent is None else node.keys[0][0]

    cache = PrefixCache(20, SIZE, policy=roots_first)
    for name in "cba":
        put(cache, TEMPLATE, PASSAGES[name])
    cuts = plan_eviction([cache.tree("")], cache.pool, roots_first, 11)
    assert cuts is not None
    assert [cut.node.keys[0][0] for cut in cuts] == [11, 12, 13, 1]


def test_namespaces_share_one_pool() -> None:
    cache = PrefixCache(4, SIZE)
    for namespace in ("x", "y"):
        request = Request(0, Prompt.from_tokens([1] * 8), 0, namespace=namespace)
        admission = request.admission = cache.admit(request)
        assert admission is not None
        admission.num_computed_tokens = 8
        cache.publish(request)
        cache.release(request)
    assert take(cache, 2)
    assert [len(list(cache.tree(n).nodes())) for n in "xy"] == [0, 1], "the older one goes, wherever it is"


def test_an_unknown_policy_is_named_with_the_valid_ones() -> None:
    assert policy_named("lru") is lru
    with pytest.raises(ConfigError, match=r"'fifo'.*lru"):
        policy_named("fifo")
