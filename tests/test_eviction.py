"""What is evicted, in which order, and what never is."""

import json
import random
from dataclasses import asdict
from typing import Any

import pytest

from engine.block_pool import BlockPool
from engine.errors import ConfigError
from engine.eviction import POLICIES, EvictionQueue, Policy, lfu, lru, policy_named
from engine.prefix_cache import PrefixCache
from engine.prompt import Prompt, Segment, SegmentKind, block_keys
from engine.radix_tree import Node, PathPart, RadixTree
from engine.recompute_cost import RecomputeCost
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
    queue = EvictionQueue(lru)
    cuts = queue.plan([tree], cache.pool, 8)
    assert cuts is not None
    assert [(cut.node.keys[0][0], cut.num_blocks) for cut in cuts] == [(11, 3), (12, 3), (1, 2)]
    assert queue.plan([tree], cache.pool, 9) is None
    assert queue.plan([tree], cache.pool, 0) == []
    assert cache.num_cached_blocks == 8


def test_order_among_leaves_is_all_a_policy_decides() -> None:
    """A policy that would rather lose the template still loses the passages first."""

    def roots_first(node: Node) -> float:
        return 0 if node.parent is not None and node.parent.parent is None else node.keys[0][0]

    cache = PrefixCache(20, SIZE, policy=roots_first)
    for name in "cba":
        put(cache, TEMPLATE, PASSAGES[name])
    cuts = EvictionQueue(roots_first).plan([cache.tree("")], cache.pool, 11)
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
    assert policy_named("lfu") is lfu
    with pytest.raises(ConfigError, match=r"'fifo'.*lru, lfu, pgdsf"):
        policy_named("fifo")


class Leaves:
    """A tree of passages under one template, a pool and a queue, used by number."""

    def __init__(self, policy: Policy, num_blocks: int = 40) -> None:
        self.pool = BlockPool(num_blocks)
        self.tree = RadixTree(SIZE)
        self.policy = policy
        self.queue = EvictionQueue(policy)
        self.clock = 0

    def use(self, *path: int, tokens: int = 4) -> Node:
        """Match or insert a path of passages; the last one has so many tokens."""
        parts = [PathPart(block_keys(TEMPLATE.tokens, SIZE, sealed=True), self.pool.allocate(2), whole=True)]
        for n in path:
            keys = block_keys((n,) * (tokens if n == path[-1] else 4), SIZE, sealed=True)
            parts.append(PathPart(keys, self.pool.allocate(len(keys)), whole=True))
        adopted, nodes = self.tree.insert(parts)
        self.pool.hold(adopted)
        for part in parts:
            self.pool.drop(part.blocks)
        self.clock += 1
        for node in nodes:
            node.last_used = self.clock
            node.uses += 1
        self.queue.touch(nodes)
        return nodes[-1]

    def evict(self, n: int) -> list[int]:
        """Evict until n blocks are freed; return the first tokens of what goes, in order."""
        cuts = self.queue.plan([self.tree], self.pool, n)
        assert cuts is not None
        gone = [cut.node.keys[0][0] for cut in cuts]
        assert self.queue.evict(cuts, self.pool) >= n
        self.tree.check()
        return gone


def test_lfu_keeps_what_was_used_most() -> None:
    leaves = Leaves(lfu)
    for n in (11, 12, 12, 13, 13, 13, 11, 11, 11):
        leaves.use(n)
    assert leaves.evict(2) == [12, 13]


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_on_disk_goes_before_what_is_not(name: str) -> None:
    leaves = Leaves(policy_named(name))
    leaves.use(11)
    known = leaves.use(12)
    known.on_disk = True
    leaves.queue.touch([known])
    leaves.use(12)
    assert leaves.evict(1) == [12]


