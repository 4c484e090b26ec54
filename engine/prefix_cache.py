"""The cache of KV blocks: the only user of the block pool and the radix trees.

A request goes through `admit`, then `extend` and `publish` as it advances, and `release`. Knows no tensors; what it
publishes must have been computed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain

from engine.approximate_tails import ApproximateTails
from engine.block_pool import BlockPool
from engine.block_table import build_admission, check_admission, uncached
from engine.eviction import Policy, lru
from engine.ladder import Placed, is_known, place
from engine.ordering import order_passages
from engine.pins import Pins
from engine.promotion import Loaded, Promotion
from engine.prompt import Prompt, Reuse, Segment, SegmentKind, block_keys
from engine.publication import common_end, path_to, publishable_end
from engine.radix_tree import RadixTree
from engine.request import Admission, Request
from engine.room import Room
from engine.tier import Tier

__all__ = ["PrefixCache"]

WORTH_WAITING_BLOCKS = 2  # computing fewer twice takes less time than a step's fixed part


class PrefixCache:
    """Transactional admission over one pool and one radix tree a namespace.

    Args:
        num_blocks: size of the pool.
        block_size: tokens a block.
        policy: which leaf goes first when room is needed.
        tier: where canonical KV is kept besides the pool.
    """

    def __init__(self, num_blocks: int, block_size: int, *, policy: Policy = lru, tier: Tier | None = None) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.pins = Pins(self.pool)
        self.num_changes = 0  # of what may give a place to a request that was refused one
        self._trees: dict[str, RadixTree] = {}
        self._tails = ApproximateTails(block_size)
        self._room = Room(self.pool, self.pins, policy, self._all_trees)
        self._live: dict[Request, Admission] = {}
        self._promotion = None if tier is None else Promotion(tier, self.pool, self._room)

    @property
    def num_cached_blocks(self) -> int:
        """How many blocks the trees hold."""
        return sum(len(node.blocks) for tree in self._all_trees() for node in tree.nodes())

    @property
    def num_evicted_blocks(self) -> int:
        """How many blocks have been evicted so far."""
        return self._room.num_evicted_blocks

    def tree(self, namespace: str) -> RadixTree:
        """Return the namespace's tree, an empty one at first."""
        return self._trees.setdefault(namespace, RadixTree(self.block_size))

    def arrange(self, request: Request) -> None:
        """Put the passages that may change places in the order in which the tree serves most of them."""
        if not request.groups or request.first_admission:
            return
        *_, first = (i for i, segment in enumerate(request.prompt.segments[:2]) if segment.kind is SegmentKind.PASSAGE)
        segments = request.prompt.segments
        passages = segments[first : first + sum(request.groups)]
        template = segments[0] if first else None
        order = order_passages(passages, request.groups, template, self.tree(request.namespace))
        moved = [passages[i] for i in order]
        request.prompt = Prompt([*segments[:first], *moved, *segments[first + len(moved) :]])

    def admit(self, request: Request) -> Admission | None:
        """Pin what is cached, make room, allocate the rest; or return None: not now.

        What the request needs of the tier is brought into the tree first, and stays there when room is short after all.
        """
        assert request not in self._live, f"request {request.id} is admitted already"
        segments = request.segments
        self._note_written()
        loaded = self._load(request, segments)
        placed = self._place(request, segments)
        pinned = [block for placement in placed.placements for block in placement.blocks]
        self.pool.hold(pinned)
        needed = sum(segment.num_blocks(self.block_size) for segment in segments)
        if not self._make_room_for(request, needed - len(pinned)):
            self.pool.drop(pinned)
            return None
        placements = [
            replace(placement, from_disk=placement.hit_tokens > 0 and i in loaded.segments)
            for i, placement in enumerate(placed.placements)
        ]
        admission = build_admission(placements, self.block_size, self.pool.allocate, sealed_end=segments[-1].sealed)
        used = dict.fromkeys(placed.nodes)  # a template is on the path of every shifted passage
        for node in used:
            node.uses += 1
            node.on_probation = False
        for node in loaded.crowding:
            node.on_probation = True
        self._room.touch([*used, *loaded.crowding])
        self._live[request] = admission
        return admission

    def is_being_computed(self, request: Request) -> bool:
        """Tell whether a live request is about to publish blocks that this one would otherwise compute too."""
        segments = request.segments
        others = (other for other in self._live if not other.background)  # those may not advance for long
        coming = max((common_end(request, segments, other, self.block_size) for other in others), default=0)
        if coming < WORTH_WAITING_BLOCKS * self.block_size:
            return False
        missing = 0
        for placement in self._place(request, segments).placements:
            for start, end in uncached(placement, self.block_size):
                missing += max(min(end, coming) - start, 0)
        return missing >= WORTH_WAITING_BLOCKS * self.block_size

    def extend(self, request: Request) -> bool:
        """Give the request a block for its newest token if it needs one; False when none can be had."""
        admission = request.held
        run, end = admission.runs[-1], admission.spans[-1][1]
        missing = -(-(end - run.start) // self.block_size) - len(run.blocks)
        if missing > 0:
            if not self._make_room_for(request, missing):
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
        if not request.may_publish:
            return
        end = publishable_end(request, admission, admission.computed_end, self.block_size)
        if end > admission.published_to:
            tree = self.tree(request.namespace)
            adopted, nodes = tree.insert(path_to(request, admission, end, self.block_size))
            self.pool.hold(adopted)
            self.num_changes += 1
            admission.published_to = end
            if self._promotion is not None and (adopted or request.max_tokens == 0):  # 0: to have it kept
                self._promotion.save(request, tree, adopted)
                self._note_written()
            self._room.touch(nodes)
        elif request.owner is not None and request.reuse is Reuse.CHUNK:
            adopted, nodes = self._tails.publish(request, admission)
            self.pool.hold(adopted)
            self.num_changes += bool(adopted)
            self._room.touch(nodes)

    def release(self, request: Request) -> None:
        """Drop every block that the request holds."""
        self.pool.drop(self._live.pop(request).blocks)
        self.num_changes += 1

    def pin(self, namespace: str, template: Segment, passage: Segment) -> bool:
        """Keep the canonical KV of a passage, and the template's, from being evicted; tell whether that was possible.

        It is where they are cached as a whole and the share of the pool that may be pinned is not full.
        """
        keys = [key for part in (template, passage) for key in block_keys(part.tokens, self.block_size, sealed=True)]
        blocks = self.tree(namespace).match(keys).blocks
        return len(blocks) == len(keys) and self.pins.add(namespace, passage, blocks)

    def unpin(self, namespace: str, keeps: Callable[[Segment], bool] = lambda _: False) -> int:
        """Let the pinned passages of a namespace be evicted again but those to be kept; return how many they were."""
        self.num_changes += 1
        return self.pins.release(namespace, keeps)

    def is_cached(self, namespace: str, segments: Sequence[Segment]) -> bool:
        """Tell whether the whole of these sealed segments is in the tree."""
        return is_known(self.tree(namespace), segments)

    def drop_namespace(self, namespace: str, waiting: Iterable[Request] = ()) -> int:
        """Forget everything cached for a namespace and return the blocks freed.

        Requests of it that run or wait publish none any more: what was forgotten must not come back, and two of them
        may hold one block of which each would make a node.
        """
        self.num_changes += 1
        for request in (*self._live, *waiting):
            request.may_publish &= request.namespace != namespace
        self.unpin(namespace)
        tree = self._trees.pop(namespace, None)
        dropped = [*self._tails.drop(namespace), *(tree.nodes() if tree is not None else ())]
        return sum(self.pool.drop(node.blocks) for node in dropped)

    def purge(self, namespace: str, passages: Sequence[tuple[int, ...]], waiting: Iterable[Request] = ()) -> bool:
        """Forget every block of these passages, with all that was computed after them.

        Returns:
            Whether no request that runs or waits has one of them in its prompt; those publish none any more.
        """
        gone = set(passages)
        reading = [
            request
            for request in (*self._live, *waiting)
            if request.namespace == namespace and gone.intersection(s.tokens for s in request.prompt.segments)
        ]
        for request in reading:
            request.may_publish = False
        heads = {tuple(tokens[: self.block_size]) for tokens in gone}
        self.unpin(namespace, lambda passage: passage.tokens[: self.block_size] not in heads)
        removed = [*self.tree(namespace).remove_subtrees(heads), *self._tails.drop(namespace, gone)]
        for node in removed:
            self.pool.drop(node.blocks)
        self.num_changes += 1
        return not reading

    def clear(self) -> int:
        """Forget everything cached and return the blocks freed; running requests keep theirs."""
        return sum(self.drop_namespace(namespace) for namespace in list(self._trees))  # conversations' are among them

    def check_invariants(self) -> None:
        """Assert what DESIGN section 3 promises of pool, trees and admissions."""
        holders: dict[int, int] = {}
        for blocks in self._held_blocks():
            for block in blocks:
                holders[block] = holders.get(block, 0) + 1
        self.pool.check(holders)
        in_trees = [block for tree in self._all_trees() for node in tree.nodes() for block in node.blocks]
        assert len(in_trees) == len(set(in_trees)), "a block is in two nodes"
        for tree in self._all_trees():
            tree.check()
        for request, admission in self._live.items():
            check_admission(admission, f"request {request.id}")

    def _held_blocks(self) -> Iterator[Sequence[int]]:
        for admission in self._live.values():
            yield admission.blocks
        for tree in self._all_trees():
            for node in tree.nodes():
                yield node.blocks
        yield from self.pins.blocks()

    def _all_trees(self) -> Iterator[RadixTree]:
        return chain(self._trees.values(), self._tails.trees)

    def _place(self, request: Request, segments: Sequence[Segment]) -> Placed:
        tree = self.tree(request.namespace)
        if request.reuse is not Reuse.CHUNK:
            return place(segments, tree, reuse=Reuse.EXACT, owner=request.owner)
        tails = self._tails.tree(request, segments)
        return place(segments, tree, reuse=Reuse.CHUNK, owner=request.owner, repair=request.repair, private_tails=tails)

    def _note_written(self) -> None:
        """Give nodes that are on disk by now the priority of such."""
        if self._promotion is not None:
            self._room.reconsider(self._promotion.note_written(self._trees))

    def _load(self, request: Request, segments: Sequence[Segment]) -> Loaded:
        """Bring into the tree what the request can use of the tier."""
        tree = self.tree(request.namespace)
        wanted = self._promotion.wanted(request, segments, tree) if self._promotion is not None else []
        if self._promotion is None or not wanted:
            return Loaded(set(), [])
        held = [block for placement in self._place(request, segments).placements for block in placement.blocks]
        return self._promotion.load(request, segments, tree, wanted, held)

    def _make_room_for(self, request: Request, n: int) -> bool:
        """Make room for a request; to one that could never run beside them, even pins give way."""
        if self._room.make(n):
            return True
        is_alone = not self._live.keys() - {request}
        return is_alone and self._room.make_of_pinned(n)
