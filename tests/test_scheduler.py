"""The scheduler and the prefix cache in a whole engine loop, with arithmetic in the place of a model."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scheduler_simulation import Guesses, Simulation, expected_tokens, text

from engine.drafts import Drafts
from engine.errors import QueueFullError
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.request import Request, RequestState

TEMPLATE, PASSAGES = (1, 2, 1), ((1, 1, 2, 2, 1), (1, 1, 2, 2), (2, 1), (1, 1, 2, 2, 1, 2, 1, 1, 2))


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    if draw(st.booleans()):
        tokens = draw(st.sampled_from([(), TEMPLATE, TEMPLATE + PASSAGES[0], (1, 1, 1, 1, 2, 2, 2, 2)]))
        return Prompt.from_tokens(tokens + tuple(draw(st.lists(st.integers(1, 2), min_size=1, max_size=9))))
    segments = [Segment(TEMPLATE, SegmentKind.TEMPLATE)]
    segments += [Segment(p, SegmentKind.PASSAGE) for p in draw(st.lists(st.sampled_from(PASSAGES), max_size=3))]
    tail = tuple(draw(st.lists(st.integers(1, 2), max_size=6)))
    return Prompt([*segments, *([Segment(tail, SegmentKind.TAIL)] if tail else [])])


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    specs = st.tuples(
        prompts(),
        st.integers(0, 12),
        st.sampled_from([Reuse.EXACT, Reuse.CHUNK]),
        st.sampled_from([None, "a", "b"]),
        st.sampled_from(["", "", "x", "y"]),
    )
    return [
        Request(i, prompt, max_tokens, reuse, "", owner, principal=principal)
        for i, (prompt, max_tokens, reuse, owner, principal) in enumerate(draw(st.lists(specs, min_size=1, max_size=8)))
    ]


def blocks_alone(requests: Sequence[Request], block_size: int, repair: int) -> int:
    """The smallest pool in which each request fits alone: chunk reuse keeps the repaired blocks beside the repairs."""

    def needed(request: Request) -> int:
        passages = sum(s.kind is SegmentKind.PASSAGE for s in request.prompt.segments)
        extra = passages * repair // block_size if request.reuse is Reuse.CHUNK else 0
        return request.prompt.num_blocks(block_size, extra_tokens=request.max_tokens) + extra

    return max(map(needed, requests))


def check_workload(data: st.DataObject, requests: list[Request]) -> None:
    """Requests arrive and are cancelled at any step; all others finish with the tokens they have alone."""
    size = data.draw(st.sampled_from([1, 2, 4]), "block size")
    repair = size * data.draw(st.integers(0, 1), "repair blocks")
    spare = data.draw(st.sampled_from([0, 1, 3, 10, 100]), "spare blocks")
    budget = data.draw(st.sampled_from([1, 2, 5, 16, 64]), "budget")
    seqs = data.draw(st.sampled_from([1, 2, 3, 16]), "sequences")
    arrivals = data.draw(st.lists(st.integers(0, 12), min_size=len(requests), max_size=len(requests)), "arrivals")
    ends = st.lists(st.sampled_from([None, None, None, 1, 3, 7, 15]), min_size=len(requests), max_size=len(requests))
    cancels = data.draw(ends, "cancelled after")
    simulation = Simulation(
        num_blocks=blocks_alone(requests, size, repair) + spare,
        block_size=size,
        seqs=seqs,
        budget=budget,
        slowdown=data.draw(st.sampled_from([1.0, 3.0, 1000.0]), "slowdown"),
        drafts=data.draw(st.one_of(st.builds(Drafts, st.sampled_from([0, 3])), st.builds(Guesses, st.integers(0, 9)))),
    )
    for request in requests:
        request.repair = repair
    arrivals.sort()
    scheduler, cancelled, step = simulation.scheduler, set(), 0
    while any(r.state is not RequestState.FINISHED for r in requests):
        for request, arrival, after in zip(requests, arrivals, cancels, strict=True):
            if arrival == step:
                scheduler.add(request)
            if after is not None and arrival + after == step and request.state is not RequestState.FINISHED:
                cancelled.add(request)
                scheduler.finish(request)
        simulation.step()
        step += 1
        assert step < 3000, "requests go round in circles"
    for request in requests:
        expected = expected_tokens(request)
        if request in cancelled:
            expected = expected[: len(request.output_tokens)]
        assert request.output_tokens == expected
    simulation.run([])


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), workloads())
def test_every_request_finishes_with_the_tokens_it_has_alone(data: st.DataObject, requests: list[Request]) -> None:
    check_workload(data, requests)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), workloads())
def test_every_request_finishes_at_length(data: st.DataObject, requests: list[Request]) -> None:
    check_workload(data, requests)


@pytest.mark.parametrize("budget", [1, 3, 7, 100])
@pytest.mark.parametrize("spare", [0, 2, 50])
def test_alone_and_together(budget: int, spare: int) -> None:
    prompts = [[1, 2, 1, 2] * 3 + [i % 3] * i for i in range(1, 7)]
    alone = []
    for prompt in prompts:
        request = text(0, prompt, 9)
        Simulation(num_blocks=8, budget=budget).run([request])
        alone.append(request.output_tokens)
    together = [text(i, prompt, 9) for i, prompt in enumerate(prompts)]
    simulation = Simulation(num_blocks=8 + spare, budget=budget)
    simulation.run(together)
    assert [r.output_tokens for r in together] == alone


def test_the_newest_yields_and_resumes_with_its_tokens() -> None:
    requests = [text(i, [i + 1] * 8, 16) for i in range(3)]
    simulation = Simulation(num_blocks=9, budget=64)
    simulation.run(requests)
    assert simulation.scheduler.num_preemptions > 0
    assert requests[0].num_preemptions == 0, "the oldest yields last"
    assert requests[2].num_preemptions >= requests[1].num_preemptions
    assert [r.output_tokens for r in requests] == [expected_tokens(r) for r in requests]
    assert all(len(r.first_admission) == 1 for r in requests)


def test_a_request_alone_that_holds_copies_of_cached_blocks() -> None:
    """Two requests compute one short prefix at once; the second publishes below the first's, and both count."""
    short, long = text(0, [1] * 4 + [2] * 4, 1), text(1, [1] * 4 + [3] * 12, 20)
    simulation = Simulation(num_blocks=9, budget=64)
    simulation.run([short, long])
    assert long.output_tokens == expected_tokens(long)
    assert long.num_preemptions == 1, "it gives its copies back, and takes the cached blocks instead"


