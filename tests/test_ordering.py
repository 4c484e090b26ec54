"""Passages that may change places are read in an order that is cached."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import ordering
from engine.ordering import order_passages
from engine.prompt import Segment, SegmentKind, block_keys
from engine.radix_tree import Node, PathPart, RadixTree

SIZE = 4
TEMPLATE = Segment((1, 2, 3, 4, 5), SegmentKind.TEMPLATE)
PASSAGES = {name: Segment((n,) * (6 + n % 7), SegmentKind.PASSAGE, name) for n, name in enumerate("abcdefgh", start=11)}


def tree_of(*paths: str, uses: dict[str, int] | None = None) -> RadixTree:
    """A tree that holds the template with these orders of passages; a path was used as often as `uses` says."""
    tree = RadixTree(SIZE)
    blocks = iter(range(10_000))
    for path in paths:
        parts = [TEMPLATE, *(PASSAGES[name] for name in path)]
        nodes = tree.insert([part_of(part, blocks) for part in parts])[1]
        for node in nodes:
            node.uses += (uses or {}).get(path, 0)
    return tree


def part_of(segment: Segment, blocks) -> PathPart:
    keys = block_keys(segment.tokens, SIZE, sealed=True)
    return PathPart(keys, [next(blocks) for _ in keys], whole=True)


def ordered(tree: RadixTree, given: str, *groups: int) -> str:
    order = order_passages([PASSAGES[name] for name in given], groups, TEMPLATE, tree)
    assert sorted(order) == list(range(len(given)))
    return "".join(given[i] for i in order)


def hits(tree: RadixTree, order: str) -> int:
    keys = [block_keys(PASSAGES[name].tokens, SIZE, sealed=True) for name in order]
    match = tree.match([*block_keys(TEMPLATE.tokens, SIZE, sealed=True), *(key for one in keys for key in one)])
    return len(match.blocks)


def test_a_cached_order_is_found_again() -> None:
    tree = tree_of("cab", "ad", "b")
    assert ordered(tree, "abc", 3) == "cab"
    assert ordered(tree, "dbca", 4) == "cabd"


def test_without_groups_nothing_moves() -> None:
    tree = tree_of("cab")
    assert ordered(tree, "abc") == "abc"
    assert ordered(tree, "abc", 1, 1, 1) == "abc"


def test_passages_stay_in_their_group() -> None:
    tree = tree_of("cab", "bac")
    assert ordered(tree, "abc", 2, 1) == "bac"
    assert ordered(tree, "acb", 2, 1) == "cab"
    assert ordered(tree, "abcd", 1, 3) == "abcd"
    assert ordered(tree_of("abdc"), "acbd", 1, 3) == "abdc"


def test_the_longest_path_wins_over_the_most_used_child() -> None:
    tree = tree_of("ab", "cde", uses={"ab": 9})
    assert ordered(tree, "abcde", 5)[:3] == "cde"


def test_of_equal_paths_the_most_used_is_taken() -> None:
    assert ordered(tree_of("ah", "ha", uses={"ha": 1}), "ah", 2) == "ha"  # a and h have equal lengths


def test_what_is_not_cached_follows_by_use_of_its_canonical_kv_then_as_given() -> None:
    tree = tree_of("ab", "c", "d", "e", uses={"d": 5, "e": 7})
    assert ordered(tree, "cdeba", 5) == "abedc"
    assert ordered(tree_of("ab"), "dcba", 4) == "abdc"


def test_an_unknown_template_leaves_the_given_order() -> None:
    assert ordered(RadixTree(SIZE), "cab", 3) == "cab"
    other = Segment((9, 9), SegmentKind.TEMPLATE)
    assert order_passages([PASSAGES["a"], PASSAGES["b"]], (2,), other, tree_of("ba")) == (0, 1)


def test_a_passage_twice_in_a_prompt() -> None:
    assert ordered(tree_of("baa"), "aab", 3) == "baa"


def test_passages_without_a_template() -> None:
    tree = RadixTree(SIZE)
    blocks = iter(range(100))
    tree.insert([part_of(PASSAGES[name], blocks) for name in "ba"])
    assert order_passages([PASSAGES["a"], PASSAGES["b"]], (2,), None, tree) == (1, 0)


def test_a_passage_that_begins_like_another() -> None:
    short, long = Segment((7,) * 4, SegmentKind.PASSAGE), Segment((7,) * 8, SegmentKind.PASSAGE)
    tree = RadixTree(SIZE)
    blocks = iter(range(100))
    tree.insert([part_of(part, blocks) for part in (TEMPLATE, long, PASSAGES["a"])])
    tree.insert([part_of(part, blocks) for part in (TEMPLATE, short, PASSAGES["b"])])
    assert order_passages([PASSAGES["a"], short, long], (3,), TEMPLATE, tree) == (2, 0, 1)
    assert order_passages([PASSAGES["b"], short], (2,), TEMPLATE, tree) == (1, 0)


def test_a_passage_whose_beginning_alone_is_known() -> None:
    known, other = (Segment((7,) * 4 + (n,) * 4, SegmentKind.PASSAGE) for n in (1, 2))
    tree = RadixTree(SIZE)
    blocks = iter(range(100))
    tree.insert([part_of(part, blocks) for part in (TEMPLATE, known)])
    assert order_passages([other, known], (2,), TEMPLATE, tree) == (1, 0)


def test_private_nodes_are_not_followed() -> None:
    tree = RadixTree(SIZE)
    blocks = iter(range(100))
    keys = block_keys(PASSAGES["b"].tokens, SIZE, sealed=True)
    tree.insert([part_of(TEMPLATE, blocks), PathPart(keys, [next(blocks) for _ in keys], owner="ann")])
    assert ordered(tree, "ab", 2) == "ab"


def test_a_search_cut_short_is_a_greedy_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tree_of("ab", "cde", uses={"ab": 9})
    assert ordered(tree, "abcde", 5) == "cdeab"
    monkeypatch.setattr(ordering, "MAX_STEPS", 2)
    assert ordered(tree, "abcde", 5)[:2] == "ab"


@given(
    st.lists(st.permutations("abcd").map("".join), max_size=6),
    st.permutations("abcde").map("".join),
    st.sampled_from([(5,), (2, 3), (1, 4), (1, 1, 1, 2), (2, 2, 1)]),
)
def test_no_other_order_of_the_groups_has_more_hits(cached: list[str], given: str, groups: tuple[int, ...]) -> None:
    tree = tree_of("ab", *(path[:3] for path in cached))
    before = [(node.uses, node.last_used) for node in nodes(tree)]
    found = ordered(tree, given, *groups)
    allowed = [""]
    for end, n in zip([sum(groups[: i + 1]) for i in range(len(groups))], groups, strict=True):
        allowed = [head + "".join(p) for head in allowed for p in permutations(given[end - n : end])]
    assert found in allowed
    assert hits(tree, found) == max(hits(tree, order) for order in allowed)
    assert [(node.uses, node.last_used) for node in nodes(tree)] == before


def nodes(tree: RadixTree) -> list[Node]:
    return list(tree.nodes())
