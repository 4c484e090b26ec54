"""A run: resumed, nothing is measured twice and nothing is lost; what cannot be run is told."""

import errno
import io
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_contestants import Clock, Scripted, ScriptedParts, a_header, an_experiment

from rag.bench.suite import results as results_module
from rag.bench.suite.experiment import Check, Drive, Experiment, Suite, WorkloadKind, WorkloadSpec
from rag.bench.suite.pace import Pace, RunEvent
from rag.bench.suite.records import ContestantRecord, QualityRecord, SkippedRecord, UnitRecord
from rag.bench.suite.requests import BenchRequest
from rag.bench.suite.results import ResultFile, Results
from rag.bench.suite.runner import Outcome, is_complete, run_suite
from rag.errors import InvalidRequestError, ResultFileError

SUITE = Suite(
    name="test",
    experiments=(
        an_experiment(Drive.TURNS, repeats=2),
        an_experiment(Drive.LOAD, contestants=("fast", "slow", "absent")),
        an_experiment(Drive.QUALITY, contestants=()),
        an_experiment(Drive.SIMULATION, contestants=()),
    ),
)
UNITS = {"turns/0", "turns/1", "load/0/fast", "load/0/slow", "load/0", "quality/0", "simulation/0"}


def quiet(event: RunEvent) -> None:
    assert 0 <= event.done <= 1
    assert event.left >= 0


def engines_on(clock: Clock, **faults: int) -> list[Scripted]:
    return [Scripted("fast", clock, lambda _r: 0.2, **faults), Scripted("slow", clock)]


def parts_on(clock: Clock, **faults: int) -> ScriptedParts:
    absent = SkippedRecord(name="absent", reason="not installed")
    return ScriptedParts(clock, lambda: engines_on(clock, **faults), absent=(absent,))


def run(path: Path, parts: ScriptedParts, suite: Suite = SUITE) -> Outcome:
    return run_suite(suite, parts.parts, path, quiet, patience=20.0, clock=parts.clock)


def measured(path: Path) -> list[tuple[str, ...]]:
    """What a file tells, but for times and for what every start tells again."""
    told = [one for one in Results.load(path).records if not isinstance(one, ContestantRecord | SkippedRecord)]
    fields = ("kind", "unit", "contestant", "request", "status", "prompt", "tokens", "warmup", "digest", "variant")
    return sorted(tuple(str(getattr(one, name, "")) for name in fields) for one in told)


def stopping(submit: Callable[[Scripted, BenchRequest], None], stop: int) -> Callable[[Scripted, BenchRequest], None]:
    count = itertools.count()

    def submitted(engine: Scripted, request: BenchRequest) -> None:
        if next(count) == stop:
            raise KeyboardInterrupt
        submit(engine, request)

    return submitted


def test_a_run_measures_everything_and_tells_what_is_absent(tmp_path: Path) -> None:
    parts = parts_on(Clock())
    outcome = run(tmp_path / "r.jsonl", parts)
    results = Results.load(tmp_path / "r.jsonl")
    assert set(results.units) == UNITS
    assert is_complete(results)
    assert [one.variant for one in results.quality("turns")] == [one.contestant for one in results.answers("turns")]
    assert (outcome.measured, outcome.broken, outcome.failed) == (len(UNITS), (), ())
    assert [one.name for one in outcome.absent] == ["absent"]
    assert [one.name for one in results.skipped] == ["absent"]
    assert len(results.answers("turns")) == 2 * 2 * 4
    assert results.streams["turns"].recall == {1: 0.0, 2: 0.0}
    assert parts.opened == [("fast", "slow", "absent")]
    assert parts.contexts == [8 + 3], "room for the longest prompt and its answer"
    assert all(one.is_closed for one in parts.here)


def test_a_complete_file_is_left_as_it_is(tmp_path: Path) -> None:
    run(tmp_path / "r.jsonl", parts_on(Clock()))
    before = (tmp_path / "r.jsonl").read_text()
    parts = parts_on(Clock())
    assert run(tmp_path / "r.jsonl", parts).measured == 0
    assert parts.opened == []
    assert (tmp_path / "r.jsonl").read_text() == before


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_interrupted_again_and_again_nothing_is_repeated_and_nothing_lost(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    path = tmp_path_factory.mktemp("run") / "r.jsonl"
    for stop in stops:
        parts = parts_on(Clock())
        with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Scripted, "submit", stopping(Scripted.submit, stop))
            run(path, parts)
        assert all(one.is_closed for one in parts.here)
    before = len(Results.load(path).units)
    assert run(path, parts_on(Clock())).measured == len(UNITS) - before
    whole = path.with_name("whole.jsonl")
    run(whole, parts_on(Clock()))
    assert measured(path) == measured(whole)


