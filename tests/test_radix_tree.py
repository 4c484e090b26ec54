"""The radix tree: what is shared, where nodes are cut, who may match, and that matching changes nothing."""

import copy
from typing import Any

import pytest

from engine.prompt import block_keys
from engine.radix_tree import Node, PathPart, RadixTree

SIZE = 4
ANN, BOB = ("ann", "1"), ("bob", "1")


class Blocks:
    """Hands out block ids."""

    def __init__(self) -> None:
        self.next_id = 0

    def take(self, n: int) -> list[int]:
        self.next_id += n
        return list(range(self.next_id - n, self.next_id))


@pytest.fixture
def tree() -> RadixTree:
    return RadixTree(SIZE)


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


def sealed(tokens: list[int], blocks: Blocks) -> PathPart:
    keys = block_keys(tokens, SIZE, sealed=True)
    return PathPart(keys, blocks.take(len(keys)), whole=True)


def text(tokens: list[int], blocks: Blocks, owner: Any = None) -> PathPart:
    keys = block_keys(tokens, SIZE, sealed=False)
    return PathPart(keys, blocks.take(len(keys)), owner)


def keys_of(*segments: list[int]) -> list[tuple[int, ...]]:
    return [key for tokens in segments for key in block_keys(tokens, SIZE, sealed=True)]


def shape(node: Node) -> Any:
    """A deep, comparable picture of a subtree, with identities."""
    children = {key: shape(child) for key, child in node.children.items()}
    return (id(node), tuple(node.keys), tuple(node.blocks), node.owner, node.whole, node.last_used, node.uses, children)


