"""Shares of the engine between principals: nobody starves, nobody pays for the flood of another."""

from collections import Counter, deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_simulation import Simulation, expected_tokens, text

from engine.admission_pace import AdmissionPace
from engine.errors import QueueFullError, ShareFullError
from engine.fair_queue import CACHED_COST, COMPUTED_COST, OUTPUT_COST, FairQueue
from engine.prompt import Prompt, Reuse, Segment, SegmentKind
from engine.request import Request, RequestState

SEQS = 4


def question(number: int, principal: str, *, length: int = 12, answer: int = 4) -> Request:
    """A prompt that shares nothing with any other."""
    return text(number, [*digits(number), *[4] * (length - 8)], answer, principal=principal)


def digits(number: int) -> list[int]:
    return [5 + (number >> bit & 1) for bit in range(8)]


class Meter:
    """What each principal was really given, counted from the steps alone: the naive model."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.served: Counter[str] = Counter()
        self.seen: set[Request] = set()
        self.sampled: Counter[Request] = Counter()

    def step(self) -> None:
        for item in self.simulation.step():
            request = item.request
            if request not in self.seen:
                self.seen.add(request)
                cached = sum(placement.hit_tokens for placement in request.first_admission)
                self.served[request.principal] += COMPUTED_COST * (request.prompt.num_tokens - cached)
                self.served[request.principal] += CACHED_COST * cached
            self.served[request.principal] += OUTPUT_COST * (len(request.output_tokens) - self.sampled[request])
            self.sampled[request] = len(request.output_tokens)


def test_a_principal_alone_is_served_in_order_whatever_it_has_had() -> None:
    queue, arrived = FairQueue(), [text(i, [1], 1) for i in range(5)]
    for request in arrived:
        queue.add(request)
    assert list(queue) == arrived
    assert queue.next_of("") is arrived[0]
    queue.remove(arrived[2])
    queue.remove(arrived[0])
    queue.put_back(arrived[0])
    assert list(queue) == [arrived[0], arrived[1], arrived[3], arrived[4]]
    assert (len(queue), queue.num_waiting(""), queue.num_waiting("other")) == (4, 4, 0)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(8, 30), st.integers(0, 6)), min_size=7, max_size=7),
    seqs=st.integers(1, 6),
    budget=st.sampled_from([6, 16, 64]),
)
def test_two_that_always_wait_get_the_same_within_the_papers_bound(
    lengths: list[tuple[int, int]], seqs: int, budget: int
) -> None:
    """Over any time in which both wait: twice the largest prompt and all answers that run at once (theorem 4.4)."""
    simulation = Simulation(num_blocks=4000, seqs=seqs, budget=budget)
    meter = Meter(simulation)
    number = 0
    for principal, count in (("first", 12), ("second", 12)):
        for i in range(count):
            length, answer = lengths[(5 * i + len(principal)) % len(lengths)]
            simulation.scheduler.add(question(number, principal, length=length, answer=answer))
            number += 1
    lead = [0.0]
    while set(simulation.scheduler.waiting.principals) == {"first", "second"}:
        meter.step()
        lead.append(meter.served["first"] - meter.served["second"])
    prompt, answer = max(length for length, _ in lengths), max(answer for _, answer in lengths)
    assert max(lead) - min(lead) <= 2 * (COMPUTED_COST * prompt + OUTPUT_COST * answer * seqs)
    simulation.run([])
    assert simulation.scheduler.num_preemptions <= number


def test_what_is_counted_is_what_was_given() -> None:
    simulation = Simulation(num_blocks=400, seqs=SEQS)
    meter = Meter(simulation)
    shared = [1, 2, 3, 1] * 5
    requests = [text(i, [*shared, i], 5, principal="ab"[i % 2]) for i in range(8)]
    for request in requests:
        simulation.scheduler.add(request)
    while simulation.scheduler.has_work:
        meter.step()
    assert any(placement.hit_tokens for request in requests for placement in request.first_admission)
    for principal in "ab":
        assert simulation.scheduler.waiting.served(principal) == pytest.approx(meter.served[principal])


def test_cached_tokens_cost_less() -> None:
    """One asks over a prefix that is known, the other over prompts that nobody has read: the first gets on faster."""
    simulation = Simulation(num_blocks=4000, seqs=2, budget=64)
    known = [1, 2, 3, 1] * 10
    simulation.run([text(0, known, 1)])
    for i in range(1, 41):
        simulation.scheduler.add(text(2 * i, [*known, 4, *digits(i)], 1, principal="known"))
        simulation.scheduler.add(question(2 * i + 1, "new", length=49, answer=1))
    finished: Counter[str] = Counter()
    while finished["known"] < 40:
        running = [(request, request.principal) for request in simulation.scheduler.waiting]
        simulation.step()
        finished.update(p for request, p in running if request.state is RequestState.FINISHED)
    assert finished["new"] < 20


def test_nobody_is_owed_for_the_time_in_which_he_asked_for_nothing() -> None:
    simulation = Simulation(num_blocks=4000, seqs=SEQS)
    meter = Meter(simulation)
    for i in range(40):
        simulation.scheduler.add(question(i, "early"))
    while meter.served["early"] < 300:
        meter.step()
    for i in range(40, 70):
        simulation.scheduler.add(question(i, "late"))
    before = Counter(meter.served)
    while simulation.scheduler.waiting.num_waiting("early") > 5:
        meter.step()
    gained = {name: meter.served[name] - before[name] for name in ("early", "late")}
    assert abs(gained["early"] - gained["late"]) <= 2 * (12 + OUTPUT_COST * 4 * SEQS)


def test_service_is_forgotten_when_nobody_waits_or_runs() -> None:
    simulation = Simulation(num_blocks=100, seqs=1)
    simulation.run([question(i, "greedy") for i in range(20)])
    for i in range(20, 24):
        simulation.scheduler.add(question(i, "greedy"))
        simulation.scheduler.add(question(i + 10, "other"))
    first = []
    while simulation.scheduler.has_work:
        first += [item.request.principal for item in simulation.step() if len(item.request.output_tokens) == 1]
    assert first[:4].count("greedy") == 2


def flooded(*, num_blocks: int = 4000, answer: int = 30, **settings: int) -> Simulation:
    """One principal has every place, and more requests wait."""
    simulation = Simulation(num_blocks=num_blocks, seqs=SEQS, budget=64, **settings)
    for i in range(12):
        simulation.scheduler.add(question(i, "flood", answer=answer))
    for _ in range(5):
        simulation.step()
    assert [request.principal for request in simulation.scheduler.running] == ["flood"] * SEQS
    return simulation


def steps_to_first_token(simulation: Simulation, request: Request) -> int:
    simulation.scheduler.add(request)
    steps = 0
    while not request.output_tokens:
        simulation.step()
        steps += 1
        assert steps < 1000
    return steps


def test_another_gets_a_place_in_a_flood_at_once() -> None:
    """The newest of the flood gives way, and has the same answer in the end."""
    simulation = flooded()
    newest = simulation.scheduler.running[-1]
    asked = question(100, "other")
    assert steps_to_first_token(simulation, asked) == 1
    assert simulation.scheduler.num_preemptions == newest.num_preemptions == 1
    flood = [*simulation.scheduler.running, *simulation.scheduler.waiting]
    simulation.run([], limit=10_000)
    assert asked.output_tokens == expected_tokens(asked)
    assert all(request.output_tokens == expected_tokens(request) for request in flood)


def test_another_gets_blocks_in_a_flood() -> None:
    """There is a place, but no block; the flood gives way one by one until there are enough."""
    simulation = Simulation(num_blocks=60, seqs=16, budget=64)
    for i in range(8):
        simulation.scheduler.add(question(i, "flood", answer=100))
    while simulation.cache.pool.num_free > 2:
        simulation.step()
    assert len(simulation.scheduler.running) > 3
    asked = question(100, "other", length=40)
    assert steps_to_first_token(simulation, asked) <= 6
    simulation.run([])


def test_the_flood_gives_way_once_and_the_rest_comes_with_time() -> None:
    """Whoever has a place already waits for the next one, which is his: he has been served least."""
    simulation = flooded(answer=20)
    for i in range(100, 110):
        simulation.scheduler.add(question(i, "second", answer=20))
    shares = list[int]()
    while simulation.scheduler.waiting.num_waiting("second"):
        simulation.step()
        shares.append(Counter(request.principal for request in simulation.scheduler.running)["second"])
    assert shares[0] == 1
    assert max(shares) > SEQS // 2
    assert simulation.scheduler.num_preemptions <= 3, "one of either where it has none left, not one for each share"


def indebted(*, num_blocks: int, seqs: int) -> tuple[Simulation, Request]:
    """One principal has been served a long prompt and asks again; the other's answers, cheap so far, leave no room."""
    simulation = Simulation(num_blocks=num_blocks, seqs=seqs, budget=64)
    known = [1, 2, 3, 1] * 8
    simulation.run([text(0, known, 1)])
    for i in range(3):
        simulation.scheduler.add(text(1 + i, [*known, 4, *digits(i)], 60, principal="cheap"))
    simulation.scheduler.add(question(10, "dear", length=120, answer=1))
    for _ in range(6):
        simulation.step()
    assert [request.principal for request in simulation.scheduler.running] == ["cheap"] * 3
    again = question(11, "dear", length=140)
    simulation.scheduler.add(again)
    assert simulation.scheduler.waiting.served("cheap") < simulation.scheduler.waiting.served("dear")
    return simulation, again


