"""Conversations over approximate context: their own KV, for themselves alone and over the same runs alone.

Behind a shifted run nothing is exact any more, so it can neither be shared nor stand in the tree of exact paths.
"""

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from engine.ladder import shared_end
from engine.prompt import Reuse, Segment, block_keys
from engine.radix_tree import Node, Owner, PathPart, RadixTree
from engine.request import Admission, Request

__all__ = ["ApproximateTails"]

PRUNED_EVERY = 64  # new conversations; trees that were evicted are then forgotten


class _Context(NamedTuple):
    """What a tail was computed over, and whose it is."""

    namespace: str
    owner: Owner
    runs: tuple[tuple[int, ...], ...]
    repair: int


class ApproximateTails:
    """One tree of tails for each conversation and the runs before them.

    Args:
        block_size: tokens a block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._trees: dict[_Context, RadixTree] = {}

    @property
    def trees(self) -> Iterable[RadixTree]:
        """Every tree, for eviction and for checks."""
        return self._trees.values()

    def tree(self, request: Request, segments: Sequence[Segment]) -> RadixTree | None:
        """Return what a request may match behind approximate context."""
        if request.owner is None or request.reuse is not Reuse.CHUNK:
            return None
        return self._trees.get(_context(request, segments))

    def publish(self, request: Request, admission: Admission) -> tuple[list[int], list[Node]]:
        """Keep what is computed of a tail; return the blocks newly held and the nodes of the path."""
        *before, tail = request.segments
        start, size = sum(len(segment.tokens) for segment in before), self._block_size
        count = max(request.publishable(admission.computed_end) - start, 0) // size
        exact = shared_end(request.prompt.segments, admission.placements, request.reuse) >= start
        if exact or tail.sealed or not count or start + count * size <= admission.published_to:
            return [], []
        run = next(run for run in admission.runs if run.start == start)
        keys = block_keys(tail.tokens[: count * size], size, sealed=False)
        admission.published_to = start + count * size
        return self._tree_of(_context(request, request.segments)).insert([PathPart(keys, run.blocks[:count])])

    def drop(self, namespace: str, passages: Container[tuple[int, ...]] | None = None) -> list[Node]:
        """Forget the conversations of a namespace, or those over one of these passages; return their nodes."""
        gone = [
            context
            for context in self._trees
            if context.namespace == namespace and (passages is None or any(run in passages for run in context.runs))
        ]
        return [node for context in gone for node in self._trees.pop(context).nodes()]

    def _tree_of(self, context: _Context) -> RadixTree:
        if context not in self._trees:
            if len(self._trees) % PRUNED_EVERY == 0:
                self._trees = {known: tree for known, tree in self._trees.items() if tree.root.children}
            self._trees[context] = RadixTree(self._block_size)
        return self._trees[context]


def _context(request: Request, segments: Sequence[Segment]) -> _Context:
    runs = tuple(segment.tokens for segment in segments if segment.sealed)
    return _Context(request.namespace, request.owner, runs, request.repair)