def test_decodes_come_before_prefills_and_new_requests() -> None:
    simulation = Simulation(num_blocks=100, budget=6)
    first, second, third = text(0, [1] * 4, 9), text(1, [2] * 20, 2), text(2, [3] * 2, 2)
    simulation.scheduler.add(first)
    assert [(w.request.id, w.num_tokens) for w in simulation.step()] == [(0, 4)]
    simulation.scheduler.add(second)
    simulation.scheduler.add(third)
    steps = [[(w.request.id, w.num_tokens) for w in simulation.step()] for _ in range(5)]
    assert steps == [
        [(0, 1), (1, 5)], [(0, 1), (1, 5)], [(0, 1), (1, 5)], [(0, 1), (1, 5)], [(0, 1), (1, 1), (2, 2)]
    ] or steps[-1] == [(0, 1), (1, 1), (2, 2)]  # fmt: skip


def test_one_computes_a_prefix_that_several_have() -> None:
    """The first computes it; the others wait for that step, find it, and compute no more than their own ends."""
    simulation = Simulation(num_blocks=200, budget=1000)
    requests = [text(i, [1, 2, 3] * 12 + [i], 3) for i in range(5)]
    for request in requests:
        simulation.scheduler.add(request)
    assert [(w.request.id, w.num_tokens) for w in simulation.step()] == [(0, 37)]
    assert [(w.request.id, w.num_tokens) for w in simulation.step()] == [(i, 1) for i in range(5)]
    simulation.run([])
    assert [r.output_tokens for r in requests] == [expected_tokens(r) for r in requests]


def test_who_computes_the_same_short_prefix_does_not_wait() -> None:
    simulation = Simulation(num_blocks=200, budget=1000)
    for i in range(3):
        simulation.scheduler.add(text(i, [1, 2, 3, 1, 2, 3, 1, i], 1))
    assert [w.num_tokens for w in simulation.step()] == [8, 8, 8]