@pytest.mark.parametrize("want", ["a place", "blocks"])
def test_nobody_gives_way_to_one_who_has_been_served_more(want: str) -> None:
    """He would be admitted again at once, in the place that he made. When he has caught up, he gives way."""
    simulation, again = indebted(num_blocks=4000, seqs=3) if want == "a place" else indebted(num_blocks=52, seqs=16)
    served = simulation.scheduler.waiting.served
    while served("cheap") + 3 * OUTPUT_COST < served("dear"):
        simulation.step()
        assert simulation.scheduler.num_preemptions == 0
        assert again.state is RequestState.WAITING
    for _ in range(4):
        simulation.step()
    assert again.output_tokens
    assert 1 <= simulation.scheduler.num_preemptions <= 2
    assert "cheap" in [request.principal for request in simulation.scheduler.running]
    simulation.run([])


def test_who_has_been_served_most_gives_way_even_if_another_has_more_that_run() -> None:
    simulation = Simulation(num_blocks=4000, seqs=5, budget=64)
    known = [1, 2, 3, 1] * 8
    simulation.run([text(0, known, 1)])
    for i in range(3):
        simulation.scheduler.add(text(1 + i, [*known, 4, *digits(i)], 60, principal="cheap"))
    simulation.scheduler.add(question(9, "dear", length=60, answer=1))
    simulation.step()
    simulation.step()
    dearest = [question(10 + i, "dearest", length=120, answer=40) for i in range(2)]
    for request in dearest:
        simulation.scheduler.add(request)
    for _ in range(6):
        simulation.step()
    assert len(simulation.scheduler.running) == 5
    assert steps_to_first_token(simulation, question(12, "dear", length=60)) == 1
    assert [request.num_preemptions for request in dearest] == [0, 1]
    simulation.run([])