TEMPLATE = [1, 2, 3, 4, 5]
LONG = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("cut", [8, 4, 6, 1], ids=["at 8", "at 4", "off: 6", "shorter than a block"])
@pytest.mark.parametrize("long_first", [True, False])
def test_a_passage_that_begins_another(tree: RadixTree, blocks: Blocks, cut: int, long_first: bool) -> None:
    """Whole blocks in common are shared; a partly filled one is a block of its own, whatever the order."""
    passages = [LONG, LONG[:cut]] if long_first else [LONG[:cut], LONG]
    held = []
    for passage in passages:
        adopted, _ = tree.insert([sealed(TEMPLATE, blocks), sealed(passage, blocks)])
        held.append(adopted)
        tree.check()
    common = cut // SIZE
    assert len(held[0]) == 2 + -(-len(passages[0]) // SIZE)
    assert len(held[1]) == -(-len(passages[1]) // SIZE) - common
    long_match = tree.match(keys_of(TEMPLATE, LONG)).blocks
    short_match = tree.match(keys_of(TEMPLATE, LONG[:cut])).blocks
    assert len(long_match) == 2 + 3
    assert len(short_match) == 2 + -(-cut // SIZE)
    assert long_match[: 2 + common] == short_match[: 2 + common]
    assert set(long_match[2 + common :]).isdisjoint(short_match[2 + common :])


def test_equal_first_blocks_are_shared_and_split_between_blocks(tree: RadixTree, blocks: Blocks) -> None:
    first, second = [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 80, 90]
    tree.insert([sealed(first, blocks)])
    adopted, nodes = tree.insert([sealed(second, blocks)])
    assert adopted == [4, 5]
    assert [node.keys for node in nodes] == [[(1, 2, 3, 4)], [(5, 6, 7, 80), (90,)]]
    assert all(node.whole for node in tree.nodes())
    assert sorted(len(node.keys) for node in tree.nodes()) == [1, 2, 2]
    tree.check()


def test_no_split_inside_a_block(tree: RadixTree, blocks: Blocks) -> None:
    """Three of four equal tokens share nothing."""
    tree.insert([sealed([1, 2, 3, 4], blocks)])
    adopted, _ = tree.insert([sealed([1, 2, 3, 5], blocks)])
    assert adopted == [1]
    assert len(tree.root.children) == 2
    assert tree.match([(1, 2, 3)]).blocks == ()


def test_two_templates_that_share_a_prefix(tree: RadixTree, blocks: Blocks) -> None:
    other = [*TEMPLATE[:4], 9]
    tree.insert([sealed(TEMPLATE, blocks), sealed(LONG, blocks)])
    tree.insert([sealed(other, blocks), sealed(LONG, blocks)])
    tree.check()
    mine, theirs = tree.match(keys_of(TEMPLATE, LONG)).blocks, tree.match(keys_of(other, LONG)).blocks
    assert mine[0] == theirs[0]
    assert set(mine[1:]).isdisjoint(theirs[1:]), "the same passage below another template is other KV"
    assert tree.match(keys_of(TEMPLATE[:4], LONG)).blocks == mine[:1]


def test_a_partly_filled_block_has_children_and_is_never_extended(tree: RadixTree, blocks: Blocks) -> None:
    tree.insert([sealed([1, 2], blocks)])
    tree.insert([sealed([1, 2], blocks), text([3, 4, 5, 6], blocks)])
    tree.insert([sealed([1, 2, 3], blocks)])
    assert tree.match([(1, 2), (3, 4, 5, 6)]).blocks == (0, 2)
    assert tree.match([(1, 2, 3)]).blocks == (3,)
    assert tree.match([(1, 2, 3, 4)]).blocks == ()
    tree.check()


def test_text_grows_its_leaf_and_keeps_passages_apart(tree: RadixTree, blocks: Blocks) -> None:
    tree.insert([sealed([1, 2], blocks), text([5] * 4, blocks)])
    adopted, nodes = tree.insert([sealed([1, 2], blocks), text([5] * 12, blocks)])
    assert len(adopted) == 2
    assert [len(node.keys) for node in tree.nodes()] == [1, 3]
    assert nodes[-1].num_tokens == 12
    tree.insert([sealed([1, 2], blocks), text([5] * 12, blocks), sealed([6], blocks)])
    assert [len(node.keys) for node in tree.nodes()] == [1, 3, 1]
    tree.insert([sealed([1, 2], blocks), text([5] * 16, blocks)])
    tree.check()
    assert len(tree.match([(1, 2), *[(5,) * 4] * 4]).blocks) == 5


def test_a_boundary_is_kept_at_the_end_of_each_part(tree: RadixTree, blocks: Blocks) -> None:
    _, nodes = tree.insert([sealed([1] * 4, blocks), sealed([2] * 8, blocks), sealed([3], blocks)])
    assert [node.num_tokens for node in nodes] == [4, 8, 1]


def test_match_is_read_only(tree: RadixTree, blocks: Blocks) -> None:
    tree.insert([sealed(TEMPLATE, blocks), sealed(LONG, blocks), text([7] * 8, blocks, ANN)])
    tree.insert([text([1, 2, 3, 4, 9, 9, 9, 9], blocks)])
    before = copy.deepcopy(shape(tree.root))
    for owner in (None, ANN, BOB):
        for query in (
            keys_of(TEMPLATE, LONG[:6]),
            keys_of(TEMPLATE, LONG, [7] * 8),
            keys_of([1, 2, 3, 4]),
            keys_of([8]),
        ):
            tree.match(query, owner)
    assert shape(tree.root) == before


def test_private_nodes_are_for_their_owner_only(tree: RadixTree, blocks: Blocks) -> None:
    tree.insert([sealed(TEMPLATE, blocks), text([7] * 8, blocks, ANN)])
    query = keys_of(TEMPLATE, [7] * 8)
    assert tree.match(query, ANN).blocks == (0, 1, 2, 3)
    assert tree.match(query, BOB).blocks == (0, 1)
    assert tree.match(query, ("ann", "2")).blocks == (0, 1)
    assert tree.match(query).blocks == (0, 1)


def test_the_longest_of_shared_and_private(tree: RadixTree, blocks: Blocks) -> None:
    """A private path may leave the shared one at any boundary; ties go to the shared one."""
    tree.insert([text([1] * 8, blocks)])
    tree.insert([text([1] * 8 + [2] * 4, blocks, ANN)])
    tree.insert([text([1] * 12, blocks)])
    assert tree.match(keys_of([1] * 8, [2] * 4), ANN).blocks == (0, 1, 4)
    assert tree.match(keys_of([1] * 12), ANN).blocks == (0, 1, 7)
    tree.insert([text([3] * 8, blocks, ANN)])
    tree.insert([text([3] * 4, blocks)])
    assert tree.match(keys_of([3] * 8), ANN).blocks == (8, 9)
    assert tree.match(keys_of([3] * 4), ANN).blocks == (10,)
    assert tree.match(keys_of([3] * 8)).blocks == (10,)


def test_a_route_is_stable_when_somebody_shares_the_same_text(tree: RadixTree, blocks: Blocks) -> None:
    """A conversation's block adopted below another's stays the only copy when a shared path appears beside it."""
    part = text([1] * 12, blocks, ANN)
    tree.insert([text([1] * 4, blocks)])
    tree.insert([text([1] * 8, blocks, ANN)])
    tree.insert([part])
    tree.insert([text([1] * 8, blocks)])
    longer = text([1] * 16, blocks, ANN)
    adopted, _ = tree.insert([PathPart(longer.keys, [*part.blocks, 99], ANN)])
    assert adopted == [99]
    tree.check()


def test_sealed_keys_match_shared_nodes_only(tree: RadixTree, blocks: Blocks) -> None:
    """What will be published as a shared passage must not be a conversation's block already."""
    tree.insert([text([1] * 8 + [2] * 4, blocks, ANN)])
    query = keys_of([1] * 8, [2] * 4)
    assert tree.match(query, ANN).blocks == (0, 1, 2)
    assert tree.match(query, ANN, num_shared_keys=2).blocks == ()
    tree.insert([sealed([1] * 8, blocks), text([2] * 4, blocks, ANN)])
    assert tree.match(query, ANN, num_shared_keys=2).blocks == (3, 4, 5)
    tree.check()


def test_a_known_path_keeps_the_trees_own_blocks(tree: RadixTree, blocks: Blocks) -> None:
    tree.insert([sealed(TEMPLATE, blocks)])
    before = shape(tree.root)
    adopted, nodes = tree.insert([sealed(TEMPLATE, blocks)])
    assert adopted == []
    assert [node.blocks for node in nodes] == [[0, 1]]
    assert shape(tree.root) == before


def test_cutting_a_leaf(tree: RadixTree, blocks: Blocks) -> None:
    _, (head, tail) = tree.insert([sealed([1] * 4, blocks), text([2] * 12, blocks)])
    assert tree.remove_tail(tail, 2) == [2, 3]
    assert tree.match(keys_of([1] * 4, [2] * 12)).blocks == (0, 1)
    with pytest.raises(AssertionError, match="leaf"):
        tree.remove_tail(head, 1)
    assert tree.remove_tail(tail, 1) == [1]
    assert tree.remove_tail(head, 1) == [0]
    assert list(tree.nodes()) == []


def test_check_finds_damage(tree: RadixTree, blocks: Blocks) -> None:
    """The checker itself can fail."""

    def damaged(change: Any) -> RadixTree:
        other = RadixTree(SIZE)
        other.insert([sealed([1, 2], blocks), sealed([3] * 8, blocks), text([4] * 4, blocks, ANN)])
        change(*other.nodes())
        return other

    damages = {
        "two nodes": lambda a, b, c: b.blocks.__setitem__(0, a.blocks[0]),
        "extended": lambda a, b, c: (a.keys.append((9,)), a.blocks.append(98)),
        "keys for": lambda a, b, c: b.blocks.pop(),
        "wrong key": lambda a, b, c: b.keys.__setitem__(0, (7,) * 4),
        "another parent": lambda a, b, c: setattr(c, "parent", a),
        "below a private one": lambda a, b, c: (setattr(b, "owner", BOB), a.children.update({(BOB, (3,) * 4): b}),
                                                a.children.pop((None, (3,) * 4))),
        "impossible length": lambda a, b, c: c.keys.append((4,) * 5) or c.blocks.append(98),
    }  # fmt: skip
    for message, change in damages.items():
        with pytest.raises(AssertionError, match=message):
            damaged(change).check()
