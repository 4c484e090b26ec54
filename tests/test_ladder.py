"""The reuse ladder: which rung each segment gets, and with which blocks."""

from collections.abc import Sequence

import pytest

from engine.ladder import Outcome, Placed, Placement, place
from engine.prompt import Reuse, Segment, SegmentKind, block_keys
from engine.radix_tree import PathPart, RadixTree

SIZE = 4
PATH, CANONICAL, SHIFTED, COMPUTED = Outcome.PATH, Outcome.CANONICAL, Outcome.SHIFTED, Outcome.COMPUTED


def template(*tokens: int) -> Segment:
    return Segment(tokens, SegmentKind.TEMPLATE)


def passage(*tokens: int) -> Segment:
    return Segment(tokens, SegmentKind.PASSAGE)


def tail(*tokens: int) -> Segment:
    return Segment(tokens, SegmentKind.TAIL)


T = template(1, 2, 3, 4, 5)
A = passage(*range(10, 20))  # three blocks, the last with two tokens
B = passage(*range(20, 28))  # two full blocks
C = passage(30, 31, 32)  # less than a block
Q = tail(7, 8, 9)


@pytest.fixture
def tree() -> RadixTree:
    """Canonical KV of A, B and C below T: blocks 0-1 are T's, then 2-4, 5-6 and 7."""
    tree, next_block = RadixTree(SIZE), 2
    for known in (A, B, C):
        keys = block_keys(known.tokens, SIZE, sealed=True)
        blocks = list(range(next_block, next_block + len(keys)))
        head = PathPart(block_keys(T.tokens, SIZE, sealed=True), [0, 1], whole=True)
        tree.insert([head, PathPart(keys, blocks, whole=True)])
        next_block += len(keys)
    return tree


def outcomes(placed: Placed) -> list[Outcome]:
    return [placement.outcome for placement in placed.placements]


def hits(placed: Placed) -> list[int]:
    return [placement.hit_tokens for placement in placed.placements]


def chunk(tree: RadixTree, segments: Sequence[Segment], repair: int = 0) -> Placed:
    return place(segments, tree, reuse=Reuse.CHUNK, repair=repair)


def exact(tree: RadixTree, segments: Sequence[Segment]) -> Placed:
    return place(segments, tree, reuse=Reuse.EXACT)


def test_the_first_passage_is_canonical_and_exact_reuse_ends_there(tree: RadixTree) -> None:
    placed = exact(tree, [T, A, B, Q])
    assert outcomes(placed) == [PATH, CANONICAL, COMPUTED, COMPUTED]
    assert hits(placed) == [5, 10, 0, 0]
    assert [p.blocks for p in placed.placements] == [(0, 1), (2, 3, 4), (), ()]
    assert [p.start for p in placed.placements] == [0, 5, 15, 23]


def test_a_known_path_beyond_the_first_passage(tree: RadixTree) -> None:
    parts = [PathPart(block_keys(s.tokens, SIZE, sealed=True), range(50, 53), whole=True) for s in (T, A, B)]
    tree.insert(parts)
    placed = exact(tree, [T, A, B, Q])
    assert outcomes(placed) == [PATH, CANONICAL, PATH, COMPUTED]
    assert placed.placements[2].blocks == (50, 51)


def test_other_passages_are_shifted(tree: RadixTree) -> None:
    placed = chunk(tree, [T, B, A, C, Q])
    assert outcomes(placed) == [PATH, CANONICAL, SHIFTED, SHIFTED, COMPUTED]
    assert [p.shift for p in placed.placements] == [0, 0, 8, 18, 0]
    assert [p.blocks for p in placed.placements] == [(0, 1), (5, 6), (2, 3, 4), (7,), ()]
    assert [p.first_block for p in placed.placements] == [0] * 5