def test_what_is_read_for_one_who_waits_does_not_give_way_to_him() -> None:
    """Two passages longer than a step are to be read before his question, both by requests of the flood."""
    simulation = Simulation(num_blocks=4000, seqs=3, budget=16)
    for i in range(3):
        simulation.scheduler.add(question(i, "flood", answer=200))
    for _ in range(10):
        simulation.step()
    template = Segment((9, 9), SegmentKind.TEMPLATE)
    passages = [Segment((*digits(i), *[1, 2] * 20), SegmentKind.PASSAGE) for i in range(2)]
    reading = [Request(50 + i, Prompt([template, p]), 0, principal="flood") for i, p in enumerate(passages)]
    prompt = Prompt([template, *passages, Segment((3,), SegmentKind.TAIL)])
    asked = [Request(60, prompt, 2, prerequisites=tuple(reading), principal=name) for name in ("flood", "other")]
    simulation.scheduler.add(asked[0], reading)
    assert steps_to_first_token(simulation, asked[1]) <= 30
    assert [request.num_preemptions for request in reading] == [0, 0]
    simulation.run([])


@settings(max_examples=60, deadline=None)
@given(
    specs=st.lists(
        st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(9, 40), st.integers(0, 20), st.integers(0, 60)),
        min_size=2,
        max_size=14,
    ),
    seqs=st.integers(2, 5),
    budget=st.sampled_from([6, 16, 64]),
)
def test_giving_way_is_bounded(specs: list[tuple[str, bool, int, int, int]], seqs: int, budget: int) -> None:
    """However unequally they have been served: once for every request that finds its principal without another."""
    simulation = Simulation(num_blocks=4000, seqs=seqs, budget=budget)
    known = [1, 2, 3, 1] * 10
    simulation.run([text(0, known, 1)])
    arrivals: dict[int, list[Request]] = {}
    for i, (principal, cached, length, answer, step) in enumerate(sorted(specs, key=lambda spec: spec[-1]), 1):
        prompt = [*known, 4, *digits(i)] if cached else [*digits(i), *[4] * (length - 8)]
        arrivals.setdefault(step, []).append(text(i, prompt, answer, principal=principal))
    for step in range(max(arrivals) + 1):
        for request in arrivals.get(step, []):
            simulation.scheduler.add(request)
        simulation.step()
    simulation.run([])
    assert simulation.scheduler.num_preemptions <= len(specs)