@pytest.mark.parametrize("end", ["cancelled", "finished", "preempted"])
def test_whoever_is_waited_for_may_go(end: str) -> None:
    simulation = Simulation(num_blocks=40, budget=16)
    first = text(0, [1, 2, 3] * 8, 0 if end == "finished" else 9)
    second = text(1, [1, 2, 3] * 8 + [4], 4)
    for request in (first, second):
        simulation.scheduler.add(request)
    assert [(w.request.id, w.num_tokens) for w in simulation.step()] == [(0, 16)]
    if end == "cancelled":
        simulation.scheduler.finish(first)
    elif end == "preempted":
        simulation.scheduler._preempt(first)
    else:
        assert [(w.request.id, w.num_tokens) for w in simulation.step()] == [(0, 8)], "the second waits"
    simulation.run([])
    assert second.output_tokens == expected_tokens(second)
    assert first.output_tokens == (expected_tokens(first) if end == "preempted" else [])


def test_another_namespace_or_conversation_is_not_waited_for() -> None:
    tokens = [1, 2, 3] * 8
    for options in ({"namespace": "other"}, {"owner": "me"}):
        simulation = Simulation(num_blocks=40, budget=100)
        simulation.scheduler.add(text(0, tokens, 2, **options))
        simulation.scheduler.add(text(1, tokens, 2))
        assert [w.num_tokens for w in simulation.step()] == [24, 24]
    simulation = Simulation(num_blocks=40, budget=100)
    simulation.scheduler.add(text(0, tokens, 2, owner="me"))
    simulation.scheduler.add(text(1, tokens, 2, owner="me"))
    assert [w.num_tokens for w in simulation.step()] == [24], "one's own conversation is"


def test_what_was_dropped_is_not_waited_for() -> None:
    simulation = Simulation(num_blocks=40, budget=10)
    for i in range(2):
        simulation.scheduler.add(text(i, [1, 2, 3] * 8, 2))
    simulation.step()
    simulation.cache.drop_namespace("")
    assert not simulation.cache.is_being_computed(next(iter(simulation.scheduler.waiting)))
    simulation.run([])


def test_answers_keep_their_pace_while_a_long_prompt_is_prefilled() -> None:
    """A step with one decode row takes 1.125, a prefill token a quarter: ten fit below three times as long."""
    simulation = Simulation(num_blocks=200, budget=64, slowdown=3.2)
    answering = text(0, [1] * 4, 100)
    simulation.scheduler.add(answering)
    for _ in range(5):
        simulation.step()
    simulation.scheduler.add(text(1, [2] * 200, 1))
    shares = []
    while simulation.scheduler.waiting or any(r.id == 1 for r in simulation.scheduler.running):
        shares.append([w.num_tokens for w in simulation.step()])
    assert shares[0] == [1, 8], "nothing is known of prefill beside decodes yet: the least"
    assert all(share[0] == 1 for share in shares)
    assert {sum(share) for share in shares[1:-1]} <= {9, 10, 11}
    simulation.scheduler.finish(answering)
    simulation.scheduler.add(text(2, [3] * 200, 1))
    assert [w.num_tokens for w in simulation.step()] == [64], "nobody answers: nothing is held back"


def test_right_guesses_save_steps() -> None:
    for seed in range(5):
        request = text(0, [1, 2, 1], 60)
        simulation = Simulation(num_blocks=30, budget=12, drafts=Guesses(seed))
        simulation.scheduler.add(request)
        steps = 0
        while simulation.scheduler.has_work:
            simulation.step()
            steps += 1
        assert request.output_tokens == expected_tokens(request)
        assert 0 < simulation.accepted < simulation.drafted
        assert steps == 60 - simulation.accepted


def test_an_answer_that_repeats_itself_is_drafted_from_its_own_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler_simulation.next_token", lambda tokens: (1, 2, 3, 3, 1)[len(tokens) % 5])
    request = text(0, [1, 2, 1], 60)
    simulation = Simulation(num_blocks=30, budget=20, drafts=Drafts(8))
    simulation.run([request])
    assert request.output_tokens == expected_tokens(request)
    assert simulation.accepted > 35