def test_a_line_that_was_cut_short_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    run(path, parts_on(Clock()))
    text = path.read_text()
    path.write_text(text[: text.index('"load/0/slow"') + 50])
    assert run(path, parts_on(Clock())).measured == len(UNITS) - 3
    assert set(Results.load(path).units) == UNITS


def test_other_questions_than_before_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    broken = parts_on(Clock(), dies_at=0)
    run(path, broken)
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in text if "quality" not in line or '"header"' in line or '"stream"' in line))
    parts = parts_on(Clock())
    parts.salt = 1
    with pytest.raises(InvalidRequestError, match="asks something else than before"):
        run(path, parts)


@pytest.mark.parametrize("field", ["suite", "model", "processor"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, field: str) -> None:
    header = a_header(SUITE)
    ResultFile(tmp_path / "r.jsonl", header).close()
    other = {
        "suite": header.model_copy(update={"suite": Suite(name="test", experiments=SUITE.experiments[:1])}),
        "model": header.model_copy(update={"model": "another"}),
        "processor": header.model_copy(
            update={"environment": header.environment.model_copy(update={"cpu": "another"})}
        ),
    }[field]
    with pytest.raises(InvalidRequestError, match=f"is of another {field}"):
        ResultFile(tmp_path / "r.jsonl", other)


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    first = ResultFile(tmp_path / "r.jsonl", a_header(SUITE))
    with pytest.raises(InvalidRequestError, match="another run is writing"):
        ResultFile(tmp_path / "r.jsonl", a_header(SUITE))
    first.close()
    ResultFile(tmp_path / "r.jsonl", a_header(SUITE)).close()


def test_a_record_may_hold_any_text(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "r.jsonl", a_header(SUITE))
    reason = "ends \u2028 here \u0085 and \n there"
    file.add(SkippedRecord(name="one", reason=reason))
    file.close()
    assert [one.reason for one in Results.load(tmp_path / "r.jsonl").skipped] == [reason]
    ResultFile(tmp_path / "r.jsonl", a_header(SUITE)).close()
    assert [one.reason for one in Results.load(tmp_path / "r.jsonl").skipped] == [reason]


def test_a_crash_within_a_unit_leaves_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    run(path, parts_on(Clock(), dies_at=2))
    lines = path.read_bytes().splitlines(keepends=True)
    dropped = next(place for place, line in enumerate(lines) if b'"skipped"' in line and b"turns/0" in line)
    path.write_bytes(b"".join(lines[: dropped + 1]))  # after the engine's end, before the unit's
    assert run(path, parts_on(Clock())).measured == len(UNITS)
    answers = [(one.unit, one.contestant, one.request) for one in Results.load(path).answers("turns")]
    assert len(set(answers)) == len(answers) == 2 * 2 * 4


def test_a_crash_within_a_character_leaves_the_file_readable(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    run(path, parts_on(Clock()))
    with path.open("ab") as file:
        file.write('{"kind":"skipped","name":"é'.encode()[:-1])
    assert set(Results.load(path).units) == UNITS
    ResultFile(path, a_header(SUITE)).close()
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_read_as_not_measured(tmp_path: Path, value: float) -> None:
    file = ResultFile(tmp_path / "r.jsonl", a_header(SUITE))
    unit = UnitRecord(unit="quality/0", experiment="quality", repeat=0, began="", seconds=1)
    file.add(QualityRecord(unit="quality/0", request=0, variant="chunk", k=2, kl=value), unit)
    file.close()
    [read] = Results.load(tmp_path / "r.jsonl").quality("quality")
    assert str(read.kl) == str(value)
    assert read.first_kl is None


def test_what_was_absent_and_came_later_is_not_left_out(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "r.jsonl", a_header(SUITE))
    file.add(
        SkippedRecord(name="came", reason="not installed"),
        SkippedRecord(name="absent", reason="not installed"),
        SkippedRecord(name="quality", reason="no corpus"),
        SkippedRecord(name="came", reason="failed in turns/0", unit="turns/0"),
        UnitRecord(unit="turns/0", experiment="turns", repeat=0, began="", seconds=1),
        ContestantRecord(name="came", version="1", detail="", start_seconds=1),
        UnitRecord(unit="quality/0", experiment="quality", repeat=0, began="", seconds=1),
    )
    file.close()
    assert [(one.name, one.unit) for one in Results.load(tmp_path / "r.jsonl").skipped] == [
        ("absent", ""),
        ("came", "turns/0"),
    ]


def test_an_engine_that_dies_is_told_and_the_run_ends_well(tmp_path: Path) -> None:
    outcome = run(tmp_path / "r.jsonl", parts_on(Clock(), dies_at=2))
    assert [one.name for one in outcome.broken] == ["fast"]
    results = Results.load(tmp_path / "r.jsonl")
    assert set(results.units) == UNITS - {"load/0/fast"}
    assert is_complete(results)


def test_a_workload_that_cannot_be_had_is_told_and_the_others_are_run(tmp_path: Path) -> None:
    parts = parts_on(Clock())
    refused = Experiment.model_validate(
        an_experiment(name="refused", workload=WorkloadSpec(kind=WorkloadKind.RAGPULSE, count=3)).model_dump()
    )
    suite = Suite(name="test", experiments=(refused, SUITE.experiments[0]))
    stream = parts._stream

    def missing(spec: WorkloadSpec, progress: object) -> object:
        if spec.kind is WorkloadKind.RAGPULSE:
            raise InvalidRequestError("name the trace with --trace")
        return stream(spec, progress)

    parts._stream = missing
    outcome = run(tmp_path / "r.jsonl", parts, suite)
    assert [(one.name, one.reason) for one in outcome.broken] == [("refused", "name the trace with --trace")]
    results = Results.load(tmp_path / "r.jsonl")
    assert set(results.units) == {"turns/0", "turns/1"}
    assert not is_complete(results)


def test_checks_that_fail_are_told_and_are_not_made_again(tmp_path: Path) -> None:
    short = an_experiment(name="few", contestants=("short",), checks=(Check.SHORT, Check.SEED))
    clock = Clock()
    parts = ScriptedParts(clock, lambda: [Scripted("short", clock)])  # gives all tokens: the check must fail
    outcome = run(tmp_path / "r.jsonl", parts, Suite(name="test", experiments=(short,)))
    assert [one.name for one in outcome.failed] == ["short"]
    results = Results.load(tmp_path / "r.jsonl")
    assert {one.name: one.passed for one in results.checks} == {"short": False, "seed": True}
    assert set(results.units) == {"few/0", "few/checks"}
    again = run(tmp_path / "r.jsonl", parts, Suite(name="test", experiments=(short,)))
    assert (again.measured, [one.name for one in again.failed]) == (0, ["short"])


def test_a_full_disk_keeps_what_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"

    def write(file: io.FileIO, data: bytes) -> None:
        room = 9000 - file.tell()
        file.write(data[: max(0, room)])
        if len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(results_module, "_write_whole", write)
        with pytest.raises(ResultFileError, match=r"No space left on device.*--output"):
            run(path, parts_on(Clock()))
    assert path.read_bytes().endswith(b"\n")
    there = set(Results.load(path).units)
    assert {"turns/0"} <= there < UNITS
    assert run(path, parts_on(Clock())).measured == len(UNITS) - len(there)


def test_the_time_left_is_scaled_by_what_was_seen() -> None:
    clock, events = Clock(), list[RunEvent]()
    pace = Pace({"requests": 5.0, "a": 100.0, "b": 300.0}, events.append, clock)
    assert pace.left == 405.0
    clock.wait(500.0)  # a first ingestion, say
    pace.at("requests", 1.0, "ready")
    pace.forget("requests")
    assert pace.left == 400.0
    clock.wait(200.0)
    pace.at("a", 1.0, "complete")
    assert 300.0 * 1.7 < pace.left < 600.0
    pace.at("a", 0.2, "late news")
    assert events[-1].left == events[-2].left, "what is done stays done"
    assert events[-1].done == pytest.approx(700 / (700 + events[-1].left))
    pace.rescale("b", 0.5)
    assert pace.left == pytest.approx(events[-1].left / 2)
    clock.wait(300.0)
    pace.at("b", 1.0, "complete")
    assert (events[-1].left, events[-1].done, events[-1].complete) == (0.0, 1.0, True)
