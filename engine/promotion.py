"""Between the tiers and the tree: which canonical KV a request wants loaded, and what is worth keeping below.

Knows token ids, block ids and tree nodes; who else holds a block is the prefix cache's business.
"""

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import NamedTuple

from engine.block_pool import BlockPool
from engine.ladder import is_known
from engine.prompt import Reuse, Segment, SegmentKind, block_keys
from engine.radix_tree import Node, PathPart, RadixTree
from engine.request import Request
from engine.room import Room
from engine.tier import RetrievalCounts, Tier

__all__ = ["Loaded", "Promotion", "usable_passages"]

REMEMBERED_RETRIEVALS = 1 << 16


class Loaded(NamedTuple):
    """Which segments came from the tier, and the nodes that pushed others out for their first retrieval."""

    segments: set[int]
    crowding: list[Node]


class Promotion:
    """Loads canonical KV into a tree and saves what comes into it.

    Args:
        tier: where canonical KV is kept besides the pool.
        pool: gives blocks to load it into.
        room: makes room for them.
    """

    def __init__(self, tier: Tier, pool: BlockPool, room: Room) -> None:
        self.tier = tier
        self._pool = pool
        self._room = room
        self._retrievals = RetrievalCounts(REMEMBERED_RETRIEVALS)
        self._unwritten: list[tuple[str, list[Segment]]] = []  # namespace and path of what was saved

    def wanted(self, request: Request, segments: Sequence[Segment], tree: RadixTree) -> list[int]:
        """Choose the segments whose canonical KV the request can use, the tree lacks and the tier probably has.

        The template comes first where it is among them: no passage can be loaded before it.
        """
        template = segments[0]
        if template.kind is not SegmentKind.TEMPLATE:
            return []
        seen, wanted = set[tuple[int, ...]](), list[int]()
        for i in usable_passages(request, segments):
            tokens = segments[i].tokens
            if tokens not in seen and not is_known(tree, [template, segments[i]]):
                seen.add(tokens)
                wanted += [i] if self.tier.has(request.namespace, template.tokens, tokens) else []
        if is_known(tree, [template]):
            return wanted
        return [0, *wanted] if self.tier.has(request.namespace, template.tokens, ()) else []

    def load(
        self, request: Request, segments: Sequence[Segment], tree: RadixTree, wanted: Sequence[int], held: list[int]
    ) -> Loaded:
        """Bring what a request wants of the tier into a tree, as far as there is room beside all that it needs.

        Args:
            request: for which it is.
            segments: of the request.
            tree: of its namespace.
            wanted: indexes of segments, as `wanted` chooses them.
            held: the blocks that the request can use without; they stay meanwhile.
        """
        loaded, size = Loaded(set(), []), tree.block_size
        held = list(held)
        self._pool.hold(held)
        needed = sum(segment.num_blocks(size) for segment in segments)
        heads = len(wanted) * (request.repair // size)  # loaded, and replaced by repaired ones
        if self._room.can_make(needed - len(held) + heads):
            for i in wanted:
                path = [segments[0], segments[i]] if i else [segments[0]]
                blocks = self._load_one(request, path, tree, loaded)
                if not blocks and i == 0:
                    break  # nothing can be loaded below a template that is not there
                held += blocks
                loaded.segments.update([i] if blocks else [])
        self._pool.drop(held)
        return loaded

    def _load_one(self, request: Request, path: Sequence[Segment], tree: RadixTree, loaded: Loaded) -> list[int]:
        """Load one run and put it into the tree; return its blocks, held once more, or none."""
        evicted = self._room.num_evicted_blocks
        is_first = self._is_first_retrieval(request, path)
        count = path[-1].num_blocks(tree.block_size)
        if not self._room.make(count):
            return []
        blocks = self._pool.allocate(count)
        started = perf_counter()
        found = self.tier.load(request.namespace, *_names(path), blocks)
        request.load_seconds += perf_counter() - started
        if not found:
            self._pool.drop(blocks)
            return []
        adopted, nodes = _insert(path, blocks, tree)
        self._pool.hold(adopted)
        if is_first and len(path) > 1 and self._room.num_evicted_blocks > evicted:
            loaded.crowding.extend(nodes)
        return blocks

    def _is_first_retrieval(self, request: Request, path: Sequence[Segment]) -> bool:
        """Count a retrieval of a path's last run; tell whether it is the first in a long time."""
        return self._retrievals.note(hash((request.namespace, *_names(path)))) == 1  # tokens would fill the memory

    def save(self, request: Request, tree: RadixTree, adopted: Sequence[int]) -> None:
        """Offer the tier the canonical KV among the blocks that have just come into the tree.

        A request that samples nothing is there to have its KV kept: it offers what the tree had before, too.
        """
        new = set(adopted)
        template, *rest = request.prompt.segments
        if template.kind is not SegmentKind.TEMPLATE:
            return
        paths = [[template]]
        if rest and rest[0].kind is SegmentKind.PASSAGE:
            paths.append([template, rest[0]])
        for path in paths:
            own, _ = _last_run(tree, path)
            if not own:
                return
            offered = request.max_tokens == 0 or not new.isdisjoint(own)
            if offered and self.tier.save(request.namespace, *_names(path), own):
                self._unwritten.append((request.namespace, path))

    def note_written(self, trees: Mapping[str, RadixTree]) -> list[Node]:
        """Mark what has been written since it was saved as being on disk, and return its nodes."""
        waiting, self._unwritten = self._unwritten, []
        written: list[Node] = []
        for namespace, path in waiting:
            if self.tier.keeps(namespace, *_names(path)):
                written += _last_run(trees[namespace], path)[1] if namespace in trees else []
            elif self.tier.has(namespace, *_names(path)):
                self._unwritten.append((namespace, path))
        for node in written:
            node.on_disk = True
        return written


def usable_passages(request: Request, segments: Sequence[Segment]) -> list[int]:
    """Return the indexes of the passages whose canonical KV can serve the request: all, or in exact reuse the first."""
    passages = [i for i, segment in enumerate(segments) if segment.kind is SegmentKind.PASSAGE]
    if request.reuse is not Reuse.CHUNK:
        return [i for i in passages if i == 1]
    return [i for i in passages if i == 1 or len(segments[i].tokens) > request.repair]


def _insert(path: Sequence[Segment], blocks: Sequence[int], tree: RadixTree) -> tuple[list[int], list[Node]]:
    """Put the loaded last run of `[template]` or `[template, passage]` into a tree.

    Returns:
        The blocks that the tree now holds and the nodes that they are in.
    """
    parts = [PathPart(block_keys(segment.tokens, tree.block_size, sealed=True), blocks, whole=True) for segment in path]
    adopted, nodes = tree.insert(parts)  # which knows the template already when a passage is loaded
    new = [node for node in nodes if not set(adopted).isdisjoint(node.blocks)]
    for node in new:
        node.on_disk = True
    return adopted, new


def _last_run(tree: RadixTree, path: Sequence[Segment]) -> tuple[Sequence[int], list[Node]]:
    """Return the blocks that a tree has of a path's last segment, and their nodes; none where it lacks some."""
    runs = [block_keys(segment.tokens, tree.block_size, sealed=True) for segment in path]
    match = tree.match([key for run in runs for key in run])
    if len(match.blocks) < sum(map(len, runs)):
        return [], []
    own = match.blocks[-len(runs[-1]) :]
    return own, [node for node in match.nodes if not set(own).isdisjoint(node.blocks)]


def _names(path: Sequence[Segment]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The template's and the passage's tokens; none of the latter where the path is the template alone."""
    return path[0].tokens, path[1].tokens if len(path) > 1 else ()