def test_what_is_on_disk_and_used_much_stays_for_what_is_long_forgotten() -> None:
    leaves = Leaves(lru)
    leaves.use(11)
    for _ in range(2000):
        leaves.use(12).on_disk = True
    assert leaves.evict(1) == [11]
    leaves = Leaves(lfu)
    leaves.use(11)
    for _ in range(100):
        leaves.use(12).on_disk = True
    assert leaves.evict(1) == [11]


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_on_probation_goes_first(name: str) -> None:
    leaves = Leaves(policy_named(name))
    for n in (11, 12, 12, 12):
        leaves.use(n)
    newest = leaves.use(12)
    newest.on_probation = True
    leaves.queue.touch([newest])
    assert leaves.evict(2) == [12, 11]


def test_pgdsf_keeps_what_is_dear_to_compute() -> None:
    cost = RecomputeCost.of_operations(10.0, 1.0, max_tokens=64)
    leaves = Leaves(policy_named("pgdsf", cost))
    leaves.use(11, 21)  # 21 has more tokens before it than the others
    leaves.use(12)
    leaves.use(13, tokens=16)  # longer, so that a token costs more
    assert leaves.evict(3) == [12, 21, 11]
    assert leaves.evict(1) == [13]


def test_pgdsf_forgets_old_use() -> None:
    """A newcomer starts from the priority of what was evicted last, so that former fame is overtaken."""
    leaves = Leaves(policy_named("pgdsf"))
    for n in (11, 11, 11, 12, 12):
        leaves.use(n)
    assert leaves.evict(1) == [12]
    for n in (13, 13, 14, 14):
        leaves.use(n)
    assert leaves.evict(1) == [11]
    counting = Leaves(lfu)
    for n in (11, 11, 11, 13, 13, 14, 14):
        counting.use(n)
    assert counting.evict(2) == [13, 14]


def test_a_priority_that_falls_counts_at_once() -> None:
    leaves = Leaves(lru)
    for n in (11, 12, 13):
        leaves.use(n)
    assert leaves.evict(1) == [11]
    newest = leaves.use(14)
    newest.on_disk = True
    leaves.queue.touch([newest])
    assert leaves.evict(1) == [14]


def test_a_plan_that_is_not_carried_out_changes_nothing() -> None:
    leaves = Leaves(lru)
    for n in (11, 12, 13):
        leaves.use(n)
    first = leaves.queue.plan([leaves.tree], leaves.pool, 2)
    assert leaves.queue.plan([leaves.tree], leaves.pool, 99) is None
    assert leaves.queue.plan([leaves.tree], leaves.pool, 2) == first
    leaves.use(11)
    assert leaves.evict(2) == [12, 13]


def test_what_was_held_during_an_eviction_goes_later_in_its_turn() -> None:
    leaves = Leaves(lru)
    leaves.use(11, 21)
    held = leaves.tree.match([*block_keys(TEMPLATE.tokens, SIZE, sealed=True), (11,) * 4]).blocks
    leaves.pool.hold(held)
    leaves.use(12)
    assert leaves.evict(2) == [21, 12]
    leaves.use(13)
    leaves.pool.drop(held)
    assert leaves.evict(1) == [11]


def test_what_has_come_below_a_leaf_goes_before_it() -> None:
    leaves = Leaves(lru)
    for n in (11, 12, 13):
        leaves.use(n)
    assert leaves.evict(1) == [11]
    below = PathPart([(21,) * 4], leaves.pool.allocate(1), whole=True)
    path = [PathPart(block_keys(t, SIZE, sealed=True), [], whole=True) for t in (TEMPLATE.tokens, (12,) * 4)]
    leaves.tree.insert([*path, below])  # the queue is not told
    assert leaves.evict(1) == [13]
    assert leaves.evict(2) == [21, 12]


def test_leaves_that_the_queue_was_not_told_of_are_found() -> None:
    leaves = Leaves(lru)
    leaves.use(11)
    leaves.use(12)
    blocks = leaves.pool.allocate(1)
    head = PathPart(block_keys(TEMPLATE.tokens, SIZE, sealed=True), [], whole=True)
    leaves.tree.insert([head, PathPart([(13,) * 4], blocks, whole=True)])
    assert sorted(leaves.evict(5)) == [1, 11, 12, 13]
    assert leaves.pool.num_free == leaves.pool.num_blocks


