"""Passages that stay in the pool until they are let go: each pin is one more holder of its blocks.

So eviction, which takes only what the tree alone holds, needs to know nothing of pins. Knows blocks and segments.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.block_pool import BlockPool
from engine.prompt import Segment

__all__ = ["MAX_PINNED_SHARE", "Pins"]

MAX_PINNED_SHARE = 0.5  # of the pool; the rest is for those who ask


@dataclass(frozen=True, slots=True)
class _Pin:
    passage: Segment
    blocks: tuple[int, ...]  # of template and passage


class Pins:
    """What is pinned, by namespace and name of the passage.

    Args:
        pool: whose blocks are held.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._pins: dict[str, dict[str, _Pin]] = {}
        self._holders = Counter[int]()

    def __bool__(self) -> bool:
        return bool(self._pins)

    @property
    def num_blocks(self) -> int:
        """How many blocks are pinned."""
        return len(self._holders)

    def passages(self, namespace: str) -> list[Segment]:
        """Return the passages that are pinned in a namespace."""
        return [pin.passage for pin in self._pins.get(namespace, {}).values()]

    def blocks(self) -> Iterator[Sequence[int]]:
        """Yield the blocks that each pin holds."""
        for pins in self._pins.values():
            for pin in pins.values():
                yield pin.blocks

    def add(self, namespace: str, passage: Segment, blocks: Sequence[int]) -> bool:
        """Hold a passage's blocks, in the place of those held under its name before, unless the share would be full."""
        self.release(namespace, lambda other: other.name != passage.name)
        if len(self._holders.keys() | blocks) > MAX_PINNED_SHARE * self._pool.num_blocks:
            return False
        self._pool.hold(blocks)
        self._holders.update(blocks)
        self._pins.setdefault(namespace, {})[passage.name] = _Pin(passage, tuple(blocks))
        return True

    def release(self, namespace: str, keeps: Callable[[Segment], bool]) -> int:
        """Let go of the passages of a namespace that are not to be kept, and return how many they were."""
        pins = self._pins.get(namespace, {})
        gone = [name for name, pin in pins.items() if not keeps(pin.passage)]
        for name in gone:
            blocks = pins.pop(name).blocks
            self._pool.drop(blocks)
            self._holders.subtract(blocks)
            for block in blocks:
                if not self._holders[block]:
                    del self._holders[block]
        if not pins:
            self._pins.pop(namespace, None)
        return len(gone)

    def clear(self) -> int:
        """Let go of everything, and return how many passages that were."""
        return sum(self.release(namespace, lambda _: False) for namespace in list(self._pins))
