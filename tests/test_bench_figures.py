"""Figures of a benchmark run: intervals that hold what they promise, and what counts in which figure."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from bench_results import Making, make_results

from rag.bench.analysis.figures import figures_of
from rag.bench.analysis.goodput import goodput_figures
from rag.bench.analysis.models import Figures
from rag.bench.analysis.resampling import Drawn, enough_for, lasting, mean, quantile, quantile_ratio
from rag.bench.analysis.times import speedup, times_of
from rag.bench.statistics import false_discovery_rates, share_of
from rag.bench.suite.records import AnswerRecord, UnitRecord, WindowRecord
from rag.bench.suite.results import Results

TRIALS = 120
ONE_PASS = dict.fromkeys("0123", 0)
QUESTIONS = Making(chosen=("questions",), requests=30)


@pytest.fixture(scope="module")
def figures() -> Figures:
    return figures_of(make_results())


def walks(generator: np.random.Generator, passes: int, requests: int, *, alike: float, apart: float) -> np.ndarray:
    """Values around 0 whose neighbours in a pass are alike, and whose passes lie apart from each other."""
    noise = generator.normal(size=(passes, requests + 50))
    for i in range(1, requests + 50):
        noise[:, i] += alike * noise[:, i - 1]
    return noise[:, 50:] + apart * generator.normal(size=(passes, 1))


def covered(draw: Callable[[np.random.Generator, int], Drawn], truth: float = 0.0) -> float:
    """How often the 95 % interval holds the truth."""
    return coverage_and_width(draw, truth)[0]


def coverage_and_width(draw: Callable[[np.random.Generator, int], Drawn], truth: float = 0.0) -> tuple[float, float]:
    """The same, and the median width over that of an interval that knows how the value itself is spread."""
    generator, hits, values, widths = np.random.default_rng(7), 0, [], []
    for seed in range(TRIALS):
        found = draw(generator, seed).estimate()
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
        values.append(found.value)
        widths.append(found.high - found.low)
    return hits / TRIALS, float(np.median(widths) / (2 * 1.96 * np.std(values)))


@pytest.mark.parametrize(("requests", "widest"), [(5, 2.0), (15, 1.4), (40, 1.4)])
def test_intervals_of_a_median_hold_it_in_95_of_100_samples(requests: int, widest: float) -> None:
    def draw(generator: np.random.Generator, seed: int) -> Drawn:
        return quantile(generator.normal(size=(1, requests)), 0.5, block=1, seed=seed, resamples=400)

    share, width = coverage_and_width(draw)
    assert share >= 0.9
    assert width < widest


def test_intervals_of_values_whose_neighbours_are_alike_need_blocks() -> None:
    def drawn_by(block: int) -> Callable[[np.random.Generator, int], Drawn]:
        def draw(generator: np.random.Generator, seed: int) -> Drawn:
            values = walks(generator, 1, 60, alike=0.6, apart=0)
            return quantile(values, 0.5, block=block, seed=seed, resamples=400)

        return draw

    share, width = coverage_and_width(drawn_by(lasting(60)))
    assert share >= 0.88
    assert width < 1.3
    assert covered(drawn_by(1)) < 0.85  # the blocks are what it takes


@pytest.mark.parametrize(("passes", "widest"), [(2, 5.0), (4, 2.0)])  # Student's t of 1 degree of freedom is wide
def test_intervals_know_that_passes_lie_apart(passes: int, widest: float) -> None:
    def draw(generator: np.random.Generator, seed: int) -> Drawn:
        values = walks(generator, passes, 30, alike=0.0, apart=1.0)
        return quantile(values, 0.5, block=lasting(30), seed=seed, resamples=400)

    def as_one_pass(generator: np.random.Generator, seed: int) -> Drawn:
        values = walks(generator, passes, 30, alike=0.0, apart=1.0)
        return quantile(values.reshape(1, -1), 0.5, block=1, seed=seed, resamples=400)

    share, width = coverage_and_width(draw)
    assert share >= 0.88
    assert width < widest
    assert covered(as_one_pass) < 0.7


def test_intervals_of_a_high_percentile_hold_it_where_they_are_given() -> None:
    def draw(generator: np.random.Generator, seed: int) -> Drawn:
        return quantile(generator.normal(size=(1, 60)), 0.9, block=1, seed=seed, resamples=400)

    assert enough_for(0.9, 60, interval=True)
    share, width = coverage_and_width(draw, truth=1.2816)
    assert share >= 0.88
    assert width < 1.4


def test_intervals_of_a_mean_hold_it() -> None:
    def draw(generator: np.random.Generator, seed: int) -> Drawn:
        return mean(generator.exponential(size=(1, 30)), block=1, seed=seed, resamples=400)

    share, width = coverage_and_width(draw, truth=1.0)
    assert share >= 0.88
    assert width < 1.3


def test_a_speedup_in_turns_is_right_whatever_the_machine_does() -> None:
    generator, hits = np.random.default_rng(3), 0
    for _ in range(60):
        machine = np.cumsum(generator.normal(0, 0.1, size=(1, 25)), axis=1) + generator.normal(0, 1)
        length = generator.normal(0, 0.5, size=(1, 25))
        own = machine + length + generator.normal(0, 0.05, size=(1, 25))
        base = machine + length + np.log(3) + generator.normal(0, 0.05, size=(1, 25))
        found = speedup(own, base, paired=True)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        assert found.high / found.low < 1.15
        hits += found.low <= 3 <= found.high
    assert hits >= 53


def test_requests_that_one_engine_lacks_are_left_out_of_the_ratio() -> None:
    own = np.log([[1.0, np.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    base = np.log([[2.0, 50.0, np.nan, 2.0, 2.0, 2.0, 2.0, 2.0]])
    found = speedup(own, base, paired=True)
    assert found is not None
    assert found.value == pytest.approx(2.0)


def test_passes_that_an_engine_lost_do_not_shift_the_others() -> None:
    results = make_results(Making(chosen=("questions",), requests=20, repeats=3, noise=0.001))
    lost = tuple(
        one
        for one in results.records
        if not (isinstance(one, AnswerRecord) and one.contestant == "preread-chunk" and one.unit == "questions/0")
    )
    whole, rest = (
        figures_of(one).experiments["questions"].contestants["preread-chunk"].speedup
        for one in (results, Results(results.header, lost))
    )
    assert whole is not None
    assert rest is not None
    assert rest.value == pytest.approx(whole.value, rel=0.02)
    assert rest.high is not None
    assert rest.high < 1.1 * rest.value


def test_a_ratio_under_load_is_that_of_the_medians() -> None:
    generator = np.random.default_rng(0)
    own, base = generator.normal(0, 0.1, (1, 40)), generator.normal(np.log(4), 0.1, (1, 40))
    drawn = quantile_ratio(base, own, 0.5, block=lasting(40))
    assert drawn.value == pytest.approx(np.median(base) - np.median(own))
    assert drawn.estimate(np.exp).value == pytest.approx(4, rel=0.1)


def test_chances_are_even_without_a_difference_and_small_with_one() -> None:
    generator = np.random.default_rng(2)
    chances = [quantile(generator.normal(size=(1, 20)), 0.5, block=1, seed=i).p_value() for i in range(200)]
    assert 0.01 <= np.mean(np.asarray(chances) < 0.05) <= 0.1
    assert quantile(generator.normal(1, 0.1, size=(1, 20)), 0.5, block=1).p_value() < 0.002


def test_percentiles_that_few_values_cannot_tell_are_left_out() -> None:
    few, some, many = (times_of([list(np.linspace(1, 2, n))]) for n in (4, 99, 600))
    assert few is not None
    assert (few.p50.low, few.p90, few.p99) == (None, None, None)
    assert some is not None
    assert some.p90 is not None
    assert some.p90.low is not None
    assert some.p99 is None
    assert many is not None
    assert many.p99 is not None
    assert many.p99.low is not None
    assert times_of([[]]) is None


def test_false_discovery_rates_are_those_of_the_step_up_procedure() -> None:
    chances = [0.001, 0.9, 0.012, 0.03, 0.5, 0.04]
    rates = false_discovery_rates(chances)
    for level in (0.01, 0.05, 0.1, 0.5):
        ordered = sorted(chances)
        passing = [p for rank, p in enumerate(ordered, 1) if p <= level * rank / len(ordered)]
        assert {p for p, rate in zip(chances, rates, strict=True) if rate <= level} == {
            p for p in chances if passing and p <= max(passing)
        }
    assert false_discovery_rates([]) == []


def test_the_interval_of_a_share_is_wilsons() -> None:
    none, half = share_of(0, 12), share_of(6, 12)
    assert none.low == 0
    assert none.high == pytest.approx(0.2425, abs=1e-4)
    assert (half.low, half.high) == (pytest.approx(0.2538, abs=1e-4), pytest.approx(0.7462, abs=1e-4))


def test_intervals_of_qualities_end_where_values_end(figures: Figures) -> None:
    for one in figures.experiments["quality"].quality:
        for found, most in ((one.kl, 1e9), (one.top1, 1), (one.f1, 1), (one.gold, 1)):
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            assert 0 <= found.low <= found.value <= found.high <= most


def test_warm_up_is_apart(figures: Figures) -> None:
    engine = figures.experiments["questions"].contestants["preread-chunk"]
    assert engine.ttft is not None
    assert (engine.ttft.n, engine.warmup) == (32, 8)
    assert engine.warmup_ttft is not None
    assert engine.warmup_ttft.p50.value > 1.5 * engine.ttft.p50.value
    assert engine.hit_rate == pytest.approx(0.85, abs=0.01)
    assert engine.warmup_hit_rate is not None
    assert engine.warmup_hit_rate < 0.6
    assert len(engine.ttft_ms) == 32
    assert [request for request, _ in engine.shares] == list(range(40))


def test_the_effect_that_is_in_the_file_is_found(figures: Figures) -> None:
    engines = figures.experiments["questions"].contestants
    assert engines["preread-off"].speedup is None
    faster = engines["preread-chunk"].speedup
    assert faster is not None
    assert 5 < faster.value < 6
    assert engines["transformers"].hit_rate is None  # it does not tell
    assert engines["preread-off"].hit_rate == 0
    assert engines["preread-chunk"].repairs == (16,)


def test_what_an_experiment_holds_is_reported(figures: Figures) -> None:
    assert figures.experiments["questions"].passes == 1
    chunk = figures.experiments["load"].contestants["preread-chunk"]
    assert chunk.requests_per_second is not None
    assert 0.5 < chunk.requests_per_second < 1.5
    assert chunk.prepared_tokens == 15_000
    assert chunk.generator == pytest.approx(0.002)
    assert [one.variant for one in figures.experiments["quality"].quality][:2] == ["full", "order"]
    broken = next(one for one in figures.experiments["quality"].quality if one.variant == "none")
    assert broken.kl is not None
    assert broken.kl.low is not None
    assert broken.kl.low > 0.2
    assert len(figures.experiments["simulation"].simulation) == 6 * 3 * 3
    assert figures.missing == ()


def test_short_answers_are_reported_and_not_counted(figures: Figures) -> None:
    results = make_results(QUESTIONS)
    slow = changed(results, lambda one: one.status == "short", first=1e6, finished=1e6, warmup=False)
    found = figures_of(slow).experiments["questions"]
    assert found.contestants["llamacpp"].short == 1
    assert any("llamacpp gave too few tokens for 1 request" in problem for problem in found.problems)
    assert found.contestants["llamacpp"].ttft is not None
    assert found.contestants["llamacpp"].ttft.most < 1e6


def test_failures_are_reported_with_their_reason() -> None:
    results = changed(
        make_results(QUESTIONS), lambda one: one.contestant == "openvino" and one.request == 20,
        status="failed", error="out of memory", first=None, finished=None,
    )  # fmt: skip
    found = figures_of(results).experiments["questions"]
    assert found.contestants["openvino"].failed == 1
    assert any("openvino failed 1 request: out of memory" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": "another"}, "engines did not get the same prompts or lengths for 1 request (9)"),
        ({"wanted": 99}, "engines did not get the same prompts or lengths for 1 request (9)"),
        ({"cached": {"device": 5}}, "preread-off reused"),
        ({"certified": False}, "preread-off reused passages without a certificate for 1 answer"),
    ],
)
def test_what_makes_figures_void_is_said(fields: dict[str, object], said: str) -> None:
    results = changed(
        make_results(QUESTIONS), lambda one: (one.contestant, one.request) == ("preread-off", 9), **fields
    )
    assert any(said in problem for problem in figures_of(results).experiments["questions"].problems)


def test_a_costly_load_generator_is_said() -> None:
    results = make_results(QUESTIONS)
    records = tuple(
        one.model_copy(update={"generator_cpu": one.seconds * 0.05}) if isinstance(one, WindowRecord) else one
        for one in results.records
    )
    problems = figures_of(Results(results.header, records)).experiments["questions"].problems
    assert any("the load generator took 2.5% of the machine" in problem for problem in problems)


def test_an_experiment_without_a_complete_unit_is_missing() -> None:
    results = make_results(Making(chosen=("questions", "quality"), requests=12))
    records = tuple(
        one for one in results.records if getattr(one, "unit", "") != "quality/0" or isinstance(one, UnitRecord)
    )
    kept = tuple(one for one in records if getattr(one, "unit", "") != "quality/0")
    assert figures_of(Results(results.header, kept)).missing == ("quality",)


def test_goodput_is_the_highest_rate_below_the_first_that_fails() -> None:
    answers, windows = [], []
    for unit, rate, seconds in (("0", None, 0.1), ("1", 1.0, 0.3), ("2", 2.0, 0.6), ("3", 4.0, 0.2)):
        windows.append(WindowRecord(unit=unit, contestant="one", rate=rate, seconds=10))
        answers += [answer(unit, number, seconds) for number in range(20)]
    found = goodput_figures("one", answers, windows, ONE_PASS)
    assert found.unloaded_ms == pytest.approx(100)
    assert (found.goodput, found.failing) == (1.0, 2.0)
    assert [step.passed for step in found.steps] == [True, False, True]


def test_requests_without_an_answer_fail_a_rate() -> None:
    alone = WindowRecord(unit="0", contestant="one", seconds=10)
    window = WindowRecord(unit="1", contestant="one", rate=1, seconds=10)
    answers = [answer(unit, number, 0.1) for unit in "01" for number in range(20)]
    assert goodput_figures("one", answers, [alone, window], ONE_PASS).goodput == 1
    failed = [one.model_copy(update={"status": "failed"}) for one in answers[20:23]]
    lost = [*answers[:20], *failed, *answers[23:]]
    assert goodput_figures("one", lost, [alone, window], ONE_PASS).goodput is None
    cut = window.model_copy(update={"cut": True})
    assert goodput_figures("one", answers, [alone, cut], ONE_PASS).goodput is None


def answer(unit: str, number: int, seconds: float) -> AnswerRecord:
    return AnswerRecord(
        unit=unit, contestant="one", request=number, status="ok", arrival=number, sent=number, first=number + seconds,
        finished=number + 1, prompt="same", prompt_tokens=10, wanted=2, count=2,
    )  # fmt: skip


def changed(results: Results, chosen: Callable[[AnswerRecord], bool], **fields: object) -> Results:
    """The results with other fields in the answers that are chosen."""

    def records() -> Iterator[object]:
        for one in results.records:
            yield one.model_copy(update=fields) if isinstance(one, AnswerRecord) and chosen(one) else one

    return Results(results.header, tuple(records()))  # type: ignore[arg-type]
