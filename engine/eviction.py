"""Which cached blocks go first when room is needed.

A policy is a function `node -> priority`; the lowest goes first. Order among leaves is all it decides.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

from engine.block_pool import BlockPool
from engine.errors import ConfigError
from engine.radix_tree import Node, RadixTree

__all__ = ["POLICIES", "Cut", "Policy", "lru", "plan_eviction", "policy_named"]

Policy = Callable[[Node], float]


def lru(node: Node) -> float:
    """Prefer to keep what was used last."""
    return node.last_used


POLICIES: dict[str, Policy] = {"lru": lru}


def policy_named(name: str) -> Policy:
    """Return the policy of that name.

    Raises:
        ConfigError: no policy has that name.
    """
    if name not in POLICIES:
        raise ConfigError(f"unknown eviction policy {name!r}; choose one of: {', '.join(POLICIES)}")
    return POLICIES[name]


@dataclass(frozen=True, slots=True)
class Cut:
    """Blocks to remove from the end of one leaf."""

    tree: RadixTree
    node: Node
    num_blocks: int


def plan_eviction(trees: Iterable[RadixTree], pool: BlockPool, policy: Policy, n: int) -> list[Cut] | None:
    """Choose what to remove so that n blocks become free, in an order in which every cut is of a leaf.

    Templates and passages go whole; text and conversation leaves lose only as much of their tail as is needed. Of a
    leaf whose head a request holds, the blocks after the held ones can go: otherwise a request alone in the engine
    could wait for ever for blocks that nobody uses.

    Returns:
        The cuts, or None when fewer than n blocks can be freed. Nothing is changed either way.
    """
    order = count()
    heap = [(policy(node), next(order), tree, node) for tree in trees for node in tree.nodes() if not node.children]
    heapq.heapify(heap)
    removed_children: dict[Node, int] = {}
    cuts: list[Cut] = []
    while n > 0 and heap:
        _, _, tree, node = heapq.heappop(heap)
        removable = _unheld_tail(node, pool)
        if removable == 0:
            continue
        taken = removable if node.whole else min(removable, n)
        cuts.append(Cut(tree, node, taken))
        n -= taken
        parent = node.parent
        if taken < len(node.blocks) or parent is None or parent is tree.root:
            continue
        removed_children[parent] = removed_children.get(parent, 0) + 1
        if removed_children[parent] == len(parent.children):
            heapq.heappush(heap, (policy(parent), next(order), tree, parent))
    return cuts if n <= 0 else None


def _unheld_tail(node: Node, pool: BlockPool) -> int:
    """Count the blocks at a node's end that only the tree holds."""
    tail = 0
    for block in reversed(node.blocks):
        if pool.count(block) > 1:
            break
        tail += 1
    return tail
