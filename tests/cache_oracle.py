"""A naive oracle of the prefix cache: it knows what every KV slot holds and who may read it.

It never asks the cache what a block means. It writes down, for each slot, the position and the exact tokens in whose
context the slot's KV was computed, and whom it is for; then it checks every reused slot of every admission.
"""

from itertools import pairwise
from typing import Any, NamedTuple

from engine.ladder import Outcome, place
from engine.prefix_cache import PrefixCache
from engine.prompt import Reuse, SegmentKind
from engine.request import Request

__all__ = ["NAMESPACES", "OWNERS", "CacheOracle"]

SHARED, PRIVATE = "shared", "private"
NAMESPACES = ("x", "y")
OWNERS = (None, None, ("ann", "1"), ("ann", "2"), ("bob", "1"))
Path = tuple[tuple[int, ...], ...]
Dump = dict[tuple[tuple[Any, ...], Path], int]


class Slot(NamedTuple):
    """What the KV of one slot was computed from."""

    position: int
    history: tuple[int, ...]  # every token of its context and its own
    exact: bool  # False after any shifted run
    namespace: str
    audience: Any  # SHARED, PRIVATE, or the conversation that may read it


class Entry(NamedTuple):
    """A path that a reader (None: everybody) may match; its first keys are in shared nodes."""

    reader: Any
    num_shared: int
    path: Path


def naive_keys(tokens: tuple[int, ...], size: int) -> Path:
    return tuple(tokens[i : i + size] for i in range(0, len(tokens), size))


class OracleTier:
    """A tier that keeps what slots were computed from; every `miss_every`-th load fails (0: none does)."""

    def __init__(self, slots: dict[tuple[int, int], "Slot"], size: int, miss_every: int) -> None:
        self.slots, self.size, self.miss_every = slots, size, miss_every
        self.kept: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[list[Slot | None]]] = {}
        self.loads = 0

    def has(self, namespace: str, template: tuple[int, ...], passage: tuple[int, ...]) -> bool:
        return (namespace, template, passage) in self.kept

    def load(self, namespace: str, template: tuple[int, ...], passage: tuple[int, ...], blocks: Any) -> bool:
        self.loads += 1
        kept = self.kept[namespace, template, passage]
        assert len(kept) == len(blocks)
        missed = self.miss_every and self.loads % self.miss_every == 0
        for block, content in zip(blocks, kept, strict=True):
            for offset in range(self.size):
                self.slots.pop((block, offset), None)  # a miss may have written something
            if not missed:
                self.slots |= {(block, offset): slot for offset, slot in enumerate(content) if slot is not None}
        return not missed

    def save(self, namespace: str, template: tuple[int, ...], passage: tuple[int, ...], blocks: Any) -> bool:
        content = [[self.slots.get((block, offset)) for offset in range(self.size)] for block in blocks]
        computed = [slot for block in content for slot in block if slot is not None]
        history = template + passage
        assert [slot.position for slot in computed] == list(
            range(len(history) - len(passage or template), len(history))
        )
        assert all(slot.history == history[: slot.position + 1] and slot.exact for slot in computed)
        assert all((slot.namespace, slot.audience) == (namespace, SHARED) for slot in computed)
        self.kept[namespace, template, passage] = content
        return True

    def keeps(self, namespace: str, template: tuple[int, ...], passage: tuple[int, ...]) -> bool:
        return self.has(namespace, template, passage)

    def prefetch(self, namespace: str, template: tuple[int, ...], passages: Any) -> None:
        """Nothing is read ahead."""


