"""The cache of KV blocks: the only user of the block pool and the radix trees.

A request goes through `admit`, then `extend` and `publish` as it advances, and `release`. Knows no tensors; what it
publishes must have been computed.
"""

from collections.abc import Iterator, Sequence

from engine.block_pool import BlockPool
from engine.eviction import Policy, lru, plan_eviction
from engine.ladder import Placed, Placement, place
from engine.prompt import Reuse, Segment, SegmentKind, block_keys
from engine.radix_tree import Node, PathPart, RadixTree
from engine.request import Admission, Request, TableRun

__all__ = ["PrefixCache"]

WORTH_WAITING_BLOCKS = 2  # computing fewer twice takes less time than a step's fixed part


class PrefixCache:
    """Transactional admission over one pool and one radix tree a namespace.

    Args:
        num_blocks: size of the pool.
        block_size: tokens a block.
        policy: which leaf goes first when room is needed.
        repair: tokens at a shifted passage's head that chunk reuse computes in context; whole blocks.
    """

    def __init__(self, num_blocks: int, block_size: int, *, policy: Policy = lru, repair: int = 0) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.num_evicted_blocks = 0
        self._trees: dict[str, RadixTree] = {}
        self._policy = policy
        self._repair = repair
        self._clock = 0
        self._live: dict[Request, Admission] = {}

    @property
    def num_cached_blocks(self) -> int:
        """How many blocks the trees hold."""
        return sum(len(node.blocks) for tree in self._trees.values() for node in tree.nodes())

    def tree(self, namespace: str) -> RadixTree:
        """Return the namespace's tree, an empty one at first."""
        return self._trees.setdefault(namespace, RadixTree(self.block_size))

    def admit(self, request: Request) -> Admission | None:
        """Pin what is cached, make room, allocate the rest; or change nothing and return None: not now."""
        assert request not in self._live, f"request {request.id} is admitted already"
        segments = request.segments
        placed = self._place(request, segments)
        pinned = [block for placement in placed.placements for block in placement.blocks]
        self.pool.hold(pinned)
        total = sum(-(-len(segment.tokens) // self.block_size) for segment in segments)
        if not self._make_room(total - len(pinned)):
            self.pool.drop(pinned)
            return None
        admission = self._build(placed.placements, sealed_end=segments[-1].sealed)
        self._touch(placed.nodes)
        for node in dict.fromkeys(placed.nodes):  # a template is on the path of every shifted passage
            node.uses += 1
        self._live[request] = admission
        return admission

    def is_being_computed(self, request: Request) -> bool:
        """Tell whether a live request is about to publish blocks that this one would otherwise compute too."""
        segments = request.segments
        coming = max((self._common_end(request, segments, other) for other in self._live), default=0)
        if coming < WORTH_WAITING_BLOCKS * self.block_size:
            return False
        missing = 0
        for placement in self._place(request, segments).placements:
            for start, end in _uncached(placement, self.block_size):
                missing += max(min(end, coming) - start, 0)
        return missing >= WORTH_WAITING_BLOCKS * self.block_size

    def extend(self, request: Request) -> bool:
        """Give the request a block for its newest token if it needs one; False when none can be had."""
        admission = request.held
        run, end = admission.runs[-1], admission.spans[-1][1]
        missing = -(-(end - run.start) // self.block_size) - len(run.blocks)
        if missing > 0:
            if not self._make_room(missing):
                return False
            run.blocks += self.pool.allocate(missing)
        run.num_tokens = end - run.start
        return True

    def extend_for_draft(self, request: Request, n: int) -> int:
        """Give the request room for n tokens after its newest, as far as free blocks go; return how many fit."""
        admission = request.held
        run, end = admission.runs[-1], admission.spans[-1][1]
        missing = -(-(end + n - run.start) // self.block_size) - len(run.blocks)
        run.blocks += self.pool.allocate(min(max(missing, 0), self.pool.num_free))
        fitting = min(n, len(run.blocks) * self.block_size - (end - run.start))
        run.num_tokens = end + fitting - run.start
        return fitting

    def trim(self, request: Request) -> None:
        """Take back the blocks that only a draft needed; nobody else has ever seen them."""
        admission = request.held
        run, end = admission.runs[-1], admission.spans[-1][1]
        needed = -(-(end - run.start) // self.block_size)
        self.pool.drop(run.blocks[needed:])
        del run.blocks[needed:]

    def publish(self, request: Request) -> None:
        """Offer the request's computed blocks to the tree: the exact prefix, up to the first shifted run.

        Templates and passages are published whole and shared, plain text block by block and shared; text and tail of
        a conversation, and its answer, belong to the conversation alone. Any other tail is never published.
        """
        admission = request.held
        end = self._publishable_end(request, admission, admission.computed_end)
        if end <= admission.published_to or not admission.may_publish:
            return
        adopted, nodes = self.tree(request.namespace).insert(self._path(request, admission, end))
        self.pool.hold(adopted)
        admission.published_to = end
        self._touch(nodes)

    def release(self, request: Request) -> None:
        """Drop every block that the request holds."""
        self.pool.drop(self._live.pop(request).blocks)

    def is_cached(self, namespace: str, segments: Sequence[Segment]) -> bool:
        """Tell whether the whole of these sealed segments is in the tree."""
        keys = [key for s in segments for key in block_keys(s.tokens, self.block_size, sealed=True)]
        return len(self.tree(namespace).match(keys).blocks) == len(keys)

    def drop_namespace(self, namespace: str) -> int:
        """Forget everything cached for a namespace and return the blocks freed.

        Running requests keep their blocks and publish none: what was forgotten must not come back, and two of them
        may hold one block of which each would make a node.
        """
        for request, admission in self._live.items():
            if request.namespace == namespace:
                admission.may_publish = False
        tree = self._trees.pop(namespace, None)
        return 0 if tree is None else sum(self.pool.drop(node.blocks) for node in tree.nodes())

    def clear(self) -> int:
        """Forget everything cached and return the blocks freed; running requests keep theirs."""
        return sum(self.drop_namespace(namespace) for namespace in list(self._trees))

    def check_invariants(self) -> None:
        """Assert what DESIGN section 3 promises of pool, trees and admissions."""
        holders: dict[int, int] = {}
        for blocks in self._held_blocks():
            for block in blocks:
                holders[block] = holders.get(block, 0) + 1
        self.pool.check(holders)
        in_trees = [block for tree in self._trees.values() for node in tree.nodes() for block in node.blocks]
        assert len(in_trees) == len(set(in_trees)), "a block is in two nodes"
        for tree in self._trees.values():
            tree.check()
        for request, admission in self._live.items():
            _check_admission(request, admission)

    def _held_blocks(self) -> Iterator[list[int]]:
        for admission in self._live.values():
            yield admission.blocks
        for tree in self._trees.values():
            for node in tree.nodes():
                yield node.blocks

    def _place(self, request: Request, segments: Sequence[Segment]) -> Placed:
        reuse = Reuse.CHUNK if request.reuse is Reuse.CHUNK else Reuse.EXACT
        return place(segments, self.tree(request.namespace), reuse=reuse, owner=request.owner, repair=self._repair)

    def _make_room(self, n: int) -> bool:
        """Evict until n blocks are free; evict nothing when that cannot be reached."""
        short = n - self.pool.num_free
        if short <= 0:
            return True
        cuts = plan_eviction(self._trees.values(), self.pool, self._policy, short)
        if cuts is None:
            return False
        for cut in cuts:
            freed = self.pool.drop(cut.tree.remove_tail(cut.node, cut.num_blocks))
            assert freed == cut.num_blocks, f"evicting {cut.num_blocks} blocks freed {freed}"
            self.num_evicted_blocks += freed
        return True

    def _build(self, placements: Sequence[Placement], *, sealed_end: bool) -> Admission:
        """Lay out the block table; every segment begins at the start of a block of its own."""
        runs: list[TableRun] = []
        spans: list[tuple[int, int]] = []
        for placement in placements:
            runs += self._runs_of(placement)
            for start, end in _uncached(placement, self.block_size):
                if spans and spans[-1][1] == start:
                    spans[-1] = (spans[-1][0], end)
                else:
                    spans.append((start, end))
        if sealed_end:
            runs.append(TableRun(placements[-1].start + placements[-1].num_tokens, 0, []))
        return Admission(runs, spans, tuple(placements))

    def _runs_of(self, placement: Placement) -> list[TableRun]:
        """The runs of one segment: repaired head, reused blocks, then what is computed after them."""
        size, end = self.block_size, placement.start + placement.num_tokens
        head = min(placement.first_block * size, placement.num_tokens)
        reused = TableRun(placement.start + head, placement.hit_tokens, list(placement.blocks), placement.shift)
        runs = []
        if head:
            runs.append(TableRun(placement.start, head, self.pool.allocate(placement.first_block)))
        if placement.shift == 0 and not head:
            reused.blocks += self.pool.allocate(-(-placement.num_tokens // size) - len(reused.blocks))
            reused.num_tokens = placement.num_tokens
            return [reused]
        if reused.num_tokens:
            runs.append(reused)
        if reused.end < end:
            runs.append(TableRun(reused.end, end - reused.end, self.pool.allocate(-(-(end - reused.end) // size))))
        return runs

    def _touch(self, nodes: Sequence[Node]) -> None:
        self._clock += 1
        for node in nodes:
            node.last_used = self._clock

    def _common_end(self, request: Request, segments: Sequence[Segment], other: Request) -> int:
        """Find up to which position a request can use what another, live one has yet to publish; 0 for nothing."""
        admission = other.held
        end = self._publishable_end(other, admission, admission.spans[-1][1])
        if other.namespace != request.namespace or not admission.may_publish or end <= admission.published_to:
            return 0
        theirs = [(key, part.owner) for part in self._path(other, admission, end) for key in part.keys]
        ours = [
            (key, None if segment.sealed else request.owner)
            for segment in segments
            for key in block_keys(segment.tokens, self.block_size, sealed=segment.sealed)
        ]
        common = 0
        for (key, reader), (published, owner) in zip(ours, theirs, strict=False):
            if key != published or owner not in (None, reader):
                break
            common += len(key)
        return common

    def _publishable_end(self, request: Request, admission: Admission, computed: int) -> int:
        """Find the position up to which blocks may be offered when `computed` are, without building any key."""
        start = 0
        shifted = (p for p in admission.placements if p.shift)
        exact_end = min(computed, next((p.start for p in shifted), computed))
        for segment in request.prompt.segments:
            end = start + len(segment.tokens)
            if segment.sealed:
                if end > exact_end:
                    return start
                start = end
            elif segment.kind is SegmentKind.TEXT and request.owner is None:
                return start + (min(exact_end, end) - start) // self.block_size * self.block_size
        if request.owner is None:
            return start
        return start + (exact_end - start) // self.block_size * self.block_size

    def _path(self, request: Request, admission: Admission, end: int) -> list[PathPart]:
        """The path from the root to a prompt position that `_publishable_end` found."""
        tables = {run.start: run for run in admission.runs}
        parts, start = [], 0
        for segment in request.segments:
            if start >= end:
                break
            keys = block_keys(segment.tokens[: end - start], self.block_size, sealed=segment.sealed)
            owner = None if segment.sealed else request.owner
            parts.append(PathPart(keys, tables[start].blocks[: len(keys)], owner, whole=segment.sealed))
            start += len(segment.tokens)
        return parts


def _uncached(placement: Placement, block_size: int) -> list[tuple[int, int]]:
    """The intervals of a segment that its placement leaves to compute."""
    start, end = placement.start, placement.start + placement.num_tokens
    reused_start = min(start + placement.first_block * block_size, end)
    reused_end = reused_start + placement.hit_tokens
    return [(low, high) for low, high in ((start, reused_start), (reused_end, end)) if low < high]


def _check_admission(request: Request, admission: Admission) -> None:
    """Assert that table and spans are ordered, whole and not ahead of what is computed."""
    position = 0
    for run in admission.runs:
        assert run.start == position, f"request {request.id}: a run starts at {run.start}, not {position}"
        position = run.end
    for (start, end), (following, _) in zip(admission.spans, admission.spans[1:], strict=False):
        assert start < end < following, f"request {request.id}: spans {admission.spans} are not ordered"
    assert admission.published_to <= admission.computed_end, (
        f"request {request.id}: published to {admission.published_to}, computed to {admission.computed_end}"
    )
