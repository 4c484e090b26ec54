"""A compressed radix tree from token blocks to KV blocks, one a namespace.

Knows keys (token tuples), block ids and owners: neither requests nor reference counts.
"""

from collections.abc import Container, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["BlockKey", "Match", "Node", "Owner", "PathPart", "RadixTree"]

BlockKey = tuple[int, ...]
Owner = Hashable | None


@dataclass(eq=False, slots=True)
class Node:
    """A list of blocks that follow its parent's.

    Attributes:
        keys: the tokens of each block, at most `block_size`; only the last may be partly filled.
        blocks: the KV block of each key.
        owner: the conversation that alone may match it, or None when it is shared.
        whole: evicted as one (a template, a passage), not trimmed from its tail (text, conversation).
        last_used: the cache's clock when a request last matched or published it.
        uses: how many requests matched it.
        start: how many tokens are before it on its path.
        on_disk: whether the same KV is on disk too, so that losing it costs a read, not a computation.
        on_probation: loaded from disk for its first retrieval at the cost of others; it goes before them.
    """

    keys: list[BlockKey]
    blocks: list[int]
    parent: "Node | None"
    owner: Owner = None
    whole: bool = False
    last_used: int = 0
    uses: int = 0
    start: int = 0
    on_disk: bool = False
    on_probation: bool = False
    children: dict[tuple[Owner, BlockKey], "Node"] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """How many tokens its blocks hold."""
        return sum(map(len, self.keys))


