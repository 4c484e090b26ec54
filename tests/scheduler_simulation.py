"""What tests of the scheduler share: a whole engine loop, with arithmetic in the place of a model.

The fake model writes (token, position, hash of the context) into each KV slot and samples from what it reads back
through the block table, so a wrong, stale or foreign block changes the tokens.
"""

import random
import zlib
from collections.abc import Sequence

from engine.drafts import Drafts
from engine.prefix_cache import PrefixCache
from engine.prompt import Prompt, Reuse, SegmentKind
from engine.request import Request, RequestState
from engine.scheduler import ScheduledWork, Scheduler
from engine.step_budget import StepBudget


def next_token(tokens: Sequence[int]) -> int:
    return zlib.crc32(repr(list(tokens)).encode()) % 3 + 1


def context_hash(tokens: Sequence[int]) -> int:
    return zlib.crc32(repr(list(tokens)).encode())


class FakeModel:
    """KV slots without tensors."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.slots: dict[tuple[int, int], tuple[int, int, int]] = {}

    def run(self, item: ScheduledWork) -> list[int]:
        """Compute the item's positions; return the tokens sampled, a draft's as long as it says what is sampled."""
        request = item.request
        table = {
            run.start + i: (run.blocks[i // self.block_size], i % self.block_size, run.shift)
            for run in request.held.runs
            for i in range(run.num_tokens)
        }
        tokens = [*request.tokens, *item.draft]
        for part in item.positions:
            for position in part:
                block, offset, shift = table[position]
                assert shift == 0
                self.slots[block, offset] = (tokens[position], position, context_hash(tokens[: position + 1]))
        seen = []
        for position in range(item.positions[-1].stop):
            block, offset, shift = table[position]
            token, computed_at, context = self.slots[block, offset]
            assert computed_at + shift == position, "a slot of another position"
            if request.reuse is not Reuse.CHUNK:
                assert context == context_hash(tokens[: position + 1]), "a slot of another context"
            seen.append(token)
        sampled, newest = [next_token(seen[: len(seen) - len(item.draft)])], len(seen) - len(item.draft)
        for i, guess in enumerate(item.draft):
            if sampled[-1] != guess:
                break
            sampled.append(next_token(seen[: newest + i + 1]))
        return sampled


class Guesses(Drafts):
    """Drafts of any length whose tokens are right or wrong by chance, whatever they cost."""

    def __init__(self, seed: int) -> None:
        super().__init__(0)
        self.random = random.Random(seed)

    def propose(self, request: Request, limit: int, decode_rows: int) -> tuple[int, ...]:
        tokens, draft = request.tokens, list[int]()
        for _ in range(self.random.randint(0, max(limit, 0))):
            right = self.random.random() < 0.8
            draft.append(next_token([*tokens, *draft]) if right else self.random.randint(1, 3))
        return tuple(draft)


class Simulation:
    """`schedule -> run -> commit`, with every promise of the scheduler checked at each step."""

    def __init__(self, *, num_blocks: int, block_size: int = 4, seqs: int = 8, budget: int = 16,
                 waiting: int = 1000, share: int | None = None, slowdown: float = 1000.0,
                 drafts: Drafts | None = None) -> None:  # fmt: skip
        self.cache = PrefixCache(num_blocks, block_size)
        self.budget, self.seqs = budget, seqs
        step_budget = StepBudget(budget, 2 * block_size, slowdown)
        self.scheduler = Scheduler(
            self.cache, step_budget, drafts or Drafts(0),
            max_num_seqs=seqs, max_num_waiting=waiting, max_share_waiting=share,
        )  # fmt: skip
        self.model = FakeModel(block_size)
        self.drafted = self.accepted = 0
        self.admitted: list[int] = []

    def step(self) -> list[ScheduledWork]:
        scheduler = self.scheduler
        decoding = {r for r in self.scheduler.running if r.held.num_remaining_tokens == 1}
        running, preemptions = list(scheduler.running), scheduler.num_preemptions
        yielded = {request: request.num_preemptions for request in running}
        self.check_refusal()
        work = scheduler.schedule()
        self.check_step(work, running, decoding)
        in_vain = [r for r, times in yielded.items() if r.num_preemptions > times and r in scheduler.running]
        assert not in_vain or scheduler.running[0] in in_vain, "who gave way runs again at once beside others"
        self.check_nothing_is_computed_twice([r for r in scheduler.running if r not in running])
        tokens, decode_rows = sum(item.num_tokens for item in work), sum(item.decodes for item in work)
        leftover = scheduler.step_budget.tokens(len([r for r in decoding if r in scheduler.running])) - tokens
        considered = leftover > 0 and preemptions == scheduler.num_preemptions and len(scheduler.running) < self.seqs
        for item in work:
            sampled = self.model.run(item)
            item.request.held.num_computed_tokens += item.num_certain_tokens
            for i, token in enumerate(sampled if item.samples else []):
                item.request.held.num_computed_tokens += i > 0
                item.request.output_tokens.append(token)
                item.request.held.grow()
            self.cache.publish(item.request)
            self.drafted += len(item.draft)
            self.accepted += len(sampled) - 1
            if (
                0 < item.request.max_tokens == len(item.request.output_tokens)
                or not item.request.held.num_remaining_tokens
            ):
                self.scheduler.finish(item.request)
        self.cache.check_invariants()
        if considered and scheduler.waiting:
            assert not self.cache.is_being_computed(next(iter(scheduler.waiting))), (
                "it waits for another longer than a step"
            )
        scheduler.step_budget.record(
            decode_rows, tokens - decode_rows, 1 + decode_rows / 8 + (tokens - decode_rows) / 4
        )
        return work

    def check_refusal(self) -> None:
        """Whoever is not looked at again because there was no place for it has none now either."""
        for request in self.scheduler.waiting:
            if self.scheduler._is_refused(request):
                assert self.cache.admit(request) is None, "there is room for a request that is refused"

    def check_nothing_is_computed_twice(self, admitted: list[Request]) -> None:
        """No new request computes two blocks or more that one before it is computing and will share."""
        size = self.cache.block_size
        for request in admitted:
            for other in self.scheduler.running[: self.scheduler.running.index(request)]:
                if Reuse.CHUNK in (request.reuse, other.reuse) or request.namespace != other.namespace:
                    continue
                common = shared_with(request, other, size)
                both = set(remaining_positions(request)) & set(remaining_positions(other))
                assert sum(position < common for position in both) < 2 * size

    def check_step(self, work: list[ScheduledWork], running: list[Request], decoding: set[Request]) -> None:
        scheduler = self.scheduler
        assert bool(work) == scheduler.has_work, "a step does nothing while there is work, or something without"
        assert sum(item.num_tokens for item in work) <= self.budget
        assert len(scheduler.running) <= self.seqs
        assert all(item.num_tokens == sum(map(len, item.positions)) > 0 for item in work)
        assert len({item.request for item in work}) == len(work)
        assert all(item.samples == (item.num_certain_tokens == item.request.held.num_remaining_tokens
                                    and item.request.max_tokens > 0) for item in work)  # fmt: skip
        order = [item.request for item in work]
        survivors = [r for r in running if r in scheduler.running]
        decodes = [r for r in survivors if r in decoding]
        assert order[: len(decodes)] == decodes[: len(order)], "decodes come first"
        awaited = {other for request in scheduler.waiting for other in request.prerequisites}  # they may go first
        for principal in {r.principal for r in [*scheduler.running, *scheduler.waiting]}:
            prefills = [r for r in survivors if r not in decoding | awaited and r.principal == principal]
            rest = [r for r in order[len(decodes) :] if r not in awaited and r.principal == principal]
            assert rest[: len(prefills)] == prefills[: len(rest)], "prefills under way come before new requests"
            ours = [r for r in [*scheduler.running, *scheduler.waiting] if r.principal == principal]
            ids = [r.id for r in ours if r not in awaited]
            assert ids == sorted(ids), "first come, first served; the newest yield, and come back first"
        assert all(r.state is RequestState.RUNNING and r.admission for r in scheduler.running)
        last_runs = [r.held.runs[-1] for r in scheduler.running]
        size = self.cache.block_size
        assert all(len(run.blocks) == -(-run.num_tokens // size) for run in last_runs), "blocks that nobody needs"
        assert all(r.state is RequestState.WAITING and r.admission is None for r in scheduler.waiting)

    def run(self, requests: Sequence[Request], limit: int = 3000) -> None:
        for request in requests:
            self.scheduler.add(request)
        while self.scheduler.has_work:
            self.step()
            limit -= 1
            assert limit > 0, "requests go round in circles"
        assert self.cache.pool.num_free + self.cache.num_cached_blocks == self.cache.pool.num_blocks
        assert self.step() == []


def remaining_positions(request: Request) -> list[int]:
    return [p for part in request.held.next_positions(request.held.num_remaining_tokens) for p in part]


def shared_with(request: Request, other: Request, size: int) -> int:
    """Count the leading tokens that both have, cut into the same blocks, and that the other gives to everybody."""

    def blocks(r: Request) -> list[tuple[int, ...]]:
        return [s.tokens[i : i + size] for s in r.segments for i in range(0, len(s.tokens), size)]

    shared = 0
    for segment in other.prompt.segments:
        if segment.sealed:
            shared += len(segment.tokens)
        elif segment.kind is SegmentKind.TEXT and other.owner is None:
            shared += len(segment.tokens) // size * size
    common = 0
    for ours, theirs in zip(blocks(request), blocks(other), strict=False):
        if ours != theirs or common + len(ours) > shared:
            break
        common += len(ours)
    return common


def expected_tokens(request: Request) -> list[int]:
    tokens = list(request.prompt.tokens)
    for _ in range(request.max_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(request.prompt.tokens) :]


def text(number: int, tokens: Sequence[int], max_tokens: int, **options: object) -> Request:
    return Request(number, Prompt.from_tokens(tokens), max_tokens, **options)  # type: ignore[arg-type]
