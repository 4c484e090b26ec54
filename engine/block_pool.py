"""Which KV blocks are free, and how many hold each of the others.

Knows block ids only: neither what is in a block nor who holds it.
"""

from collections.abc import Sequence

__all__ = ["BlockPool"]


class BlockPool:
    """A free list and one reference count a block.

    A block's count is the number of requests that hold it, plus one if the tree holds it.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._counts = [0] * num_blocks
        self._used_end = 0  # no block from there on was ever held

    @property
    def num_free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    @property
    def free_blocks(self) -> list[int]:
        """The blocks that nobody holds any more; those that nobody ever held are not among them."""
        return [block for block in self._free if block < self._used_end]

    def count(self, block: int) -> int:
        """Return how many hold the block."""
        return self._counts[block]

    def allocate(self, n: int) -> list[int]:
        """Take n free blocks, each with a count of one."""
        assert n <= len(self._free), f"asked for {n} blocks, {len(self._free)} are free"
        blocks = [self._free.pop() for _ in range(n)]
        for block in blocks:
            self._counts[block] = 1
        self._used_end = max(self._used_end, 1 + max(blocks, default=-1))
        return blocks

    def hold(self, blocks: Sequence[int]) -> None:
        """Add one holder to each block, which somebody holds already."""
        for block in blocks:
            assert self._counts[block] > 0, f"block {block} is free and cannot be shared"
            self._counts[block] += 1

    def drop(self, blocks: Sequence[int]) -> int:
        """Take one holder from each block, the last first, and return how many became free."""
        before = len(self._free)
        for block in reversed(blocks):
            assert self._counts[block] > 0, f"block {block} is already free"
            self._counts[block] -= 1
            if self._counts[block] == 0:
                self._free.append(block)
        return len(self._free) - before

    def check(self, holders: dict[int, int]) -> None:
        """Assert the conservation law: free + held = total, and every count equals its holders."""
        for block, count in enumerate(self._counts):
            assert count == holders.get(block, 0), (
                f"block {block} has count {count}, but {holders.get(block, 0)} holders"
            )
        held = sum(count > 0 for count in self._counts)
        assert len(self._free) + held == self.num_blocks, (
            f"{len(self._free)} free + {held} held != {self.num_blocks} blocks"
        )
        assert len(set(self._free)) == len(self._free), f"a block is free twice: {sorted(self._free)}"
        assert all(self._counts[block] == 0 for block in self._free), "a free block has holders"
