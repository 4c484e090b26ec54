"""`rag bench compare`: finds what changed, and finds nothing where nothing did."""

from collections.abc import Callable
from pathlib import Path

import pytest
from bench_results import Making, make_results, write_results
from typer.testing import CliRunner

from rag.bench.analysis.compare import compare_runs
from rag.bench.analysis.compare_table import render
from rag.bench.analysis.comparison import Change, Comparison
from rag.bench.suite.records import AnswerRecord, ContestantRecord, QualityRecord, Record
from rag.bench.suite.results import Results
from rag.cli.main import app

CHOSEN = ("questions", "quality")
TTFT = "TTFT, ms"


def run_of(seed: int, **more: object) -> Results:
    return make_results(Making(**{"seed": seed, "requests": 20, "chosen": CHOSEN, **more}))


def compared(before: Results, after: Results, **more: object) -> Comparison:
    return compare_runs(("a.jsonl", before), ("b.jsonl", after), **more)


def found(comparison: Comparison, contestant: str, experiment: str, measure: str = TTFT) -> Change:
    return next(
        one
        for one in comparison.changes
        if (one.contestant, one.experiment, one.measure) == (contestant, experiment, measure)
    )


def edited(results: Results, edit: Callable[[Record], Record | None]) -> Results:
    return Results(results.header, tuple(new for one in results.records if (new := edit(one)) is not None))


def test_two_runs_of_the_same_thing_differ_in_nothing() -> None:
    """Of ten pairs at 5 %, more than two with any change would be rare: the chance is 1 in 100."""
    pairs = [compared(run_of(2 * i), run_of(2 * i + 1), least=0) for i in range(10)]
    assert sum(bool(one.found) for one in pairs) <= 2
    chances = [change.p for one in pairs for change in one.changes if change.p is not None and change.p < 1]
    assert len(chances) > 200
    assert 0.01 < sum(chance < 0.05 for chance in chances) / len(chances) < 0.09


def test_a_change_of_a_fifth_is_found_while_the_machine_drifts() -> None:
    for seed in (0, 2, 4):
        comparison = compared(run_of(seed), run_of(seed + 1, slower={"preread-chunk": 1.2}))
        assert {(one.contestant, one.measure) for one in comparison.found} == {("preread-chunk", TTFT)}
        change = found(comparison, "preread-chunk", "questions")
        assert change.relative is not None
        assert change.relative.value == pytest.approx(1.2, rel=0.08)
        assert change.reference == "transformers"


def test_experiments_together_find_what_each_alone_is_too_short_for() -> None:
    short = {"chosen": ("grid-2-256", "grid-6-256", "grid-2-512", "grid-6-512"), "requests": 6}
    before, after = run_of(0, **short), run_of(1, slower={"preread-chunk": 1.15}, **short)
    comparison = compared(before, after)
    change = found(comparison, "preread-chunk", "all in turns")
    assert change.changed
    assert change.requests == 24
    assert {one.contestant for one in comparison.found} == {"preread-chunk"}
    alone = [found(comparison, "preread-chunk", name).p for name in short["chosen"]]
    assert change.p is not None
    assert all(one is not None and one > change.p for one in alone)


def test_a_slower_machine_is_no_change_of_the_engines() -> None:
    everybody = ("preread-off", "preread-exact", "preread-order", "preread-chunk", "openvino", "llamacpp")
    slow = dict.fromkeys((*everybody, "transformers"), 2.0)
    comparison = compared(run_of(0), run_of(1, slower=slow, drift=0.0))
    assert comparison.found == []
    assert [one.contestant for one in comparison.machine] == ["transformers"]
    machine = comparison.machine[0].raw
    assert machine is not None
    assert machine.value == pytest.approx(2.0, rel=0.3)


def test_a_reference_that_is_another_version_is_not_taken() -> None:
    def upgrade(one: Record) -> Record:
        other = isinstance(one, ContestantRecord) and one.name == "transformers"
        return one.model_copy(update={"version": "9.0"}) if other else one

    comparison = compared(run_of(0), edited(run_of(1), upgrade))
    assert found(comparison, "preread-chunk", "questions").reference == "openvino"
    assert any(notice.startswith("transformers is another: 0.1.0") for notice in comparison.notices)