def test_nodes_of_dropped_trees_are_left_alone() -> None:
    leaves = Leaves(lru)
    leaves.use(11)
    assert leaves.evict(1) == [11]
    leaves.use(12)
    other = Leaves(lru)
    other.use(13)
    leaves.queue.touch(other.tree.nodes())
    assert leaves.queue.plan([other.tree], other.pool, 1) is not None
    cuts = leaves.queue.plan([leaves.tree], leaves.pool, 3)
    assert cuts is not None
    assert {cut.node.keys[0][0] for cut in cuts} == {12, 1}


@pytest.mark.parametrize("name", ["lru", "lfu"])
@pytest.mark.parametrize("seed", range(5))
def test_the_queue_chooses_what_a_look_at_every_leaf_would(name: str, seed: int) -> None:
    rng = random.Random(seed)
    leaves = Leaves(policy_named(name), num_blocks=60)
    for _ in range(300):
        path = rng.sample(range(11, 19), rng.choice([1, 1, 2, 3]))
        if leaves.pool.num_free < 12:
            n = rng.randint(12, 20) - leaves.pool.num_free
            naive = EvictionQueue(leaves.policy).plan([leaves.tree], leaves.pool, n)
            cuts = leaves.queue.plan([leaves.tree], leaves.pool, n)
            assert naive is not None
            assert cuts is not None
            key = [(leaves.policy(cut.node), cut.num_blocks) for cut in cuts]
            assert key == [(leaves.policy(cut.node), cut.num_blocks) for cut in naive]
            leaves.queue.evict(cuts, leaves.pool)
            leaves.tree.check()
        leaves.use(*path)
    while leaves.tree.root.children:
        leaves.evict(1)
    assert leaves.pool.num_free == leaves.pool.num_blocks


def test_the_heap_does_not_grow_without_end() -> None:
    leaves = Leaves(lru)
    leaves.use(11)
    assert leaves.evict(1) == [11]
    for n in range(20_000):
        dropped = RadixTree(SIZE)
        leaves.queue.touch(dropped.insert([PathPart([(n,) * 4], [0], whole=True)])[1])
    queue = leaves.queue  # memory cannot be seen from outside
    assert max(len(queue._heap), len(queue._queued), len(queue._priority)) < 5000
    leaves.use(12)
    leaves.use(13)
    assert leaves.evict(1) == [12]


def test_recompute_cost_between_and_beyond_the_points_of_its_grid() -> None:
    cost = RecomputeCost((0, 100), (10, 30), ((10.0, 60.0), (30.0, 120.0)))
    assert cost.per_token(0, 10) == 1
    assert cost.per_token(0, 20) == 1.5
    assert cost.per_token(50, 10) == 2
    assert cost.per_token(50, 20) == 2.5
    assert cost.per_token(1000, 1000) == 4
    assert cost.per_token(0, 1) == 1
    assert RecomputeCost.uniform().per_token(70, 3) == 1
    operations = RecomputeCost.of_operations(2.0, 1.0, max_tokens=4096)
    assert operations.per_token(1024, 64) == pytest.approx(2 + 1024 + 32)
    assert operations.relative().per_token(1024, 64) == pytest.approx((2 + 1024 + 32) / 2.5)
    kept = json.loads(json.dumps(asdict(operations)))
    assert RecomputeCost.of_record(**kept) == operations


@pytest.mark.parametrize(
    "record",
    [
        {"cached": [], "new": [1], "times": []},
        {"cached": [0], "new": [0], "times": [[1.0]]},
        {"cached": [0], "new": [1, 2], "times": [[1.0]]},
        {"cached": [0, 9], "new": [1], "times": [[1.0]]},
    ],
)
def test_a_damaged_record_of_costs_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="are no grid"):
        RecomputeCost.of_record(**record)