def test_a_prompt_of_the_flood_that_is_being_read_does_not_hold_up_another_question() -> None:
    simulation = Simulation(num_blocks=4000, seqs=SEQS, budget=16)
    for i in range(4):
        simulation.scheduler.add(question(i, "flood", length=120))
    simulation.step()
    assert steps_to_first_token(simulation, question(100, "other")) == 1
    simulation.run([])


def test_the_pace_of_a_flood_does_not_hold_up_a_question() -> None:
    """Its whole prompt is read in one step; one of the flood's own gets no more than leaves its answers their pace."""
    simulation = Simulation(num_blocks=4000, seqs=SEQS, budget=64, slowdown=3.2)
    for i in range(3):
        simulation.scheduler.add(question(i, "flood", answer=100))
    for _ in range(8):
        simulation.step()
    own = question(10, "flood", length=50)
    assert steps_to_first_token(simulation, own) > 2
    asked = question(11, "other", length=50)
    assert steps_to_first_token(simulation, asked) == 1
    again = question(12, "other", length=50)
    simulation.scheduler.add(again)
    work = simulation.step()
    assert sum(item.num_tokens for item in work) < 50, "it has been served more than the flood meanwhile"
    simulation.run([])


def test_what_another_question_waits_for_goes_first() -> None:
    """A passage that both need is read for the flood's last question; the other one does not wait for all before it."""
    simulation = Simulation(num_blocks=4000, seqs=1, budget=64)
    for i in range(10):
        simulation.scheduler.add(question(i, "flood"))
    passage = Segment((1, 2, 3, 1, 2), SegmentKind.PASSAGE)
    template = Segment((9, 9), SegmentKind.TEMPLATE)
    reading = Request(50, Prompt([template, passage]), 0, principal="flood")
    prompt = Prompt([template, passage, Segment((3,), SegmentKind.TAIL)])
    asked = [Request(51, prompt, 2, prerequisites=(reading,), principal=name) for name in ("flood", "other")]
    simulation.scheduler.add(asked[0], [reading])
    simulation.step()
    assert steps_to_first_token(simulation, asked[1]) <= 10
    assert reading.state is RequestState.FINISHED
    assert simulation.scheduler.waiting.num_waiting("flood") >= 9
    simulation.run([])


def calls(monkeypatch: pytest.MonkeyPatch, simulation: Simulation, name: str) -> list[Request]:
    """Watch whom the cache is asked for."""
    seen: list[Request] = []
    original: Callable[..., object] = getattr(simulation.cache, name)

    def watched(request: Request, *more: object) -> object:
        seen.append(request)
        return original(request, *more)

    monkeypatch.setattr(simulation.cache, name, watched)
    return seen