def test_the_reference_can_be_named() -> None:
    comparison = compared(run_of(0), run_of(1), reference="llamacpp")
    assert found(comparison, "preread-chunk", "questions").reference == "llamacpp"
    assert found(comparison, "llamacpp", "questions").unjudged.startswith("the reference")


def test_load_is_judged_by_repeated_passes_alone() -> None:
    once = found(compared(run_of(0, chosen=("load",)), run_of(1, chosen=("load",))), "preread-chunk", "load")
    assert once.p is None
    assert once.raw is not None
    assert once.unjudged.startswith("one pass each")
    often = [run_of(seed, repeats=5, chosen=("load",)) for seed in (0, 1)]
    same = found(compared(*often), "preread-chunk", "load")
    assert same.p is not None
    assert same.p > 0.01
    slow = run_of(1, repeats=5, chosen=("load",), slower={"preread-chunk": 3.0})
    assert found(compared(often[0], slow), "preread-chunk", "load").changed


def test_an_engine_alone_is_not_judged_by_one_pass() -> None:
    def alone(results: Results) -> Results:
        kept = [one for one in results.records if getattr(one, "contestant", "preread-chunk") == "preread-chunk"]
        return Results(results.header, tuple(kept))

    change = found(compared(alone(run_of(0)), alone(run_of(1))), "preread-chunk", "questions")
    assert change.unjudged.startswith("one pass each, and no engine beside it")


def test_other_requests_are_not_compared() -> None:
    comparison = compared(run_of(0), run_of(0, workload_seed=9))
    assert comparison.changes == ()
    assert any("the requests are others: quality, questions" in one for one in comparison.notices)


def test_another_machine_is_said() -> None:
    results = run_of(1)
    environment = results.header.environment.model_copy(update={"cpu": "Other CPU"})
    other = Results(results.header.model_copy(update={"environment": environment}), results.records)
    notices = compared(run_of(0), other).notices
    assert "the machine is another: Imagined CPU @ 2.0 GHz, 2 cores, then Other CPU, 2 cores" in notices


