"""The load generator: requests come at their time whatever the engine does, and every window ends."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_contestants import TOKENS, Clock, Scripted, a_course, an_experiment, make_stream

from rag.bench.suite.experiment import ArrivalKind, Arrivals, Drive, WorkloadKind, WorkloadSpec
from rag.bench.suite.load import AtTimes, ByClients, Limits, Schedule, Window, run_load, run_window
from rag.bench.suite.player import Player
from rag.bench.suite.records import AnswerRecord, SkippedRecord, WindowRecord
from rag.bench.suite.results import Results

gaps = st.lists(st.floats(0, 5), min_size=1, max_size=30)
PATIENT = Limits(1e6)
services = st.lists(st.floats(0.001, 8), min_size=30, max_size=30)


def a_window(engine: Scripted, count: int, schedule: Schedule, limits: Limits = PATIENT) -> tuple[Window, float]:
    stream = make_stream(count)
    player = Player.prepare(engine, stream)
    began = engine.clock()
    return run_window(player, stream.requests, schedule, limits, engine.clock), began


def times_of(gaps: list[float]) -> list[float]:
    return [sum(gaps[: place + 1]) for place in range(len(gaps))]


@settings(deadline=None, max_examples=60)
@given(gaps, services)
def test_requests_are_sent_at_their_time_however_slow_the_engine_is(gaps: list[float], services: list[float]) -> None:
    engine, times = Scripted("one", Clock(), lambda request: services[request.number]), times_of(gaps)
    window, began = a_window(engine, len(gaps), AtTimes(times))
    assert [one.arrival for one in window.asked] == [began + time for time in times]
    assert all(one.sent == pytest.approx(one.arrival, abs=1e-6) for one in window.asked)
    assert window.lateness_ms == pytest.approx(0, abs=1e-3)
    assert all(one.ok for one in window.asked)


@settings(deadline=None, max_examples=60)
@given(gaps, services, st.floats(0.01, 2))
def test_a_generator_that_is_late_shows_and_the_arrival_stays(
    gaps: list[float], services: list[float], submitting: float
) -> None:
    clock, times = Clock(), times_of(gaps)
    engine = Scripted("one", clock, lambda request: services[request.number], submitting=submitting)
    window, began = a_window(engine, len(gaps), AtTimes(times))
    free = 0.0
    for one, time in zip(window.asked, times, strict=True):
        free = max(free, time) + submitting  # handing over takes so long, one after the other
        assert one.arrival == pytest.approx(began + time)
        assert one.sent == pytest.approx(began + free)
    assert window.lateness_ms >= 1e3 * submitting * 0.999
    assert all(one.ttft >= one.sent - one.arrival for one in window.asked if one.sent is not None)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 20), services)
def test_clients_that_wait_for_answers_are_never_more_than_they_are(
    clients: int, count: int, services: list[float]
) -> None:
    engine = Scripted("one", Clock(), lambda request: services[request.number])
    window, _ = a_window(engine, count, ByClients(clients))
    assert len(window.asked) == count
    for one in window.asked:
        assert one.sent is not None
        outstanding = [o for o in window.asked if o.sent <= one.sent < o.finished]
        assert len(outstanding) <= clients


def test_a_window_that_cannot_keep_up_is_cut() -> None:
    engine = Scripted("one", Clock(), lambda _request: 50.0)
    window, began = a_window(engine, 10, AtTimes([float(n) for n in range(10)]), Limits(1e6, seconds=60.0))
    assert window.cut
    assert engine.clock() - began < 62
    assert engine.calls[-1] == "cancel"
    assert [one.ok for one in window.asked] == [True] + [False] * 9
    assert {one.error for one in window.asked[1:]} == {"not answered when the window was cut"}


@pytest.mark.parametrize(("fault", "error"), [({"dies_at": 3}, "one is gone"), ({"hangs_at": 3}, "was silent for")])
def test_an_engine_that_dies_or_hangs_ends_its_window(fault: dict[str, int], error: str) -> None:
    engine = Scripted("one", Clock(), **fault)
    window, _ = a_window(engine, 6, AtTimes([2.0 * n for n in range(6)]), Limits(silence=30.0))
    assert window.error is not None
    assert error in str(window.error)
    assert [one.ok for one in window.asked[:3]] == [True, True, True]
    assert error in window.asked[3].error


def test_a_long_pause_between_arrivals_is_no_silence() -> None:
    window, _ = a_window(Scripted("one", Clock()), 2, AtTimes([0.0, 500.0]), Limits(silence=5.0))
    assert window.error is None
    assert all(one.ok for one in window.asked)


def test_too_many_tokens_end_a_request() -> None:
    engine = Scripted("one", Clock(), tokens=10 * TOKENS)
    window, _ = a_window(engine, 3, ByClients(1))
    assert [one.error for one in window.asked] == ["more tokens came than were asked for"] * 3
    assert "cancel" in engine.calls


def bursty(count: int) -> WorkloadSpec:
    arrivals = Arrivals(kind=ArrivalKind.BURSTY, rate=2.0)
    return WorkloadSpec(kind=WorkloadKind.ORDERS, count=count, arrivals=arrivals)


def test_each_engine_has_a_unit_and_answers_of_its_own(tmp_path: Path) -> None:
    clock = Clock()
    engines = [Scripted("fast", clock, lambda _request: 0.2), Scripted("slow", clock, tokens=TOKENS - 1)]
    experiment = an_experiment(Drive.LOAD, workload=bursty(5), warmup=2)
    with a_course(tmp_path / "r.jsonl", experiment, make_stream(5, [0.5 * n for n in range(5)]), engines, clock) as run:
        run_load(run)
    results = Results.load(tmp_path / "r.jsonl")
    assert set(results.units) == {"load/0/fast", "load/0/slow", "load/0"}
    answers = results.answers("load")
    assert {(one.contestant, one.status) for one in answers} == {("fast", "ok"), ("slow", "short")}
    assert [one.warmup for one in answers if one.contestant == "fast"] == [True, True, False, False, False]
    assert [one.arrival for one in answers if one.contestant == "slow"] == pytest.approx([0, 0.5, 1, 1.5, 2])
    windows = {one.contestant: one for one in results.windows("load")}
    assert windows["fast"].rate == 2.0
    assert windows["fast"].prepared_seconds == 0.5
    assert windows["slow"].engine_cpu == pytest.approx(windows["slow"].seconds)


def test_an_engine_that_died_is_told_and_the_next_one_is_measured(tmp_path: Path) -> None:
    clock = Clock()
    engines = [Scripted("fast", clock, dies_at=1), Scripted("slow", clock)]
    experiment = an_experiment(Drive.LOAD, workload=bursty(3))
    with a_course(tmp_path / "r.jsonl", experiment, make_stream(3, [0, 1, 2]), engines, clock) as course:
        run_load(course)
        assert "fast" not in course.lineup
    records = Results.load(tmp_path / "r.jsonl").records
    assert [one.status for one in records if isinstance(one, AnswerRecord) and one.contestant == "slow"] == ["ok"] * 3
    assert [one.name for one in records if isinstance(one, SkippedRecord)] == ["fast"]
    assert {one.contestant for one in records if isinstance(one, WindowRecord)} == {"slow"}
    assert engines[0].is_closed


def test_places_change_from_pass_to_pass(tmp_path: Path) -> None:
    clock = Clock()
    begun: list[str] = []
    engines = [
        Scripted(name, clock, lambda _request, name=name: begun.append(name) or 0.1) for name in ("fast", "slow")
    ]
    experiment = an_experiment(Drive.LOAD, workload=bursty(1), repeats=2)
    with a_course(tmp_path / "r.jsonl", experiment, make_stream(1, [0.0]), engines, clock) as course:
        for repeat in range(2):
            run_load(type(course)(experiment, repeat, course.stream, course.lineup, course.file, course.tell, 9, clock))
    assert begun == ["fast", "slow", "slow", "fast"]