@pytest.mark.parametrize("want", ["blocks", "a place"])
def test_whoever_finds_no_place_is_looked_at_again_only_when_something_changed(
    want: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decode steps change nothing for it: a tail is never published, and nobody gives a block back."""
    template = Segment((1, 2), SegmentKind.TEMPLATE)
    simulation = Simulation(num_blocks=20, seqs=1 if want == "a place" else 8, budget=64)
    running = Request(0, Prompt([template, Segment((3,) * 30, SegmentKind.TAIL)]), 40)
    blocked = Request(1, Prompt([template, Segment((4,) * 50, SegmentKind.TAIL)]), 2)
    simulation.scheduler.add(running)
    simulation.step()
    simulation.scheduler.add(blocked)
    simulation.step()
    seen = [calls(monkeypatch, simulation, name) for name in ("arrange", "is_being_computed", "admit")]
    monkeypatch.setattr(simulation, "check_refusal", lambda: None)
    for _ in range(30):
        Simulation.step(simulation)
    assert blocked.state is RequestState.WAITING
    assert blocked not in seen[0] + seen[2]
    simulation.run([])
    assert blocked.output_tokens == expected_tokens(blocked)


def test_the_queue_has_room_for_others_when_one_has_filled_its_share() -> None:
    simulation = Simulation(num_blocks=100, seqs=1, waiting=5, share=3)
    scheduler = simulation.scheduler
    for i in range(3):
        scheduler.add(question(i, "flood"))
    assert not scheduler.has_room("flood")
    with pytest.raises(ShareFullError, match="3 requests of yours"):
        scheduler.add(question(3, "flood"))
    scheduler.add(question(4, "other"))
    scheduler.add(question(5, "other"))
    assert not scheduler.has_room("third")
    with pytest.raises(QueueFullError, match="5 requests") as refused:
        scheduler.add(question(6, "third"))
    assert not isinstance(refused.value, ShareFullError)
    scheduler.add(Request(7, Prompt.from_tokens([1]), 1, background=True, principal="flood"))
    simulation.run([])


def test_reading_ahead_is_shared_too() -> None:
    simulation = Simulation(num_blocks=4000, seqs=1, budget=64)
    order: deque[str] = deque()
    for i in range(20):
        request = question(i, "ab"[i >= 10], answer=0)
        request.background = True
        simulation.scheduler.add(request)
    while simulation.scheduler.has_work:
        order += [item.request.principal for item in simulation.step()]
    assert abs(list(order)[:10].count("a") - 5) <= 1


def test_how_long_to_stay_away() -> None:
    pace = AdmissionPace()
    assert pace.seconds_until_place(100, 0.0) is None
    for moment in range(10):
        pace.note(2.0 * moment)
    assert pace.seconds_until_place(40, 20.0) == pytest.approx(20.0), "a quarter of them, at two seconds each"
    assert pace.seconds_until_place(1, 20.0) == 1.0
    assert pace.seconds_until_place(10_000, 20.0) == 60.0


def test_an_idle_hour_is_no_time_to_wait() -> None:
    pace = AdmissionPace()
    for moment in range(10):
        pace.note(2.0 * moment)
    pace.rest(20.0)
    pace.rest(100.0)
    assert pace.seconds_until_place(40, 3600.0) == pytest.approx(20.0), "nothing runs yet"
    pace.note(3600.0)
    assert pace.seconds_until_place(44, 3602.0) == pytest.approx(22.0)


def test_chunk_requests_of_two_take_their_turns() -> None:
    template = Segment((1, 2, 1), SegmentKind.TEMPLATE)
    passages = [Segment((i, *range(4, 11)), SegmentKind.PASSAGE) for i in range(1, 4)]
    simulation = Simulation(num_blocks=200, block_size=2, seqs=2)
    simulation.run([Request(i, Prompt([template, p]), 0) for i, p in enumerate(passages)])
    requests = [
        Request(
            10 + i,
            Prompt([template, passages[i % 3], passages[(i + 1) % 3], Segment((i,), SegmentKind.TAIL)]),
            3,
            Reuse.CHUNK,
            repair=2,
            principal="ab"[i >= 6],
        )
        for i in range(12)
    ]
    simulation.run(requests)
    assert all(request.output_tokens == expected_tokens(request) for request in requests)