@dataclass(frozen=True, slots=True)
class Match:
    """The longest known prefix of a path: its blocks in order, and the nodes they are in."""

    blocks: tuple[int, ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class PathPart:
    """One segment of a path to insert; a node boundary is kept at its end."""

    keys: Sequence[BlockKey]
    blocks: Sequence[int]
    owner: Owner = None
    whole: bool = False


class RadixTree:
    """Block keys -> blocks. `match` is read-only; `insert` alone splits nodes, never inside a block."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.root = Node(keys=[], blocks=[], parent=None)

    def match(self, keys: Sequence[BlockKey], owner: Owner = None, *, num_shared_keys: int = 0) -> Match:
        """Find the longest prefix of the keys among shared nodes and, after the shared keys, those of `owner`."""
        nodes, length = self._longest(self.root, keys, owner, num_shared_keys)
        blocks: list[int] = []
        for node in nodes:
            blocks += node.blocks
        return Match(tuple(blocks[:length]), tuple(nodes))

    def insert(self, parts: Sequence[PathPart]) -> tuple[list[int], list[Node]]:
        """Add a path from the root.

        Where the tree knows a key already it keeps its own block, and the caller's stays the caller's. Each part
        follows the longest route that `match` would find, so no block that the caller matched is added again.

        Returns:
            The blocks that the tree did not hold and now holds, and the nodes of the whole path.
        """
        node, nodes = self.root, list[Node]()
        adopted: list[int] = []
        for part in parts:
            route, length = self._longest(node, part.keys, part.owner, 0)
            if route:
                beyond = sum(len(step.keys) for step in route) - length
                if beyond:
                    route[-1] = self._split(route[-1], len(route[-1].keys) - beyond)
                node = route[-1]
                nodes += route
            if length < len(part.keys):
                node = self._append(node, part, length)
                adopted += part.blocks[length:]
                nodes.append(node)
        return adopted, nodes

    def remove_tail(self, node: Node, n: int) -> list[int]:
        """Remove the last n blocks of a leaf, and the leaf itself when none is left; return them in order."""
        assert not node.children, "only a leaf can be cut"
        assert node.parent is not None, "the root cannot be cut"
        assert 0 < n <= len(node.blocks), f"cannot cut {n} of {len(node.blocks)} blocks"
        cut = node.blocks[-n:]
        if n == len(node.blocks):
            del node.parent.children[node.owner, node.keys[0]]
            node.parent = None
        else:
            del node.blocks[-n:], node.keys[-n:]
        return cut

    def remove_subtrees(self, first_keys: Container[BlockKey]) -> list[Node]:
        """Cut out every node that begins with one of these keys, and all below; return the nodes removed."""
        removed: list[Node] = []
        for node in list(self.nodes()):
            if node.parent is not None and node.keys[0] in first_keys:
                del node.parent.children[node.owner, node.keys[0]]
                below = [node]
                for child in below:  # grows as it is walked
                    below += child.children.values()
                for child in below:
                    child.parent = None
                    child.children = {}
                removed += below
        return removed

    def nodes(self) -> Iterator[Node]:
        """Yield every node but the root, parents before children."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    def check(self) -> None:
        """Assert the tree's own invariants (DESIGN section 3)."""
        seen: set[int] = set()
        for node in self.nodes():
            assert node.keys, "an empty node"
            assert len(node.keys) == len(node.blocks), f"{len(node.keys)} keys for {len(node.blocks)} blocks"
            assert not seen.intersection(node.blocks), f"a block is in two nodes: {node.blocks}"
            assert all(len(key) == self.block_size for key in node.keys[:-1]), "a partly filled block was extended"
            assert 0 < len(node.keys[-1]) <= self.block_size, "a key of impossible length"
            seen.update(node.blocks)
            for (owner, key), child in node.children.items():
                assert child.parent is node, "a child with another parent"
                assert (owner, key) == (child.owner, child.keys[0]), "a child under a wrong key"
                assert node.owner is None or child.owner == node.owner, "a shared node below a private one"

    def _descend(self, node: Node, keys: Sequence[BlockKey], i: int, owner: Owner) -> tuple[list[Node], int]:
        """Walk one owner's children as far as the keys go; return the nodes entered and the keys matched."""
        nodes: list[Node] = []
        while i < len(keys):
            child = node.children.get((owner, keys[i]))
            if child is None:
                break
            common = _common_length(child.keys, keys, i)
            nodes.append(child)
            i += common
            if common < len(child.keys):
                break
            node = child
        return nodes, i

    def _longest(
        self, start: Node, keys: Sequence[BlockKey], owner: Owner, num_shared_keys: int
    ) -> tuple[list[Node], int]:
        """Follow shared nodes, and try to leave them for the owner's at each node boundary; keep the longest."""
        shared, length = self._descend(start, keys, 0, None)
        if owner is None:
            return shared, length
        best, best_length, depth = shared, length, 0
        for i, node in enumerate([start, *shared]):
            depth += len(node.keys) if i else 0
            if depth > length:
                break
            if depth < num_shared_keys:
                continue
            nodes, reached = self._descend(node, keys, depth, owner)
            if reached > best_length:
                best, best_length = [*shared[:i], *nodes], reached
        return best, best_length

    def _append(self, node: Node, part: PathPart, i: int) -> Node:
        """Put the rest of a part below a node, or at the end of a text leaf of the same owner."""
        keys, blocks = list(part.keys[i:]), list(part.blocks[i:])
        growing = not (part.whole or node.whole or node.children or node is self.root)
        if growing and node.owner == part.owner:
            node.keys += keys
            node.blocks += blocks
            return node
        start = node.start + node.num_tokens
        child = Node(keys, blocks, node, owner=part.owner, whole=part.whole, start=start)
        node.children[part.owner, keys[0]] = child
        return child

    def _split(self, node: Node, n: int) -> Node:
        """Cut a node after its first n blocks and return the new upper node."""
        assert node.parent is not None, "the root is not split"
        upper = Node(
            node.keys[:n], node.blocks[:n], node.parent,
            owner=node.owner, whole=node.whole, last_used=node.last_used, uses=node.uses,
            start=node.start, on_disk=node.on_disk, on_probation=node.on_probation,
        )  # fmt: skip
        node.start += upper.num_tokens
        node.parent.children[node.owner, upper.keys[0]] = upper
        node.keys, node.blocks, node.parent = node.keys[n:], node.blocks[n:], upper
        upper.children[node.owner, node.keys[0]] = node
        return upper


def _common_length(ours: Sequence[BlockKey], theirs: Sequence[BlockKey], i: int) -> int:
    """Count the leading keys that `ours` and `theirs[i:]` have in common."""
    limit = min(len(ours), len(theirs) - i)
    n = 0
    while n < limit and ours[n] == theirs[i + n]:
        n += 1
    return n