@pytest.mark.parametrize("spare", [0, 1, 2, 9])
def test_drafts_take_no_block_from_others(spare: int) -> None:
    """With and without drafts nobody yields; without a free block a draft ends with the newest token's block."""
    requests = [text(i, [i + 1] * 4, 12) for i in range(2)]
    simulation = Simulation(num_blocks=8 + spare, budget=64, drafts=Guesses(spare))
    simulation.run(requests)
    assert simulation.scheduler.num_preemptions == 0
    assert simulation.cache.num_evicted_blocks == 0
    assert simulation.drafted > 0
    assert [r.output_tokens for r in requests] == [expected_tokens(r) for r in requests]


def test_the_queue_is_bounded() -> None:
    simulation = Simulation(num_blocks=10, seqs=1, waiting=2)
    requests = [text(i, [1, 2], 2) for i in range(4)]
    simulation.scheduler.add(requests[0])
    simulation.scheduler.add(requests[1])
    with pytest.raises(QueueFullError, match="2 requests"):
        simulation.scheduler.add(requests[2])
    simulation.step()
    simulation.scheduler.add(requests[2])
    with pytest.raises(QueueFullError):
        simulation.scheduler.add(requests[3])
    simulation.run([])
    assert requests[3].output_tokens == []
    assert all(r.state is RequestState.FINISHED for r in requests[:3])


class Case(NamedTuple):
    steps: int
    state: RequestState


@pytest.mark.parametrize(
    "case",
    [
        Case(0, RequestState.WAITING),
        Case(1, RequestState.RUNNING),
        Case(3, RequestState.RUNNING),
        Case(50, RequestState.FINISHED),
    ],
)
def test_finish_frees_everything_in_each_state(case: Case) -> None:
    simulation = Simulation(num_blocks=20, budget=8)
    request = text(0, [1] * 14, 5)
    simulation.scheduler.add(request)
    for _ in range(case.steps):
        simulation.step()
    assert request.state is case.state
    simulation.scheduler.finish(request)
    simulation.scheduler.finish(request)
    assert request.state is RequestState.FINISHED
    assert not simulation.scheduler.has_work
    assert request.admission is None
    simulation.cache.check_invariants()
    simulation.cache.clear()
    assert simulation.cache.pool.num_free == 20


def test_a_preempted_request_can_be_cancelled() -> None:
    requests = [text(i, [i + 1] * 8, 16) for i in range(3)]
    simulation = Simulation(num_blocks=9, budget=64)
    for request in requests:
        simulation.scheduler.add(request)
    while not requests[2].num_preemptions:
        simulation.step()
    assert requests[2].state is RequestState.WAITING
    simulation.scheduler.finish(requests[2])
    simulation.run([])
    assert requests[0].output_tokens == expected_tokens(requests[0])


def test_nothing_to_sample_computes_and_publishes_only() -> None:
    simulation = Simulation(num_blocks=10, budget=3)
    request = text(0, [1] * 8, 0)
    simulation.run([request])
    assert request.output_tokens == []
    assert simulation.cache.num_cached_blocks == 2


def test_chunk_requests_have_several_spans_and_cut_them_anywhere() -> None:
    """Known passages in a new order: repaired heads and tail are computed in one run of small steps."""
    simulation = Simulation(num_blocks=60, block_size=2, budget=3)
    template = Segment(TEMPLATE, SegmentKind.TEMPLATE)
    passages = [Segment((i, *range(4, 11)), SegmentKind.PASSAGE) for i in range(1, 4)]
    simulation.run([Request(i, Prompt([template, p]), 0) for i, p in enumerate(passages)])
    cached = simulation.cache.num_cached_blocks
    prompt = Prompt([template, passages[2], passages[0], passages[1], Segment((1, 2, 3), SegmentKind.TAIL)])
    request = Request(9, prompt, 4, Reuse.CHUNK, repair=2)
    simulation.scheduler.add(request)
    work = simulation.step()
    assert request.held.spans == [(11, 13), (19, 21), (27, 30)]
    assert work[0].positions == (range(11, 13), range(19, 20))
    simulation.run([])
    assert request.output_tokens == expected_tokens(request)
    assert simulation.cache.num_cached_blocks == cached, "a new order writes nothing"
    assert simulation.cache.num_evicted_blocks == 0
