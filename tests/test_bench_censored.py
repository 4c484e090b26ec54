"""What was lost is seen in the figures: unanswered requests, cut windows, engines that crash, passes."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from bench_results import Making, make_results

from rag.bench.analysis.cost import costs
from rag.bench.analysis.figures import figures_of
from rag.bench.analysis.goodput import goodput_figures
from rag.bench.analysis.models import ContestantFigures, GoodputFigures
from rag.bench.analysis.quality import quality_figures
from rag.bench.analysis.sections import experiment_section, goodput
from rag.bench.suite.records import AnswerRecord, QualityRecord, Record, WindowRecord
from rag.bench.suite.results import Results

LOAD = Making(chosen=("load",), requests=40)
ENGINE = "preread-exact"


def edited(results: Results, edit: Callable[[Record], Record | None]) -> Results:
    return Results(results.header, tuple(new for one in results.records if (new := edit(one)) is not None))


def without_answers(share: float, status: str = "failed", engine: str = ENGINE, *, cut: bool = True) -> Results:
    """Under load, the last requests of an engine were lost, and its window cut."""

    def edit(one: Record) -> Record:
        if isinstance(one, WindowRecord) and one.contestant == engine:
            return one.model_copy(update={"cut": cut})
        if isinstance(one, AnswerRecord) and one.contestant == engine and one.request >= 40 - 32 * share:
            return one.model_copy(update={"status": status, "first": None, "finished": None})
        return one

    return edited(make_results(LOAD), edit)


def loaded(results: Results, engine: str = ENGINE) -> ContestantFigures:
    return figures_of(results).experiments["load"].contestants[engine]


@pytest.mark.parametrize("status", ["failed", "short"])
def test_lost_requests_are_longer_than_any_answer(status: str) -> None:
    whole, some = loaded(make_results(LOAD)).ttft, loaded(without_answers(0.25, status)).ttft
    assert whole is not None
    assert whole.p50 is not None
    assert some is not None
    assert (some.n, some.lost) == (24, 8)
    assert some.p50 is not None
    assert some.p50.value >= whole.p50.value  # that of the answers alone would be that of 24
    assert some.p90 is None


def test_a_median_among_the_lost_is_not_known() -> None:
    found = loaded(without_answers(0.75))
    assert found.ttft is not None
    assert (found.ttft.n, found.ttft.p50) == (8, None)
    text = experiment_section(figures_of(without_answers(0.75)).experiments["load"])
    row = next(line for line in text.splitlines() if line.startswith(f"| {ENGINE} | 8 |"))
    assert row.split("|")[3].strip().startswith(">")


def test_a_cut_window_has_no_speed_up() -> None:
    assert loaded(make_results(LOAD)).speedup is not None
    assert loaded(without_answers(0.1)).speedup is None
    assert loaded(without_answers(0.1, engine="preread-off")).speedup is None


def test_a_request_that_fails_in_a_whole_window_does_not_speed_it_up() -> None:
    slow, lost = loaded(make_results(LOAD)), loaded(without_answers(0.25, cut=False))
    assert slow.speedup is not None
    assert lost.speedup is not None
    assert lost.speedup.value <= slow.speedup.value
    assert lost.speedup.low is None


def test_answers_of_a_window_without_an_end_are_in_no_throughput() -> None:
    making = Making(chosen=("load",), requests=40, repeats=2)

    def crashed(one: Record) -> Record | None:
        lost = isinstance(one, WindowRecord) and one.unit == f"load/1/{ENGINE}"
        return None if lost else one

    whole, rest = make_results(making), edited(make_results(making), crashed)
    first, second = loaded(whole), loaded(rest)
    assert first.requests_per_second is not None
    assert first.engine_cpu is not None
    assert second.requests_per_second == pytest.approx(first.requests_per_second, rel=0.3)
    assert second.engine_cpu == pytest.approx(first.engine_cpu, rel=0.3)
    assert second.speedup is None
    hours = [
        next(one.answers_per_hour for one in costs(results, hour_price=Decimal(1)) if one.contestant == ENGINE)
        for results in (whole, rest)
    ]
    assert hours[0] is not None
    assert hours[1] == pytest.approx(hours[0], rel=0.3)


def window(unit: str, rate: float | None = None) -> WindowRecord:
    return WindowRecord(unit=unit, contestant="one", rate=rate, seconds=10)


def answers(unit: str, seconds: float, **fields: object) -> list[AnswerRecord]:
    return [
        AnswerRecord(
            unit=unit, contestant="one", request=number, arrival=number, sent=number, first=number + seconds,
            finished=number + 1, prompt="same", prompt_tokens=10, wanted=2, count=2, **{"status": "ok", **fields},
        )
        for number in range(20)
    ]  # fmt: skip


def rated(found: list[AnswerRecord], windows: list[WindowRecord]) -> GoodputFigures:
    return goodput_figures("one", found, windows, {one.unit: int(one.unit[0]) for one in windows})


def test_the_limit_is_that_of_whole_answers_after_the_warm_up() -> None:
    alone = [*answers("0/0", 0.1)[:15], *answers("0/0", 9.0, status="short")[15:], *answers("0/9", 4.0, warmup=True)]
    found = rated([*alone, *answers("0/1", 0.3)], [window("0/9"), window("0/0"), window("0/1", 1.0)])
    assert found.limit_ms == pytest.approx(500)
    assert (found.goodput, found.failing) == (1.0, None)


def test_without_a_limit_goodput_is_not_known() -> None:
    lost = answers("0/0", 0.1, status="failed")
    found = rated([*lost, *answers("0/1", 0.3)], [window("0/0"), window("0/1", 1.0)])
    assert (found.goodput, found.failing) == (None, None)
    assert goodput(found) == "not known"


def test_passes_have_limits_of_their_own_and_a_range() -> None:
    windows, found = [], []
    for repeat, scale, rates in ((0, 1.0, (1.0, 2.0)), (1, 10.0, (3.0, 4.0))):
        for step, (rate, seconds) in enumerate(((None, 0.1), (rates[0], 0.3), (rates[1], 0.7))):
            windows.append(window(f"{repeat}/{step}", rate))
            found += answers(f"{repeat}/{step}", scale * seconds)
    both = rated(found, windows)
    assert (both.goodput, both.failing, both.passes) == (1.0, 4.0, 2)
    assert [step.passed for step in both.steps] == [True, False, True, False]


def scored(request: int, repeat: int, f1: float, **fields: object) -> QualityRecord:
    return QualityRecord(unit=f"q/{repeat}", request=request, variant="one", k=4, f1=f1, **fields)


def test_passes_over_the_same_questions_are_no_more_questions() -> None:
    once = [scored(number, 0, number / 10) for number in range(8)]
    thrice = [scored(number, repeat, number / 10) for repeat in range(3) for number in range(8)]
    [one], [three] = quality_figures(once), quality_figures(thrice)
    assert three.n == 8
    assert three == one


def test_a_share_of_passes_that_differ_is_between_them() -> None:
    [found] = quality_figures([scored(number, repeat, 1.0, gold=repeat == 0) for repeat in (0, 1) for number in (0, 1)])
    assert found.gold is not None
    assert found.gold.value == pytest.approx(0.5)


def test_free_answers_of_the_warm_up_are_left_out() -> None:
    records = [scored(number, 0, 1.0 if number < 3 else 0.5) for number in range(9)]
    [found] = quality_figures(records, warmup=3)
    assert found.n == 6
    assert found.f1 is not None
    assert found.f1.value == 0.5
    [whole] = quality_figures([one.model_copy(update={"kl": 0.1}) for one in records], warmup=3)
    assert whole.n == 9


def test_the_simulation_tells_what_the_device_had() -> None:
    def stored(one: Record) -> Record:
        chunk = getattr(one, "reuse", "") == "chunk"
        return one.model_copy(update={"hit_rate": 0.95, "device_rate": 0.25}) if chunk else one

    found = figures_of(edited(make_results(Making(chosen=("simulation",))), stored)).experiments["simulation"]
    text = experiment_section(found)
    rows = [line for line in text.splitlines() if line.startswith(("| chunk", "| exact"))]
    assert all(("95.0 % (25.0 %)" in row) == row.startswith("| chunk") for row in rows)
    assert "Chunk reuse has every passage on disk" in text


def test_free_answers_are_listed_as_engines_are_named() -> None:
    records = [scored(0, 0, 1.0).model_copy(update={"variant": name}) for name in ("b", "other", "a")]
    assert [one.variant for one in quality_figures(records, names=("a", "b"))] == ["a", "b", "other"]
