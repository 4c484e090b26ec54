"""In which order passages that may change places are read, so that more of them is cached (DESIGN section 4, Order).

Reads the tree and changes nothing.
"""

from collections.abc import Sequence
from itertools import accumulate

from engine.prompt import Segment, block_keys
from engine.radix_tree import BlockKey, Node, RadixTree

__all__ = ["order_passages"]

MAX_STEPS = 500  # down the tree, a prompt; a few hundred microseconds


def order_passages(
    passages: Sequence[Segment], groups: Sequence[int], template: Segment | None, tree: RadixTree
) -> tuple[int, ...]:
    """Return the indexes of the passages in the order in which to read them.

    The tree's longest path over them comes first. What is left of a group follows by descending use of its canonical
    KV, so that other prompts come to share its beginning, then as given.

    Args:
        passages: of one prompt, best first.
        groups: sizes of consecutive passages that may change places, all passages together; none means as given.
        template: what comes before them.
        tree: the namespace's.
    """
    if max(groups, default=1) == 1:
        return tuple(range(len(passages)))
    assert sum(groups) == len(passages), f"groups {tuple(groups)} are not of {len(passages)} passages"
    size = tree.block_size
    keys = [block_keys(passage.tokens, size, sealed=True) for passage in passages]
    head = [] if template is None else block_keys(template.tokens, size, sealed=True)
    start = _follow(tree.root, head)
    if start is None:
        return tuple(range(len(passages)))
    canonical = [_follow(start, one) for one in keys]
    order = list(_Walk(keys, groups).longest_path(start))
    for end in accumulate(groups):
        rest = [i for i in range(end) if i not in order]
        order += sorted(rest, key=lambda i: -_uses(canonical[i]))
    return tuple(order)


class _Walk:
    """A search down the tree for the path that holds most tokens of a prompt's passages.

    The most used children are tried first, so that a search of too many steps has still been a greedy walk.
    """

    def __init__(self, keys: Sequence[Sequence[BlockKey]], groups: Sequence[int]) -> None:
        self._keys = keys
        self._tokens = [sum(map(len, one)) for one in keys]
        self._group_end = [end for n, end in zip(groups, accumulate(groups), strict=True) for _ in range(n)]
        self._steps = 0

    def longest_path(self, node: Node, path: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the passages of the best path that begins with `path`, which ends at the node."""
        if len(path) == len(self._keys):
            return path
        open_now = (i for i in range(self._group_end[len(path)]) if i not in path)
        below = [(i, child) for i in open_now if (child := _follow(node, self._keys[i])) is not None]
        best = path
        for i, child in sorted(below, key=lambda step: -step[1].uses):
            if self._steps == MAX_STEPS:
                break
            self._steps += 1
            found = self.longest_path(child, (*path, i))
            if self._length(found) > self._length(best):
                best = found
        return best

    def _length(self, path: Sequence[int]) -> int:
        return sum(self._tokens[i] for i in path)


def _follow(node: Node, keys: Sequence[BlockKey]) -> Node | None:
    """Return the shared node at which all the keys end, below a node; None where the tree does not know them."""
    i = 0
    while i < len(keys):
        child = node.children.get((None, keys[i]))
        if child is None or child.keys != keys[i : i + len(child.keys)]:
            return None
        i += len(child.keys)
        node = child
    return node


def _uses(node: Node | None) -> int:
    return 0 if node is None else node.uses