class CacheOracle:
    """Calls the cache and checks each answer; `known` are the entries that must be found until evicted."""

    def __init__(self, num_blocks: int, size: int, repair: int, miss_every: int | None = None) -> None:
        self.size, self.repair = size, repair
        self.slots: dict[tuple[int, int], Slot] = {}
        self.tier = None if miss_every is None else OracleTier(self.slots, size, miss_every)
        self.cache = PrefixCache(num_blocks, size, tier=self.tier)
        self.known: set[tuple[str, Entry]] = set()
        self.offered: dict[Request, list[Entry]] = {}
        self.dropped: set[Request] = set()

    # What the cache must do, call by call.

    def admit(self, request: Request, *, alone: bool) -> bool:
        """Admit, or find the refusal right; nothing may change when refused or only placed."""
        cache = self.cache
        before, evicted, free = self.snapshot(), cache.num_evicted_blocks, cache.pool.num_free
        reuse = Reuse.CHUNK if request.reuse is Reuse.CHUNK else Reuse.EXACT
        tree = cache.tree(request.namespace)
        place(request.segments, tree, reuse=reuse, owner=request.owner, repair=self.repair)
        placed = cache._place(request, request.segments)
        assert self.snapshot() == before, "placing is not read-only"
        pinned = [block for placement in placed.placements for block in placement.blocks]
        needed = request.prompt.num_blocks(self.size, extra_tokens=len(request.output_tokens)) - len(pinned)
        loads = self.tier.loads if self.tier else 0
        admission = cache.admit(request)
        loaded = bool(self.tier) and self.tier.loads > loads
        if admission is None:
            assert loaded or self.snapshot() == before, "a refused admission changed something"
            assert not alone, f"request {request.id} fits alone and was refused"
            assert loaded or needed > free + self.evictable(set(pinned)), "refused although there was room"
            if loaded:
                self.forget_evicted(evicted, 0, 1)
            return False
        if loaded:
            free = -1  # loading may have evicted
        request.admission = admission
        self.forget_evicted(evicted, free, needed)
        self.check_admission(request)
        return True

    def extend(self, request: Request) -> bool:
        """Extend; a refusal changes nothing."""
        before, free, blocks = self.snapshot(), self.cache.pool.num_free, len(request.held.blocks)
        if not self.cache.extend(request):
            assert self.snapshot() == before, "a refused extension changed something"
            return False
        grown = request.held.blocks[blocks:]
        self.forget_evicted(before[-1], free, len(grown))
        for slot in [slot for slot in self.slots if slot[0] in grown]:
            del self.slots[slot]
        return True

    def write(self, request: Request, n: int) -> None:
        """Compute the next n tokens: the slots now hold the KV of these tokens in the context of their table."""
        admission = request.held
        positions = [p for part in admission.next_positions(n) for p in part]
        assert len(positions) == n
        tokens = request.tokens
        first_shifted = min((r.start for r in admission.runs if r.shift), default=len(tokens))
        for position in positions:
            block, offset, _ = self.locate(request, position)
            assert self.cache.pool.count(block) == 1, f"writing into block {block}, which others hold"
            self.slots[block, offset] = Slot(
                position,
                tuple(tokens[: position + 1]),
                position < first_shifted,
                request.namespace,
                self.audience(request, position),
            )
        admission.num_computed_tokens += n

    def publish(self, request: Request) -> None:
        """Publish; exactly what is computed and may be shared becomes known, and nothing is displaced."""
        before, seen_before = self.dumps(), self.visible(request.namespace)
        self.cache.publish(request)
        after = self.dumps()
        for namespace in NAMESPACES:
            assert before[namespace].items() <= after[namespace].items(), "publishing displaced a block"
            assert namespace == request.namespace or before[namespace] == after[namespace]
        published = [] if request in self.dropped else self.expected_entries(request)
        if seen_before.issuperset(published):
            assert before == after, "nothing new, and yet the tree was written"
        if published == self.offered.get(request, []):
            return  # offered before; what was dropped since is not offered again
        self.offered[request] = published
        seen = self.visible(request.namespace)
        for entry in published:
            assert entry in seen, f"computed, and not published: {entry}"
            self.known.add((request.namespace, entry))

    def release(self, request: Request) -> None:
        self.cache.release(request)
        request.admission = None
        self.offered.pop(request, None)

    def drop_namespace(self, namespace: str, live: list[Request]) -> None:
        """Drop; what running requests hold of it stays theirs, and does not come back."""
        self.dropped |= {request for request in live if request.namespace == namespace}
        dropped = [*self.dump(namespace).values(), *self.private_blocks(namespace)]
        unheld = sum(self.cache.pool.count(block) == 1 for block in dropped)
        free = self.cache.pool.num_free
        assert self.cache.drop_namespace(namespace) == unheld == self.cache.pool.num_free - free
        assert not self.dump(namespace)
        self.known = {entry for entry in self.known if entry[0] != namespace}

    # What must hold after every call.

    def check_books(self, live: list[Request]) -> None:
        self.cache.check_invariants()
        held = {block for request in live for block in request.held.blocks}
        held |= self.blocks_in_trees()
        assert self.cache.pool.num_free + len(held) == self.cache.pool.num_blocks

    def check_trees(self) -> None:
        """Every block in a tree holds the exact KV of its path, and is there for those who may read it."""
        for namespace in NAMESPACES:
            for (owners, keys), block in self.dump(namespace).items():
                path = sum(keys, ())
                start = len(path) - len(keys[-1])
                for offset in range(len(keys[-1])):
                    slot = self.slots.get((block, offset))
                    assert slot is not None, f"block {block} was published before it was computed"
                    assert slot[:4] == (start + offset, path[: start + offset + 1], True, namespace)
                    assert slot.audience in (SHARED, owners[-1]), f"{slot} is published to {owners[-1]}"

        for context, tree in self.cache._tails._trees.items():
            for node in tree.nodes():
                for block, key in zip(node.blocks, node.keys, strict=True):
                    slots = [self.slots.get((block, offset)) for offset in range(len(key))]
                    assert all(slot is not None and slot.audience == context.owner for slot in slots)
                    assert all(slot.history[: len(sum(context.runs, ()))] == sum(context.runs, ()) for slot in slots)

    def check_known(self) -> None:
        seen = {name: self.visible(name) for name in NAMESPACES}
        assert all(entry in seen[namespace] for namespace, entry in self.known)

    # What is in the trees.

    def dump(self, namespace: str) -> Dump:
        """Every block of a tree by the owners and keys on its path from the root."""
        found: Dump = {}
        stack = [(child, (), ()) for child in self.cache.tree(namespace).root.children.values()]
        while stack:
            node, owners, keys = stack.pop()
            for key, block in zip(node.keys, node.blocks, strict=True):
                owners, keys = (*owners, node.owner), (*keys, key)
                assert (owners, keys) not in found, "one path leads to two blocks"
                found[owners, keys] = block
            stack += [(child, owners, keys) for child in node.children.values()]
        return found

    def private_blocks(self, namespace: str) -> list[int]:
        """Every block of conversations over approximate context."""
        trees = [tree for context, tree in self.cache._tails._trees.items() if context.namespace == namespace]
        return [block for tree in trees for node in tree.nodes() for block in node.blocks]

    def blocks_in_trees(self) -> set[int]:
        shared = {block for entries in self.dumps().values() for block in entries.values()}
        return shared.union(*(self.private_blocks(namespace) for namespace in NAMESPACES))

    def dumps(self) -> dict[str, Dump]:
        return {namespace: self.dump(namespace) for namespace in NAMESPACES}

    def snapshot(self) -> Any:
        pool = self.cache.pool
        used = [
            [(tuple(n.keys), tuple(n.blocks), n.owner, n.last_used, n.uses) for n in self.cache.tree(name).nodes()]
            for name in NAMESPACES
        ]
        counts = [pool.count(block) for block in range(pool.num_blocks)]
        private = [self.private_blocks(name) for name in NAMESPACES]
        return counts, pool.num_free, used, self.dumps(), private, self.cache.num_evicted_blocks

    def visible(self, namespace: str) -> set[Entry]:
        """All entries that a tree offers to somebody."""
        entries: set[Entry] = set()
        for owners, keys in self.dump(namespace):
            if owners[-1] is None:
                entries.add(Entry(None, len(keys), keys))
            shared = owners.count(None)
            assert set(owners[shared:]) <= {owners[-1]}, "a path has two owners"
            readers = set(OWNERS) - {None} if owners[-1] is None else {owners[-1]}
            entries |= {Entry(reader, n, keys) for reader in readers for n in range(shared + 1)}
        return entries

    def forget_evicted(self, evicted_before: int, free_before: int, needed: int) -> None:
        """After room was made: nothing may be lost unless blocks were short, and then as counted."""
        seen = {name: self.visible(name) for name in NAMESPACES}
        lost = [entry for entry in self.known if entry[1] not in seen[entry[0]]]
        if needed <= free_before:
            assert self.cache.num_evicted_blocks == evicted_before, "evicted while blocks were free"
        if self.cache.num_evicted_blocks == evicted_before:
            assert not lost, f"lost without an eviction: {lost}"
        self.known.difference_update(lost)

    def evictable(self, pinned: set[int]) -> int:
        """Count the blocks that only trees hold, now and with everything after them on their paths."""
        count = 0
        for entries in self.dumps().values():
            held = [path for path, block in entries.items() if block in pinned or self.cache.pool.count(block) > 1]
            for owners, keys in entries:
                n = len(keys)
                count += not any(o[:n] == owners and k[:n] == keys for o, k in held)
        for tree in self.cache._tails.trees:
            for node in tree.nodes():
                below = list(node.blocks)
                stack = list(node.children.values())
                while stack:
                    child = stack.pop()
                    below += child.blocks
                    stack += child.children.values()
                count += sum(
                    not any(b in pinned or self.cache.pool.count(b) > 1 for b in below[i:])
                    for i in range(len(node.blocks))
                )
        return count

    # What a request should find and leave.

    def pieces(self, request: Request) -> list[tuple[tuple[int, ...], bool, Any]]:
        """(tokens, sealed, audience) of each segment, the sampled tokens with the last unsealed one."""
        result: list[tuple[tuple[int, ...], bool, Any]] = []
        for segment in request.prompt.segments:
            if segment.kind in (SegmentKind.TEMPLATE, SegmentKind.PASSAGE):
                result.append((segment.tokens, True, SHARED))
            elif request.owner is not None:
                result.append((segment.tokens, False, request.owner))
            else:
                result.append((segment.tokens, False, SHARED if segment.kind is SegmentKind.TEXT else PRIVATE))
        return result

    def audience(self, request: Request, position: int) -> Any:
        for tokens, _, audience in self.pieces(request):
            if position < len(tokens):
                return audience
            position -= len(tokens)
        return PRIVATE if request.owner is None else request.owner

    def locate(self, request: Request, position: int) -> tuple[int, int, int]:
        """Block, offset and shift of a position, from the block table."""
        (run,) = [r for r in request.held.runs if r.start <= position < r.end]
        offset = position - run.start
        return run.blocks[offset // self.size], offset % self.size, run.shift

    def expected_slot(self, request: Request, position: int, shift: int) -> tuple[int, tuple[int, ...]]:
        """Position and context of the KV that may serve a prompt position."""
        if shift == 0:
            return position, tuple(request.tokens[: position + 1])
        template, start = request.prompt.segments[0].tokens, 0
        for segment in request.prompt.segments:
            if position < start + len(segment.tokens):
                assert segment.kind is SegmentKind.PASSAGE, "only passages may be shifted"
                break
            start += len(segment.tokens)
        return position - shift, template + segment.tokens[: position + 1 - start]

    def known_prefix(self, request: Request) -> int:
        """The longest prefix, in tokens, that the oracle saw published to this request's reader and never evicted."""
        path: Path = ()
        best = num_shared = 0
        segments = self.pieces(request)
        if not segments[-1][1]:
            segments[-1] = (segments[-1][0] + tuple(request.output_tokens), False, None)
        for tokens, sealed, _ in segments:
            for key in naive_keys(tokens, self.size):
                if len(key) < self.size and not sealed:
                    break
                path = (*path, key)
                num_shared += sealed
                entries = [Entry(None, len(path), path)]
                if not sealed:
                    entries += [Entry(request.owner, n, path) for n in range(num_shared, len(path) + 1)]
                if any((request.namespace, entry) in self.known for entry in entries):
                    best = sum(map(len, path))
        return best

    def check_admission(self, request: Request) -> None:
        admission, size = request.held, self.size
        total = request.prompt.num_tokens + len(request.output_tokens)
        spans = admission.spans
        assert all(low < high for low, high in spans)
        assert all(a[1] < b[0] for a, b in pairwise(spans))
        assert spans[-1][1] == total, "the prompt's last token is always computed"
        computed = {position for low, high in spans for position in range(low, high)}
        assert [r.start for r in admission.runs] == [0, *[r.end for r in admission.runs]][:-1]
        assert admission.runs[-1].end == total
        in_tree = self.blocks_in_trees()
        fresh = set()
        for position in range(total):
            block, offset, shift = self.locate(request, position)
            if position in computed:
                assert shift == 0, "what is computed is computed at its own position"
                assert self.cache.pool.count(block) == 1, "a block to be written is shared"
                assert block not in in_tree, "a block to be written is in a tree"
                fresh.add(block)
                continue
            slot = self.slots.get((block, offset))
            assert slot is not None, f"position {position} reuses a slot that was never computed"
            assert (slot.position, slot.history) == self.expected_slot(request, position, shift)
            own = request.reuse is Reuse.CHUNK and request.owner is not None and slot.audience == request.owner
            assert slot.exact or own, "approximate KV is reused"
            assert slot.namespace == request.namespace, "KV crossed namespaces"
            assert slot.audience == SHARED or slot.audience == request.owner is not None, f"private KV leaked: {slot}"
        for block, offset in list(self.slots):
            if block in fresh:
                del self.slots[block, offset]
        assert sum(p.hit_tokens for p in admission.placements) == total - len(computed)
        exact = next((p.start for p in admission.placements if p.shift), total)
        hits = next(p for p in range(total) if p in computed)
        known = self.known_prefix(request)
        assert min(hits, exact) >= min(known, exact, total - size), f"hit {hits} of {known} known tokens"
        self.check_outcomes(request, computed)

    def check_outcomes(self, request: Request, computed: set[int]) -> None:
        """Name each segment's rung from what is computed, and see that no known passage was missed."""
        start, passages = 0, 0
        template = request.prompt.segments[0]
        for segment, placement in zip(request.prompt.segments, request.held.placements, strict=False):
            end = start + len(segment.tokens)
            passages += segment.kind is SegmentKind.PASSAGE
            todo = [p for p in range(start, end) if p in computed]
            is_last = segment is request.prompt.segments[-1]
            shift = start - len(template.tokens)
            if placement.outcome is Outcome.SHIFTED:
                assert request.reuse is Reuse.CHUNK
                assert placement.shift == shift > 0
                assert todo == list(range(start, start + self.repair)), "repair is the passage's first whole blocks"
            elif placement.outcome is not Outcome.COMPUTED:
                assert not todo
                assert placement.shift == 0
                first = segment.kind is SegmentKind.PASSAGE and passages == 1
                assert (placement.outcome is Outcome.CANONICAL) == first
            elif not is_last:
                assert todo, "computed, and nothing was"
                canonical = naive_keys(template.tokens, self.size) + naive_keys(segment.tokens, self.size)
                usable = segment.kind is SegmentKind.PASSAGE and template.kind is SegmentKind.TEMPLATE
                exact = len(segment.tokens) - len(todo)
                if request.reuse is Reuse.CHUNK and usable and shift > 0 and len(segment.tokens) - self.repair > exact:
                    entry = Entry(None, len(canonical), canonical)
                    assert (request.namespace, entry) not in self.known, "canonical KV was not used"
            start = end

    def first_uncertain(self, request: Request) -> int:
        """Where chunk reuse computes a passage after the first: it and what follows stay out of the tree."""
        passages, start = 0, 0
        for segment, placement in zip(request.prompt.segments, request.held.placements, strict=False):
            passages += segment.kind is SegmentKind.PASSAGE
            later = segment.kind is SegmentKind.PASSAGE and passages > 1
            if request.reuse is Reuse.CHUNK and later and placement.outcome is Outcome.COMPUTED:
                return start
            start += len(segment.tokens)
        return -1

    def expected_entries(self, request: Request) -> list[Entry]:
        """Each prefix that the oracle expects in the tree: computed or reused exactly, and allowed to be shared."""
        admission, exact = request.held, 0
        waiting = {p for part in admission.next_positions(admission.num_remaining_tokens) for p in part}
        for position in range(request.prompt.num_tokens + len(request.output_tokens)):
            if position in waiting or self.locate(request, position)[2] or position == self.first_uncertain(request):
                break
            exact += 1
        segments = self.pieces(request)
        if request.owner is not None:
            answer = tuple(request.output_tokens)
            if segments[-1][1]:
                segments.append((answer, False, request.owner))
            else:
                segments[-1] = (segments[-1][0] + answer, False, request.owner)
        entries: list[Entry] = []
        path: Path = ()
        start = num_shared = 0
        for tokens, sealed, audience in segments:
            if audience == PRIVATE or (sealed and start + len(tokens) > exact):
                break
            for key in naive_keys(tokens, self.size):
                start += len(key)
                if start > exact or (len(key) < self.size and not sealed):
                    return entries
                path = (*path, key)
                num_shared += audience == SHARED
                entries.append(Entry(None if audience == SHARED else request.owner, num_shared, path))
        return entries
