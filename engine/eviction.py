"""Which cached blocks go first when room is needed.

A policy is a function of a node; the node for which it is lowest goes first. Order among leaves is all it decides.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from engine.block_pool import BlockPool
from engine.errors import ConfigError
from engine.radix_tree import Node, RadixTree
from engine.recompute_cost import RecomputeCost

__all__ = ["POLICIES", "Cut", "EvictionQueue", "Pgdsf", "Policy", "lfu", "lru", "policy_named"]

Policy = Callable[[Node], float]

READ_SHARE = 1 / 16  # reading KV from the disk takes about so much of the time of computing it
READ_AGE = 1000  # admissions by which what can be read again counts as older


def lru(node: Node) -> float:
    """Prefer to keep what was used last."""
    return node.last_used - READ_AGE if node.on_disk else node.last_used


def lfu(node: Node) -> float:
    """Prefer to keep what was used most often."""
    return node.uses * READ_SHARE if node.on_disk else node.uses


class Pgdsf:
    """Prefer to keep what saves most computing for its size, and forget old use.

    Source: RAGCache (arXiv 2404.12457), prefix-aware Greedy-Dual-Size-Frequency: clock + frequency x mean cost of
    computing one of the node's tokens anew.

    Attributes:
        clock: the highest priority that was evicted so far, by which later use counts for more.
        cost: of computing tokens anew, in any unit.
    """

    def __init__(self, cost: RecomputeCost) -> None:
        self.clock = 0.0
        self.cost = cost

    def __call__(self, node: Node) -> float:
        """Return the priority of a node that is being used."""
        return self.clock + lfu(node) * self.cost.per_token(node.start, node.num_tokens)


POLICIES = ("lru", "lfu", "pgdsf")


def policy_named(name: str, cost: RecomputeCost | None = None) -> Policy:
    """Return the policy of that name.

    Args:
        name: one of `POLICIES`.
        cost: of computing tokens anew; None counts every token alike.

    Raises:
        ConfigError: no policy has that name.
    """
    if name == "pgdsf":
        return Pgdsf(cost or RecomputeCost.uniform())
    if name in POLICIES:
        return lfu if name == "lfu" else lru
    raise ConfigError(f"unknown eviction policy {name!r}; choose one of: {', '.join(POLICIES)}")


@dataclass(frozen=True, slots=True)
class Cut:
    """Blocks to remove from the end of one leaf."""

    tree: RadixTree
    node: Node
    num_blocks: int


class EvictionQueue:
    """The leaves of all trees by priority, kept up to date as nodes are used.

    A leaf that it was not told of is found when the others are not enough.

    Args:
        policy: gives nodes their priority when they are used; those on probation go before all others.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._priority: dict[Node, float] = {}  # of every known node, since it was last used
        self._queued: dict[Node, float] = {}  # by which priority a node is in the heap: at most its own
        self._heap: list[tuple[float, int, int, Node]] = []  # may have more than one entry for a node, and dead ones
        self._entry = count()
        self._most_entries = 0  # before a walk over all nodes builds everything anew; 0 when it has to

    def touch(self, nodes: Iterable[Node]) -> None:
        """Give nodes their priority anew: they were used, or are on disk now. Also how it learns of new nodes."""
        for node in nodes:
            self._priority[node] = self._priority_of(node)
            self._push(node)
        if max(len(self._heap), len(self._priority)) > self._most_entries:  # many may be of trees that were dropped
            self._most_entries, self._priority, self._queued, self._heap = 0, {}, {}, []

    def plan(self, trees: Iterable[RadixTree], pool: BlockPool, n: int) -> list[Cut] | None:
        """Choose what to remove so that n blocks become free, in an order in which every cut is of a leaf.

        Templates and passages go whole; text and conversation leaves lose only as much of their tail as is needed. Of
        a leaf whose head a request holds, the blocks after the held ones can go: otherwise a request alone in the
        engine could wait for ever for blocks that nobody uses.

        Returns:
            The cuts, or None when fewer than n blocks can be freed. Nothing is changed either way.
        """
        if n <= 0:
            return []
        roots = {tree.root: tree for tree in trees}
        cuts = self._plan(roots, pool, n) if self._most_entries else None
        if cuts is None:
            self._walk(roots.values())
            cuts = self._plan(roots, pool, n)
        return cuts

    def evict(self, cuts: Sequence[Cut], pool: BlockPool) -> int:
        """Remove what was planned, and return how many blocks that freed."""
        freed = 0
        for cut in cuts:
            parent = cut.node.parent
            freed += pool.drop(cut.tree.remove_tail(cut.node, cut.num_blocks))
            if isinstance(self._policy, Pgdsf):
                self._policy.clock = max(self._policy.clock, self._priority[cut.node])
            if cut.node.parent is None:
                self._forget(cut.node)
                assert parent is not None, "the root was cut"
                self._push(parent)
        assert freed == sum(cut.num_blocks for cut in cuts), f"evicting {cuts} freed {freed} blocks"
        return freed

    def _plan(self, roots: dict[Node, RadixTree], pool: BlockPool, n: int) -> list[Cut] | None:
        looked_at: list[Node] = []
        removed_children: dict[Node, int] = {}
        cuts: list[Cut] = []
        while n > 0 and (node := self._pop(removed_children)) is not None:
            tree = roots.get(_top(node))
            if tree is None:
                self._forget(node)
                continue
            looked_at.append(node)
            removable = _unheld_tail(node, pool)
            if removable == 0:
                continue
            taken = removable if node.whole else min(removable, n)
            cuts.append(Cut(tree, node, taken))
            n -= taken
            if taken == len(node.blocks) and node.parent is not None:
                removed_children[node.parent] = removed_children.get(node.parent, 0) + 1
                self._push(node.parent, removed_children)
        for node in looked_at:
            self._push(node)
        return cuts if n <= 0 else None

    def _pop(self, removed_children: dict[Node, int]) -> Node | None:
        """Take the leaf of the lowest priority from the heap."""
        while self._heap:
            queued_by, _, _, node = heapq.heappop(self._heap)
            if self._queued.get(node) != queued_by:
                continue  # another entry stands for it
            del self._queued[node]
            if len(node.children) > removed_children.get(node, 0):
                continue  # it comes back when its last child goes
            if self._priority[node] <= queued_by:
                return node
            self._push(node, removed_children)
        return None

    def _push(self, node: Node, removed_children: dict[Node, int] | None = None) -> None:
        """Put a leaf into the heap, unless it is there by a priority that is low enough."""
        if node.parent is None or len(node.children) > (removed_children or {}).get(node, 0):
            return
        if node not in self._priority:
            self._priority[node] = self._priority_of(node)
        priority = self._priority[node]
        if priority < self._queued.get(node, float("inf")):
            self._queued[node] = priority
            heapq.heappush(self._heap, (priority, node.last_used, next(self._entry), node))

    def _walk(self, trees: Iterable[RadixTree]) -> None:
        """Build the heap anew from every leaf there is."""
        nodes = [node for tree in trees for node in tree.nodes()]
        self._priority = {node: self._priority[node] for node in nodes if node in self._priority}
        self._queued, self._heap = {}, []
        for node in nodes:
            self._push(node)
        self._most_entries = 2 * len(nodes) + 1024

    def _priority_of(self, node: Node) -> float:
        return float("-inf") if node.on_probation else self._policy(node)

    def _forget(self, node: Node) -> None:
        self._priority.pop(node, None)
        self._queued.pop(node, None)


def _top(node: Node) -> Node:
    """Return the node above all others of a node's path: its tree's root, unless it was removed."""
    while node.parent is not None:
        node = node.parent
    return node


def _unheld_tail(node: Node, pool: BlockPool) -> int:
    """Count the blocks at a node's end that only the tree holds."""
    tail = 0
    for block in reversed(node.blocks):
        if pool.count(block) > 1:
            break
        tail += 1
    return tail
