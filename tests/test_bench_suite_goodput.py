"""The search for the highest rate: it finds what a simulated server can do, and is measured whole."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_contestants import Clock, Scripted, a_course, an_experiment, make_stream

from rag.bench.suite.experiment import ArrivalKind, Arrivals, Drive, Experiment, WorkloadKind, WorkloadSpec
from rag.bench.suite.goodput import CLOSE, FIRST, WINDOWS, Trial, next_rate, run_goodput, window_times
from rag.bench.suite.records import WindowRecord
from rag.bench.suite.requests import BenchRequest
from rag.bench.suite.results import Results
from rag.errors import InvalidRequestError

SIZE = 40


def searched(capacity: float, first: float) -> list[Trial]:
    trials: list[Trial] = []
    while (rate := next_rate(first, trials)) is not None:
        trials.append(Trial(rate, rate <= capacity))
    return trials


@given(st.floats(0.05, 50), st.floats(0.3, 3))
def test_the_search_ends_close_to_the_limit(capacity: float, guess: float) -> None:
    trials = searched(capacity, guess * capacity)
    assert len(trials) < WINDOWS
    good = max(one.rate for one in trials if one.passed)
    bad = min(one.rate for one in trials if not one.passed)
    assert good <= capacity < bad
    assert bad <= CLOSE * good


def test_a_first_rate_that_is_far_off_is_left_by_doubling() -> None:
    assert [one.rate for one in searched(10.0, 1.0)][:5] == [1, 2, 4, 8, 16]
    assert [one.rate for one in searched(1.0, 8.0)][:4] == [8, 4, 2, 1]


@settings(max_examples=40)
@given(st.lists(st.floats(0.01, 3), min_size=12, max_size=12), st.floats(0.1, 20))
def test_every_window_has_the_same_gaps_at_exactly_its_rate(gaps: list[float], rate: float) -> None:
    requests = make_stream(12, [sum(gaps[: place + 1]) for place in range(12)]).requests
    found = window_times(requests, 4, rate)
    assert found[-1] == pytest.approx(4 / rate)
    assert found == pytest.approx([4 / rate * sum(gaps[: n + 1]) / sum(gaps[:4]) for n in range(4)])
    assert window_times(requests, 4, 2 * rate) == pytest.approx([time / 2 for time in found])


def an_even_experiment(count: int = SIZE * WINDOWS, kind: ArrivalKind = ArrivalKind.POISSON) -> Experiment:
    spec = WorkloadSpec(kind=WorkloadKind.ORDERS, count=count, arrivals=Arrivals(kind=kind, rate=1.0))
    return an_experiment(Drive.GOODPUT, workload=spec, contestants=("fast",))


def measured(path: Path, engine: Scripted) -> list[WindowRecord]:
    stream = make_stream(SIZE * WINDOWS, [float(n) for n in range(SIZE * WINDOWS)])
    with a_course(path, an_even_experiment(), stream, [engine], engine.clock) as course:
        run_goodput(course)
    return Results.load(path).windows("goodput")


@pytest.mark.parametrize("service", [0.05, 0.4, 3.0])
def test_the_capacity_of_a_server_is_found(tmp_path: Path, service: float) -> None:
    clock = Clock()
    windows = measured(tmp_path / "r.jsonl", Scripted("fast", clock, lambda _request: service, decode=0.0))
    filling, alone, *tried = windows
    assert (filling.rate, filling.unit) == (None, "goodput/0/fast")
    assert (alone.rate, alone.unit) == (None, "goodput/0/fast/0")
    assert [one.unit for one in tried] == [f"goodput/0/fast/{step}" for step in range(1, len(tried) + 1)]
    rates = {one.rate: not one.cut for one in tried}
    good = max(rate for rate, kept_up in rates.items() if kept_up)
    bad = min(rate for rate, kept_up in rates.items() if not kept_up)
    # evenly spaced requests are kept up with up to 1 / service; beyond, 40 of them queue no more than 5 x service
    # as long as they come at most 40 / 36 times too fast
    assert 1 / service / CLOSE <= good <= 40 / 36 / service < bad * 1.01
    assert bad <= CLOSE * good * 1.01


def test_no_prompt_comes_twice(tmp_path: Path) -> None:
    engine = Scripted("fast", Clock())
    measured(tmp_path / "r.jsonl", engine)
    assert len(set(engine.seen)) == len(engine.seen)
    assert engine.calls.count("prepare") == 1


def test_a_window_that_cannot_pass_any_more_is_cut(tmp_path: Path) -> None:
    windows = measured(
        tmp_path / "r.jsonl", Scripted("fast", Clock(), lambda request: 10.0 if request.number >= 2 * SIZE else 0.1)
    )
    cut = windows[2]
    assert cut.cut
    assert cut.seconds < 10.0  # of the 400 that all answers would have taken


def test_what_fills_the_cache_sets_no_limit(tmp_path: Path) -> None:
    def served(request: BenchRequest) -> float:
        return 5.0 if request.number < SIZE else 0.1  # found in the cache afterwards

    path = tmp_path / "r.jsonl"
    filling, alone, first, *_ = measured(path, Scripted("fast", Clock(), served, decode=0.0))
    assert first.rate == pytest.approx(FIRST / 0.1)
    answers = Results.load(path).answers("goodput")
    assert {one.unit for one in answers if one.warmup} == {filling.unit}
    assert {one.request for one in answers if one.warmup} == set(range(SIZE))
    assert {one.request for one in answers if one.unit == alone.unit} == set(range(SIZE, 2 * SIZE))


def test_an_interrupted_search_is_measured_anew(tmp_path: Path) -> None:
    whole = Scripted("fast", Clock(), decode=0.0)
    rates = [one.rate for one in measured(tmp_path / "whole.jsonl", whole)]

    class Interrupted(Scripted):
        def submit(self, request: BenchRequest) -> None:
            if len(self.seen) == 3 * SIZE + 3:
                raise KeyboardInterrupt
            super().submit(request)

    path = tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measured(path, Interrupted("fast", Clock(), decode=0.0))
    assert Results.load(path).units == {}
    again = Scripted("fast", Clock(), decode=0.0)
    assert [one.rate for one in measured(path, again)] == rates
    assert again.seen == whole.seen, "all of it, from an empty cache"


def test_a_search_that_was_cut_short_on_its_way_into_the_file_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    whole = measured(path, Scripted("fast", Clock(), decode=0.0))
    lines = path.read_bytes().splitlines(keepends=True)
    closed = next(place for place, line in enumerate(lines) if b'"unit","unit":"goodput/0/fast/2"' in line)
    path.write_bytes(b"".join(lines[: closed + 3]))
    assert Results.load(path).units == {}
    assert [one.rate for one in measured(path, Scripted("fast", Clock(), decode=0.0))] == [one.rate for one in whole]
    answers = [(one.unit, one.request) for one in Results.load(path).answers("goodput")]
    assert len(set(answers)) == len(answers)


def test_an_engine_that_never_answers_is_left_out(tmp_path: Path) -> None:
    engine = Scripted("fast", Clock(), hangs_at=0)
    assert measured(tmp_path / "r.jsonl", engine) == []
    assert engine.is_closed


@pytest.mark.parametrize(("count", "kind"), [(SIZE * WINDOWS, ArrivalKind.CLOSED), (WINDOWS, ArrivalKind.POISSON)])
def test_arrivals_that_depend_on_answers_are_refused(tmp_path: Path, count: int, kind: ArrivalKind) -> None:
    experiment, clock = an_even_experiment(count, kind), Clock()
    with (
        a_course(tmp_path / "r.jsonl", experiment, make_stream(count), [], clock) as course,
        pytest.raises(InvalidRequestError, match="goodput needs arrivals"),
    ):
        run_goodput(course)
