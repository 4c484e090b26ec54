"""The block pool: counts, the order in which blocks are freed, and a conservation law that can fail."""

import pytest

from engine.block_pool import BlockPool


def test_allocate_share_and_drop() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    assert len(set(blocks)) == 3
    assert pool.num_free == 1
    pool.hold(blocks[:2])
    assert [pool.count(block) for block in blocks] == [2, 2, 1]
    assert pool.drop(blocks) == 1
    assert pool.num_free == 2
    assert pool.drop(blocks[:2]) == 2
    assert pool.num_free == 4


def test_every_block_comes_once_and_comes_back() -> None:
    pool = BlockPool(5)
    assert sorted(pool.allocate(5)) == list(range(5))
    assert pool.allocate(0) == []
    assert pool.drop(list(range(5))) == 5
    assert sorted(pool.allocate(5)) == list(range(5))


def test_blocks_are_freed_tail_first_so_that_the_head_is_taken_next() -> None:
    pool = BlockPool(6)
    blocks = pool.allocate(4)
    pool.drop(blocks)
    assert pool.allocate(4) == blocks


def test_mistakes_are_caught() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="2 blocks, 1 are free"):
        pool.allocate(2)
    pool.drop([block])
    with pytest.raises(AssertionError, match="already free"):
        pool.drop([block])
    with pytest.raises(AssertionError, match="cannot be shared"):
        pool.hold([block])


def test_the_conservation_law_can_fail() -> None:
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    pool.check({first: 1, second: 1})
    with pytest.raises(AssertionError, match=f"block {second} has count 1, but 0 holders"):
        pool.check({first: 1})
    with pytest.raises(AssertionError, match="has count 1, but 2 holders"):
        pool.check({first: 2, second: 1})
    pool._free.append(pool._free[0])
    with pytest.raises(AssertionError, match="2 free"):
        pool.check({first: 1, second: 1})
    pool._free.pop()
    pool._free.clear()
    with pytest.raises(AssertionError, match="0 free"):
        pool.check({first: 1, second: 1})