@pytest.mark.parametrize(("repair", "blocks", "hit"), [(0, (2, 3, 4), 10), (4, (3, 4), 6), (8, (4,), 2)])
def test_the_repaired_head_is_computed_in_context(
    tree: RadixTree, repair: int, blocks: tuple[int, ...], hit: int
) -> None:
    placement = chunk(tree, [T, B, A, Q], repair).placements[2]
    assert placement == Placement(13, 10, repair // SIZE, blocks, hit, 8, SHIFTED)


def test_a_passage_no_longer_than_the_repair_is_computed(tree: RadixTree) -> None:
    assert outcomes(chunk(tree, [T, A, C, B, Q], 4)) == [PATH, CANONICAL, COMPUTED, SHIFTED, COMPUTED]
    assert outcomes(chunk(tree, [T, A, C, B, Q], 8)) == [PATH, CANONICAL, COMPUTED, COMPUTED, COMPUTED]


@pytest.mark.parametrize("repair", [0, 4, 8])
@pytest.mark.parametrize("rest", [[], [Q]])
def test_exact_blocks_come_before_as_many_shifted_ones(tree: RadixTree, repair: int, rest: list[Segment]) -> None:
    """The path knows A's first block behind B, from a longer passage: 4 exact tokens against 10 - repair shifted."""
    longer = passage(*A.tokens[:4], 99)
    parts = [PathPart(block_keys(s.tokens, SIZE, sealed=True), range(50, 53), whole=True) for s in (T, B, longer)]
    tree.insert(parts)
    placement = chunk(tree, [T, B, A, *rest], repair).placements[2]
    if repair == 8:
        assert placement == Placement(13, 10, 0, (50,), 4)
    else:
        assert placement.shift == 8


def test_an_unknown_passage_is_computed_and_the_next_is_still_shifted(tree: RadixTree) -> None:
    placed = chunk(tree, [T, passage(99, 98), A, Q])
    assert outcomes(placed) == [PATH, COMPUTED, SHIFTED, COMPUTED]
    assert placed.placements[2].shift == 2


def test_the_beginning_of_a_known_passage(tree: RadixTree) -> None:
    """At a block boundary its canonical KV is there; off the boundary the partly filled block is another."""
    placed = chunk(tree, [T, B, passage(*A.tokens[:8]), Q])
    assert outcomes(placed) == [PATH, CANONICAL, SHIFTED, COMPUTED]
    placed = chunk(tree, [T, B, passage(*A.tokens[:9]), Q])
    assert outcomes(placed) == [PATH, CANONICAL, COMPUTED, COMPUTED]
    placed = exact(tree, [T, passage(*A.tokens[:9]), Q])
    assert (outcomes(placed)[1], hits(placed)[1]) == (COMPUTED, 8), "the blocks in common still serve"


def test_one_passage_twice_uses_its_blocks_twice(tree: RadixTree) -> None:
    placed = chunk(tree, [T, A, A, Q])
    assert outcomes(placed) == [PATH, CANONICAL, SHIFTED, COMPUTED]
    assert placed.placements[1].blocks == placed.placements[2].blocks


def test_another_template_shifts_nothing(tree: RadixTree) -> None:
    placed = chunk(tree, [template(1, 2, 3, 4, 6), A, B, Q])
    assert outcomes(placed) == [COMPUTED] * 4
    assert hits(placed) == [4, 0, 0, 0]
    assert outcomes(chunk(tree, [A, B, Q])) == [COMPUTED] * 3, "without a template there is no canonical KV"


def test_exact_and_auto_never_shift(tree: RadixTree) -> None:
    for reuse in (Reuse.EXACT, Reuse.AUTO):
        assert all(p.shift == 0 for p in place([T, B, A, Q], tree, reuse=reuse).placements)


@pytest.mark.parametrize(
    ("segments", "last"),
    [
        ([T, A], (8, (2, 3))),  # its last block has two tokens
        ([T, B], (4, (5,))),  # a full one
        ([T, C], (0, ())),  # all of it is one block
        ([T], (4, (0,))),
    ],
)
def test_the_last_token_is_always_computed(
    tree: RadixTree, segments: list[Segment], last: tuple[int, tuple[int, ...]]
) -> None:
    placement = exact(tree, segments).placements[-1]
    assert (placement.hit_tokens, placement.blocks) == last
    assert placement.outcome is COMPUTED


@pytest.mark.parametrize(
    ("repair", "expected"),
    [(0, Placement(13, 10, 0, (2, 3), 8, 8)), (4, Placement(13, 10, 1, (3,), 4, 8)), (8, Placement(13, 10))],
)
def test_a_shifted_passage_at_the_end_gives_its_last_block_back(
    tree: RadixTree, repair: int, expected: Placement
) -> None:
    assert chunk(tree, [T, B, A], repair).placements[-1] == expected


def test_private_nodes_serve_their_owner_and_are_never_shifted(tree: RadixTree) -> None:
    head = [PathPart(block_keys(s.tokens, SIZE, sealed=True), range(90, 95), whole=True) for s in (T, A)]
    tree.insert([*head, PathPart([(7, 8, 9, 7)], [60], owner="ann")])
    segments = [T, A, tail(7, 8, 9, 7, 7)]
    assert hits(place(segments, tree, reuse=Reuse.EXACT, owner="ann")) == [5, 10, 4]
    assert hits(place(segments, tree, reuse=Reuse.EXACT, owner="bob")) == [5, 10, 0]
    assert hits(exact(tree, segments)) == [5, 10, 0]


def test_the_nodes_in_use_are_reported(tree: RadixTree) -> None:
    used = {block for node in chunk(tree, [T, B, A, Q]).nodes for block in node.blocks}
    assert used == {0, 1, 5, 6, 2, 3, 4}


def test_a_repair_is_whole_blocks(tree: RadixTree) -> None:
    with pytest.raises(AssertionError, match="repair 3"):
        chunk(tree, [T, A, Q], 3)
