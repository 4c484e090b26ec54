"""The prefix cache under Hypothesis: requests of every kind in any interleaving, against the oracle."""

from typing import Any

import pytest
from cache_oracle import NAMESPACES, OWNERS, CacheOracle
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.request import Request

HAS_WAITING = precondition(lambda self: self.waiting)
HAS_LIVE = precondition(lambda self: self.live)
HAS_DONE = precondition(lambda self: self.done)
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


def tokens_of(smallest: int, largest: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Two different tokens only, so that prefixes collide often."""
    return st.lists(st.integers(1, 2), min_size=smallest, max_size=largest).map(tuple)


class CacheMachine(RuleBasedStateMachine):
    """`waiting` requests hold nothing, `live` ones an admission (newest last), `done` ones are over."""

    @initialize(
        data=st.data(),
        size=st.sampled_from([1, 2, 3, 4]),
        repair=st.integers(0, 2),
        ingest=st.booleans(),
        miss_every=st.sampled_from([None, 0, 0, 3]),
    )
    def start(self, data: st.DataObject, size: int, repair: int, ingest: bool, miss_every: int | None) -> None:
        num_blocks = data.draw(st.sampled_from([64, 40, 24, 16, 10, 6]))
        self.size = size
        self.oracle = CacheOracle(num_blocks, size, repair * size, miss_every)
        self.cache = self.oracle.cache
        template = data.draw(tokens_of(1, 2 * size + 1))
        self.templates = [template, template, template, template + data.draw(tokens_of(1, size))]
        self.passages = [data.draw(tokens_of(2 * size, 4 * size)), data.draw(tokens_of(1, 4 * size))]
        longest = self.passages[0]
        cut = data.draw(st.integers(1, len(longest)))
        self.passages += [longest[:cut], longest[: -(-cut // size) * size]]
        self.waiting: list[Request] = []
        self.live: list[Request] = []
        self.done: list[Request] = []
        self.next_id = 0
        if ingest:
            self.ingest(template, NAMESPACES[0])

    # Requests come.

    def capacity(self, request: Request) -> int:
        """Blocks that suffice for a request alone in the pool, to its last token."""
        blocks = request.prompt.num_blocks(self.size, extra_tokens=request.max_tokens)
        passages = sum(s.kind is SegmentKind.PASSAGE for s in request.prompt.segments)
        return blocks + (passages * self.oracle.repair // self.size if request.reuse is Reuse.CHUNK else 0)

    def new_request(self, segments: list[Segment], *, max_tokens: int, **options: Any) -> Request:
        """Make a request that fits in the pool alone: without its first segments, if need be."""
        self.next_id += 1
        while True:
            request = Request(self.next_id, Prompt(segments), max_tokens, repair=self.oracle.repair, **options)
            if self.capacity(request) <= self.cache.pool.num_blocks:
                self.waiting.append(request)
                return request
            max_tokens = 0
            limit = (self.cache.pool.num_blocks - 2) * self.size
            segments = segments[1:] or [Segment(segments[0].tokens[:limit], segments[0].kind)]

    def submit(self, segments: list[Segment], data: st.DataObject, owner: Any) -> None:
        reuse = data.draw(st.sampled_from([Reuse.CHUNK, Reuse.CHUNK, Reuse.EXACT, Reuse.AUTO]))
        namespace = data.draw(st.sampled_from([NAMESPACES[0]] * 3 + [NAMESPACES[1]]))
        max_tokens = data.draw(st.integers(0, 2 * self.size + 1))
        request = self.new_request(segments, max_tokens=max_tokens, reuse=reuse, namespace=namespace, owner=owner)
        if data.draw(st.sampled_from([True, True, False])):
            self.try_admit(request)

    @rule(
        data=st.data(),
        owner=st.sampled_from(OWNERS),
        count=st.sampled_from([2, 3, 1, 0]),
        has_template=st.integers(0, 5),
    )
    def submit_structured(self, data: st.DataObject, owner: Any, count: int, has_template: int) -> None:
        segments = []
        if has_template < 5:
            segments.append(Segment(data.draw(st.sampled_from(self.templates)), SegmentKind.TEMPLATE))
        chosen = [data.draw(st.sampled_from(self.passages)) for _ in range(count)]
        segments += [Segment(tokens, SegmentKind.PASSAGE) for tokens in chosen]
        tail = data.draw(tokens_of(0, 2 * self.size))
        if tail or not segments:
            segments.append(Segment(tail or (1,), SegmentKind.TAIL))
        self.submit(segments, data, owner)

    @rule(
        picks=st.lists(st.integers(0, 3), min_size=1, max_size=4), owner=st.sampled_from(OWNERS), more=st.integers(0, 6)
    )
    def ask(self, picks: list[int], owner: Any, more: int) -> None:
        """Put the passages in some order behind the usual template and admit at once, with chunk reuse."""
        segments = [Segment(self.templates[0], SegmentKind.TEMPLATE)]
        segments += [Segment(self.passages[pick], SegmentKind.PASSAGE) for pick in picks]
        segments += [Segment((1, 2, 1)[:more], SegmentKind.TAIL)] if more else []
        options = {"namespace": NAMESPACES[0], "owner": owner, "reuse": Reuse.CHUNK}
        self.try_admit(self.new_request(segments, max_tokens=more, **options))

    @rule(data=st.data(), owner=st.sampled_from(OWNERS))
    def submit_text(self, data: st.DataObject, owner: Any) -> None:
        """Text that often starts like a structured prompt, so that block keys collide."""
        head = data.draw(st.sampled_from([(), *self.templates]))
        body = data.draw(st.sampled_from([(), *self.passages]))
        tokens = head + body + data.draw(tokens_of(1, 2 * self.size))
        self.submit([Segment(tokens, SegmentKind.TEXT)], data, owner)

    @HAS_DONE
    @rule(data=st.data(), owner=st.sampled_from(OWNERS), same=st.booleans())
    def follow_up(self, data: st.DataObject, owner: Any, same: bool) -> None:
        """Continue a finished conversation, or ask the same again, as its owner or as somebody else."""
        before = data.draw(st.sampled_from(self.done))
        *head, last = before.prompt.segments
        more = tuple(before.output_tokens) + data.draw(tokens_of(0, self.size))
        if not last.sealed:
            segments = [*head, Segment(last.tokens + more, last.kind)]
        else:
            segments = [*head, last, *([Segment(more, SegmentKind.TAIL)] if more else [])]
        self.submit(segments, data, before.owner if same else owner)

    @rule(data=st.data(), namespace=st.sampled_from(NAMESPACES))
    def precompute(self, data: st.DataObject, namespace: str) -> None:
        self.ingest(data.draw(st.sampled_from(self.templates)), namespace)

    def ingest(self, template: tuple[int, ...], namespace: str) -> None:
        """Compute and publish the canonical KV of every passage."""
        head = Segment(template, SegmentKind.TEMPLATE)
        for tokens in self.passages:
            segments = [head, Segment(tokens, SegmentKind.PASSAGE)]
            request = self.new_request(segments, max_tokens=0, namespace=namespace)
            if self.try_admit(request):
                self.complete_one(request)

    # Requests advance.

    @HAS_WAITING
    @rule(data=st.data())
    def admit(self, data: st.DataObject) -> None:
        self.try_admit(data.draw(st.sampled_from(self.waiting)))

    def try_admit(self, request: Request) -> bool:
        admitted = self.oracle.admit(request, alone=not self.live)
        if admitted:
            self.waiting.remove(request)
            self.live.append(request)
        return admitted

    @HAS_LIVE
    @rule(data=st.data(), publish=st.sampled_from([True, True, False]))
    def compute(self, data: st.DataObject, publish: bool) -> None:
        """Run some of a request's tokens, cut anywhere along its spans, then publish at once or later."""
        request = data.draw(st.sampled_from(self.live))
        remaining = request.held.num_remaining_tokens
        if remaining:
            self.oracle.write(request, data.draw(st.one_of(st.integers(1, remaining), st.just(remaining))))
        if publish:
            self.oracle.publish(request)

    @HAS_LIVE
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        self.complete_one(data.draw(st.sampled_from(self.live)))

    def complete_one(self, request: Request) -> None:
        """Compute and publish all that is left; a request with all its tokens is done."""
        if request.held.num_remaining_tokens:
            self.oracle.write(request, request.held.num_remaining_tokens)
        self.oracle.publish(request)
        if len(request.output_tokens) >= request.max_tokens:
            self.end(request)

    @HAS_LIVE
    @rule(data=st.data(), tokens=tokens_of(1, 6))
    def sample(self, data: st.DataObject, tokens: tuple[int, ...]) -> None:
        """Sample tokens until one is refused a block; then the newest request yields, as in the scheduler."""
        request = data.draw(st.sampled_from(self.live))
        for token in tokens:
            if request not in self.live:
                return
            self.complete_one(request)
            if request in self.live:
                self.sample_one(request, token)

    def sample_one(self, request: Request, token: int) -> None:
        request.output_tokens.append(token)
        request.held.grow()
        while not self.oracle.extend(request):
            newest, alone = self.live[-1], len(self.live) == 1
            self.preempt_one(newest)
            if newest is request:
                assert self.try_admit(request) or not alone, "preempted for want of a block, and cannot come back"
                return

    # Requests go.

    @HAS_LIVE
    @rule(data=st.data(), cancelled=st.booleans())
    def preempt(self, data: st.DataObject, cancelled: bool) -> None:
        request = data.draw(st.sampled_from(self.live))
        if cancelled:
            self.end(request)
        else:
            self.preempt_one(request)

    def preempt_one(self, request: Request) -> None:
        self.oracle.release(request)
        self.live.remove(request)
        self.waiting.append(request)

    def end(self, request: Request) -> None:
        self.oracle.release(request)
        self.live.remove(request)
        self.done.append(request)

    @rule(n=st.sampled_from([1, 2, 3, 5, 8, 64]))
    def pressure(self, n: int) -> None:
        """Admit and drop a request that matches nothing, so that blocks are evicted."""
        pool = self.cache.pool
        n = min(n, pool.num_blocks)
        request = Request(-1, Prompt.from_tokens(range(100, 100 + n * self.size)), 0)
        free, evicted, possible = pool.num_free, self.cache.num_evicted_blocks, self.oracle.evictable(set())
        request.admission = self.cache.admit(request)
        assert (request.admission is not None) == (n <= free + possible)
        if request.admission is not None:
            assert self.cache.num_evicted_blocks - evicted >= n - free
            self.oracle.forget_evicted(evicted, free, n)
            self.cache.release(request)

    @rule(namespace=st.sampled_from(NAMESPACES), really=st.integers(0, 3))
    def drop_namespace(self, namespace: str, really: int) -> None:
        if really == 3:
            self.oracle.drop_namespace(namespace, self.live)

    @invariant()
    def everything_holds(self) -> None:
        if hasattr(self, "oracle"):
            self.oracle.check_books(self.live)
            self.oracle.check_trees()
            self.oracle.check_known()

    def teardown(self) -> None:
        """Everything can be given back."""
        if hasattr(self, "oracle"):
            for request in list(self.live):
                self.end(request)
            self.cache.clear()
            assert self.cache.pool.num_free == self.cache.pool.num_blocks
            self.cache.check_invariants()


def test_cache_against_the_oracle() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=300, stateful_step_count=25, **COMMON))


@pytest.mark.slow
def test_cache_against_the_oracle_at_length() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=2500, stateful_step_count=50, **COMMON))
