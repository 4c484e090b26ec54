"""The cost of a thousand answers: by a price book and by the hour."""

from decimal import Decimal

import pytest
from bench_results import Making, make_results

from rag.bench.analysis.cost import costs
from rag.bench.suite.experiment import Drive, Experiment, Suite, WorkloadSpec
from rag.bench.suite.records import AnswerRecord, UnitRecord, WindowRecord
from rag.bench.suite.results import Results
from rag.prices import PriceBook

BOOK = PriceBook.model_validate(
    {"currency": "EUR", "models": {"*": {"prompt": "1", "cached": "0.1", "output": "2"}}},
)


def an_answer(contestant="a", **changed) -> AnswerRecord:
    fields = {
        "unit": "e/0", "contestant": contestant, "request": 0, "status": "ok", "arrival": 1.0, "sent": 1.0,
        "first": 1.5, "finished": 3.0, "prompt": "", "prompt_tokens": 1000, "wanted": 10, "count": 10,
        "cached": {"device": 500, "disk": 100},
    }  # fmt: skip
    return AnswerRecord(**(fields | changed))


def results_of(*records, drive=Drive.TURNS) -> Results:
    workload = WorkloadSpec(kind="orders", count=4)
    experiment = Experiment(name="e", title="", drive=drive, workload=workload, contestants=("a", "b"))
    header = make_results(Making(requests=5, chosen=("orders",))).header
    unit = UnitRecord(unit="e/0", experiment="e", repeat=0, began="", seconds=1.0)
    suite = Suite(name="s", experiments=(experiment,))
    return Results(header.model_copy(update={"suite": suite}), (*records, unit))


def test_cached_tokens_have_their_own_price():
    told, silent = costs(results_of(an_answer(), an_answer("b", cached=None)), BOOK)
    assert (told.contestant, told.answers, told.cache_told) == ("a", 1, True)
    assert told.total == Decimal("0.48"), "a thousand times 400 at 1, 600 at 0.1 and 10 at 2 the million"
    assert told.uncached == Decimal("1.02")
    assert (silent.contestant, silent.cache_told) == ("b", False)
    assert silent.total == silent.uncached == told.uncached, "what is not told is priced as computed"
    assert told.hourly is None


def test_what_does_not_count_costs_nothing():
    others = [
        an_answer(warmup=True, prompt_tokens=4000, cached={}),
        an_answer(status="short", count=3, prompt_tokens=4000, cached={}),
        an_answer(status="failed", count=0, first=None, finished=None, cached=None),
        an_answer("b", status="short", count=3),
    ]
    assert costs(results_of(an_answer(), *others), BOOK) == costs(results_of(an_answer()), BOOK)


def test_what_was_read_ahead_is_told_apart():
    window = WindowRecord(unit="e/0", contestant="a", prepared_tokens=50_000, seconds=9.0)
    other = window.model_copy(update={"contestant": "b", "prepared_tokens": 7})
    [row] = costs(results_of(an_answer(), window, other), BOOK)
    assert row.prepared == Decimal("0.05")
    assert row.total == Decimal("0.48")


def test_without_a_price_there_is_only_the_throughput():
    priced = PriceBook.model_validate({"currency": "EUR", "models": {"another": BOOK.models["*"].model_dump()}})
    for book in (None, priced):
        [row] = costs(results_of(an_answer()), book)
        assert (row.total, row.uncached, row.prepared, row.hourly) == (None, None, None, None)
        assert row.answers_per_hour == pytest.approx(1800)


def test_the_hour_in_turns_has_no_pause():
    answers = [an_answer(), an_answer(arrival=11.0, finished=14.0), an_answer(arrival=50.0, finished=90.0, warmup=True)]
    [row] = costs(results_of(*answers), hour_price=Decimal("0.36"))
    assert row.answers_per_hour == pytest.approx(1440), "two answers in five seconds"
    assert float(row.hourly) == pytest.approx(0.25)
    assert row.total is None


def test_the_hour_under_load_is_that_of_the_windows():
    windows = [WindowRecord(unit="e/0", contestant="a", seconds=seconds) for seconds in (30.0, 10.0)]
    windows.append(windows[0].model_copy(update={"contestant": "b"}))
    answers = [an_answer(warmup=True), an_answer(), an_answer(status="failed")]
    [row] = costs(results_of(*answers, *windows, drive=Drive.LOAD), hour_price=Decimal(1))
    assert row.answers_per_hour == pytest.approx(180), "two answers in forty seconds, warm-up among them"
    assert row.answers == 1


def test_a_whole_run():
    rows = costs(make_results(Making(requests=20)), BOOK, hour_price=Decimal(1))
    assert {row.experiment for row in rows} == {"questions", "orders", "documents", "load"} | {
        f"grid-{k}-{length}" for k in (2, 6) for length in (256, 512)
    }
    by_name = {row.contestant: row for row in rows if row.experiment == "orders"}
    assert by_name["preread-off"].total == by_name["preread-off"].uncached
    assert by_name["preread-chunk"].total < by_name["preread-off"].total
    assert by_name["preread-chunk"].hourly < by_name["preread-off"].hourly


def test_engines_come_as_the_experiment_names_them():
    rows = costs(results_of(an_answer("b"), an_answer("a")), BOOK)
    assert [row.contestant for row in rows] == ["a", "b"]
