"""Room in the pool: what is evicted for whom. Knows blocks and tree nodes, not requests."""

import logging
from collections.abc import Callable, Iterable, Sequence

from engine.block_pool import BlockPool
from engine.eviction import EvictionQueue, Policy
from engine.pins import Pins
from engine.radix_tree import Node, RadixTree

__all__ = ["Room"]

logger = logging.getLogger(__name__)


class Room:
    """Makes room by evicting what was used least.

    Args:
        pool: whose blocks are to be free.
        pins: give way where nothing else helps.
        policy: which leaf goes first.
        trees: tells every tree that may lose leaves.
    """

    def __init__(self, pool: BlockPool, pins: Pins, policy: Policy, trees: Callable[[], Iterable[RadixTree]]) -> None:
        self.num_evicted_blocks = 0
        self._pool = pool
        self._pins = pins
        self._trees = trees
        self._queue = EvictionQueue(policy)
        self._clock = 0

    def can_make(self, n: int) -> bool:
        """Tell whether n blocks are free or can be freed."""
        return self._queue.plan(self._trees(), self._pool, n - self._pool.num_free) is not None

    def make(self, n: int) -> bool:
        """Evict until n blocks are free; evict nothing when that cannot be reached."""
        cuts = self._queue.plan(self._trees(), self._pool, n - self._pool.num_free)
        if cuts is None:
            return False
        self.num_evicted_blocks += self._queue.evict(cuts, self._pool)
        return True

    def make_of_pinned(self, n: int) -> bool:
        """Do the same once nothing is pinned any more, if anything is."""
        if not self._pins:
            return False
        logger.warning("%d passages are pinned no longer: a request needs their room to run at all", self._pins.clear())
        return self.make(n)

    def touch(self, nodes: Sequence[Node]) -> None:
        """Note a use of nodes, after all else about them has been noted: their priority follows from it."""
        self._clock += 1
        for node in nodes:
            node.last_used = self._clock
        self._queue.touch(nodes)

    def reconsider(self, nodes: Iterable[Node]) -> None:
        """Give nodes of which something else than their use has changed their priority anew."""
        self._queue.touch(nodes)