def test_less_reuse_is_found_and_told_in_shares() -> None:
    def half(one: Record) -> Record:
        if isinstance(one, AnswerRecord) and one.contestant == "preread-chunk" and one.cached:
            return one.model_copy(update={"cached": {tier: tokens // 2 for tier, tokens in one.cached.items()}})
        return one

    measure = "prompt tokens from cache, share"
    change = found(compared(run_of(0), edited(run_of(1), half)), "preread-chunk", "questions", measure)
    assert change.changed
    assert change.raw is not None
    assert change.raw.value == pytest.approx(-0.425, abs=0.01)


def test_worse_answers_are_found() -> None:
    def worse(one: Record) -> Record:
        if isinstance(one, QualityRecord) and one.variant == "chunk" and one.kl is not None:
            return one.model_copy(update={"kl": 3 * one.kl})
        return one

    comparison = compared(run_of(0), edited(run_of(1), worse))
    assert [(one.contestant, one.measure) for one in comparison.found] == [("chunk, 4 passages", "KL, nats a token")]


def test_a_small_change_is_none_that_matters() -> None:
    calm = {"noise": 0.001, "drift": 0.01}
    before, after = run_of(0, **calm), run_of(1, slower={"preread-chunk": 1.02}, **calm)
    assert compared(before, after).found == []
    assert {one.contestant for one in compared(before, after, least=0.01).found} == {"preread-chunk"}


def test_the_command_tells_changes_and_machine(tmp_path: Path) -> None:
    making = {"requests": 20, "chosen": CHOSEN}
    first = write_results(tmp_path / "a.jsonl", Making(seed=0, **making))
    second = write_results(tmp_path / "b.jsonl", Making(seed=1, slower={"preread-chunk": 1.4}, **making))
    result = CliRunner().invoke(app, ["bench", "compare", str(first), str(second)])
    assert result.exit_code == 0, result.output
    assert "changed beyond noise" in result.output
    assert "preread-chunk" in result.output
    assert "TTFT of the references" in result.output
    twin = tmp_path / "twin.jsonl"
    twin.write_bytes(first.read_bytes())
    same = CliRunner().invoke(app, ["bench", "compare", str(first), str(twin)])
    assert "nothing changed beyond noise" in same.output
    as_json = CliRunner().invoke(app, ["bench", "compare", str(first), str(second), "--json"])
    assert Comparison.model_validate_json(as_json.output).found


def test_lost_engines_and_failures_are_said() -> None:
    def worse(one: Record) -> Record | None:
        if not isinstance(one, AnswerRecord):
            return one
        if one.contestant == "llamacpp":
            return None
        failed = one.contestant == "openvino" and one.request in (7, 8)
        return one.model_copy(update={"status": "failed"}) if failed else one

    notices = compared(run_of(0), edited(run_of(1), worse)).notices
    assert "questions: llamacpp is in the first file only" in notices
    assert "questions: openvino had 20 ok, then 18 ok, 2 failed" in notices
    assert not any("preread-chunk" in notice for notice in notices)


def test_the_first_to_answer_is_not_the_reference_for_that() -> None:
    turned = Results(run_of(1).header, run_of(1).records[::-1])
    for before, after in ((run_of(0), turned), (turned, run_of(0))):
        assert found(compared(before, after), "preread-chunk", "questions").reference == "transformers"


def test_a_share_must_change_by_a_hundredth() -> None:
    def hitting(share: float) -> Callable[[Record], Record]:
        def edit(one: Record) -> Record:
            chosen = isinstance(one, AnswerRecord) and one.contestant == "preread-exact"
            return one.model_copy(update={"cached": {"device": int(share * one.prompt_tokens)}}) if chosen else one

        return edit

    measure, low = "prompt tokens from cache, share", edited(run_of(0), hitting(0.05))
    small = compared(low, edited(run_of(1), hitting(0.058)))
    change = found(small, "preread-exact", "questions", measure)
    assert change.q is not None
    assert change.q < 0.05
    assert not change.changed
    assert "beyond noise, below the least change" in render(small, everything=True, width=300)
    large = compared(low, edited(run_of(1), hitting(0.07)))
    assert found(large, "preread-exact", "questions", measure).changed


def test_gold_texts_and_first_tokens_are_compared() -> None:
    comparison = compared(run_of(0), run_of(1))
    for measure in ("has the gold text, share", "KL of the first token, nats"):
        assert found(comparison, "chunk, 4 passages", "quality", measure).p is not None


def test_times_beside_lost_requests_are_not_judged_under_load() -> None:
    def lose(one: Record) -> Record:
        lost = isinstance(one, AnswerRecord) and one.contestant == "preread-chunk" and one.request > 12
        return one.model_copy(update={"status": "failed"}) if lost else one

    runs = [run_of(seed, repeats=5, chosen=("load",)) for seed in (0, 1)]
    comparison = compared(runs[0], edited(runs[1], lose))
    assert found(comparison, "preread-chunk", "load").unjudged.startswith("requests were left without an answer")
    assert found(comparison, "preread-exact", "load").p is not None


def test_nothing_to_compare_is_no_success(tmp_path: Path) -> None:
    making = {"requests": 12, "chosen": ("questions",)}
    first = write_results(tmp_path / "a.jsonl", Making(**making))
    other = write_results(tmp_path / "b.jsonl", Making(workload_seed=3, **making))
    result = CliRunner().invoke(app, ["bench", "compare", str(first), str(other)])
    assert result.exit_code == 1
    assert "nothing could be compared" in result.output
    assert "nothing changed beyond noise" not in result.output


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    file = write_results(tmp_path / "a.jsonl", Making(requests=12, chosen=("questions",)))
    link = tmp_path / "b.jsonl"
    link.symlink_to(file)
    for other in (file, link):
        result = CliRunner().invoke(app, ["bench", "compare", str(file), str(other)])
        assert result.exit_code == 2
        assert "the same file" in " ".join(result.output.split())


def test_every_measure_has_a_verdict() -> None:
    comparison = compared(run_of(0), run_of(1, slower={"preread-chunk": 1.3}))
    text = render(comparison, everything=True, width=250)
    lines = [line for line in text.splitlines() if line.startswith(("questions", "quality", "all"))]
    assert len(lines) == len(comparison.changes)
    assert all(any(word in line for word in ("changed", "within noise", "not judged")) for line in lines)
