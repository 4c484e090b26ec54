"""Engines take turns: one runs at a time, all get the same requests, and one that fails does not stop the others."""

from pathlib import Path
from typing import ClassVar

import pytest
from scripted_contestants import NAMES, TOKENS, Clock, Scripted, a_course, an_experiment, make_stream

from rag.bench.suite.asked import Asked
from rag.bench.suite.contestant import Event
from rag.bench.suite.experiment import Experiment
from rag.bench.suite.records import AnswerRecord, SkippedRecord
from rag.bench.suite.requests import prompt_digest
from rag.bench.suite.results import Results
from rag.bench.suite.turns import run_turns


class OneAtATime(Scripted):
    """Fails where another one is awake too."""

    awake: ClassVar[set[str]] = set()
    order: ClassVar[list[tuple[int, str]]] = []

    def resume(self) -> None:
        assert not self.awake, f"{self.name} wakes beside {self.awake}"
        self.awake.add(self.name)
        super().resume()

    def pause(self) -> None:
        self.awake.discard(self.name)
        super().pause()

    def submit(self, request: object) -> None:
        self.order.append((request.number, self.name))
        super().submit(request)


def measured(path: Path, *engines: Scripted, experiment: Experiment | None = None) -> Results:
    experiment = experiment or an_experiment(count=6, warmup=2)
    stream = make_stream(experiment.workload.count)
    with a_course(path, experiment, stream, engines, engines[0].clock) as course:
        run_turns(course)
    return Results.load(path)


def test_one_engine_runs_at_a_time_in_an_order_of_its_own_at_every_request(tmp_path: Path) -> None:
    OneAtATime.awake, OneAtATime.order = set(), []
    clock = Clock()
    names = ("a", "b", "c")
    experiment = an_experiment(count=20, contestants=names)
    measured(tmp_path / "r.jsonl", *(OneAtATime(name, clock) for name in names), experiment=experiment)
    assert OneAtATime.awake == set()
    assert [number for number, _ in OneAtATime.order] == [number for number in range(20) for _ in names]
    orders = {tuple(name for n, name in OneAtATime.order if n == number) for number in range(20)}
    assert len(orders) > 3
    assert all(sorted(order) == list(names) for order in orders)


def test_all_that_is_told_is_recorded(tmp_path: Path) -> None:
    clock = Clock()
    engines = [Scripted("fast", clock, lambda _r: 0.2), Scripted("slow", clock, lambda _r: 2.0)]
    results = measured(tmp_path / "r.jsonl", *engines)
    answers = results.answers("turns")
    assert len(answers) == 12
    stream = make_stream(6)
    for one in answers:
        request = stream.requests[one.request]
        assert (one.status, one.count, one.tokens) == ("ok", TOKENS, (0, 1, 2))
        assert one.first - one.arrival == pytest.approx(0.2 if one.contestant == "fast" else 2.0)
        assert one.finished - one.first == pytest.approx(0.2)
        assert one.started == pytest.approx(one.sent)
        assert one.prompt == prompt_digest(request.prompt.tokens)
        assert one.prompt_tokens == request.prompt.num_tokens
        assert one.warmup == (one.request < 2)
        assert one.cached == {"device": 2}
    windows = {one.contestant: one for one in results.windows("turns")}
    assert windows["fast"].seconds == pytest.approx(6 * 0.4)
    assert (windows["slow"].memory, windows["slow"].disk) == (1000, 3)
    assert windows["slow"].rate is None


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ({"tokens": TOKENS - 1}, "short", f"{TOKENS - 1} tokens came, {TOKENS} were asked for"),
        ({"tokens": TOKENS + 1}, "failed", f"{TOKENS + 1} tokens came, {TOKENS} were asked for"),
        ({"tokens": TOKENS + 2}, "failed", "more tokens came than were asked for"),
        ({"fails_at": 3}, "failed", "out of memory"),
    ],
)
def test_an_answer_that_is_none_is_told_and_the_engine_goes_on(
    tmp_path: Path, fault: dict[str, int], status: str, error: str
) -> None:
    clock = Clock()
    results = measured(tmp_path / "r.jsonl", Scripted("fast", clock, **fault), Scripted("slow", clock))
    by_name = {name: [one for one in results.answers("turns") if one.contestant == name] for name in NAMES}
    assert [one.status for one in by_name["slow"]] == ["ok"] * 6
    wrong = [one for one in by_name["fast"] if one.status != "ok"]
    assert {(one.status, one.error) for one in wrong} == {(status, error)}
    assert len(wrong) == (1 if "fails_at" in fault else 6)
    assert len(by_name["fast"]) == 6


@pytest.mark.parametrize(("fault", "error"), [({"dies_at": 2}, "fast is gone"), ({"hangs_at": 2}, "was silent for 20")])
def test_an_engine_that_is_gone_is_left_out_from_then_on(tmp_path: Path, fault: dict[str, int], error: str) -> None:
    clock = Clock()
    engines = [Scripted("fast", clock, **fault), Scripted("slow", clock)]
    results = measured(tmp_path / "r.jsonl", *engines)
    answers = [one for one in results.records if isinstance(one, AnswerRecord)]
    assert [one.status for one in answers if one.contestant == "fast"] == ["ok", "ok", "failed"]
    assert [one.status for one in answers if one.contestant == "slow"] == ["ok"] * 6
    [skipped] = [one for one in results.records if isinstance(one, SkippedRecord)]
    assert skipped.name == "fast"
    assert error in skipped.reason
    assert engines[0].is_closed
    assert "turns/0" in results.units


def test_news_after_the_end_changes_nothing() -> None:
    asked = Asked(make_stream(1).requests[0], arrival=1.0)
    asked.hear(Event(0, 2.0, count=TOKENS, done=True))
    before = asked.record("u", "c", 0.0, warmup=False)
    asked.hear(Event(0, 9.0, count=1, done=True, error="late"))
    assert asked.record("u", "c", 0.0, warmup=False) == before
    assert before.status == "ok"
    assert before.tokens == ()


def test_an_end_without_a_token_is_a_failure() -> None:
    asked = Asked(make_stream(1).requests[0], arrival=1.0)
    asked.hear(Event(0, 2.0, done=True))
    assert asked.record("u", "c", 0.0, warmup=False).status == "failed"
    assert asked.ttft == float("inf")
