"""`rag bench run`: what is chosen, how it ends, and how an interrupted run goes on."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_contestants import Clock, Scripted, ScriptedParts
from typer.testing import CliRunner

import rag.bench.suite.parts
from rag.bench.environment import RunClock
from rag.bench.suite.choice import Choice, choose
from rag.bench.suite.experiment import ArrivalKind, Drive, WorkloadKind
from rag.bench.suite.parts import Parts, RunOptions, _header
from rag.bench.suite.records import SkippedRecord
from rag.bench.suite.results import Results
from rag.bench.suite.suites import SUITES
from rag.cli.bench_run import _again
from rag.cli.main import app
from rag.config import RagConfig
from rag.errors import InvalidRequestError

CHILD = Path(__file__).with_name("suite_run_child.py")
EVERY_EXPERIMENT = [(suite.name, one) for suite in SUITES.values() for one in suite.experiments]
ENGINES = ("preread-exact", "openvino")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedParts:
    """A run of scripted engines, in an empty folder."""
    clock = Clock()
    parts = ScriptedParts(clock, lambda: [Scripted(name, clock, lambda _request: 0.1) for name in ENGINES])
    monkeypatch.setattr(rag.bench.suite.parts, "make_parts", lambda _options, _config: parts.parts)
    monkeypatch.chdir(tmp_path)
    return parts


def bench_run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["bench", "run", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


QUICK = ("quick", "--only", "questions,orders", "--engines", ",".join(ENGINES))


def test_a_run_writes_its_results_where_it_says(parts: ScriptedParts, tmp_path: Path) -> None:
    code, out = bench_run(*QUICK, "--json")
    told = json.loads(out)
    assert (code, told["failed"], told["broken"]) == (0, [], [])
    [path] = (tmp_path / "bench-results").glob("quick-*.jsonl")
    assert told["path"] == str(path.relative_to(tmp_path))
    results = Results.load(path)
    assert set(results.units) == {"questions/0", "orders/0"}
    assert results.header.suite.name == "quick"
    assert parts.opened == [ENGINES]


def test_resume_goes_on_with_what_was_chosen_before(parts: ScriptedParts, tmp_path: Path) -> None:
    bench_run(*QUICK)
    [path] = (tmp_path / "bench-results").iterdir()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-5]))
    code, out = bench_run("quick", "--resume")
    assert (code, "1 units measured" in out) == (0, True)
    assert set(Results.load(path).units) == {"questions/0", "orders/0"}
    with pytest.raises(InvalidRequestError, match="no unfinished results of quick"):
        bench_run("quick", "--resume")


def unfinished(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-5]))


def test_resume_takes_suite_and_options_of_the_file_that_is_named(
    parts: ScriptedParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunOptions] = []

    def make(options: RunOptions, config: RagConfig) -> Parts:
        asked.append(options)
        return replace(parts.parts, header=lambda suite: _header(config, RunClock(), options, suite))

    monkeypatch.setattr(rag.bench.suite.parts, "make_parts", make)
    given = ("--threads", "1", "--kv-gib", "1", "--gguf", "m.gguf", "--peer-python", "openvino=python3")
    assert bench_run(*QUICK, *given, "--output", "r.jsonl")[0] == 0
    unfinished(tmp_path / "r.jsonl")
    code, out = bench_run("--resume", "--output", "r.jsonl")
    assert (code, "1 units measured" in out) == (0, True)
    before, after = asked
    assert after == before
    assert (after.threads, after.kv_gib, after.gguf, after.pythons) == (
        1, 1, Path("m.gguf"), {"openvino": Path("python3")},
    )  # fmt: skip
    with pytest.raises(InvalidRequestError, match="of another number of threads"):
        bench_run("--resume", "--output", "r.jsonl", "--threads", "3")
    with pytest.raises(InvalidRequestError, match=r"no.jsonl cannot be read"):
        bench_run("--resume", "--output", "no.jsonl")


def test_resume_looks_for_an_equal_choice(parts: ScriptedParts, tmp_path: Path) -> None:
    for name, seed in (("quick-a", "1"), ("quick-b", "2")):
        bench_run(*QUICK, "--seed", seed, "--output", f"bench-results/{name}.jsonl")
        unfinished(tmp_path / "bench-results" / f"{name}.jsonl")
    code, out = bench_run(*QUICK, "--seed", "1", "--resume")
    assert (code, "quick-a.jsonl" in out) == (0, True)
    with pytest.raises(InvalidRequestError, match="no unfinished results of quick with this choice"):
        bench_run(*QUICK, "--seed", "3", "--resume")


def test_the_command_to_go_on_keeps_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["rag", "bench", "run", "readme", "--resume"])
    assert _again(Path("r.jsonl")) == "rag bench run readme --resume --output r.jsonl"
    monkeypatch.setattr("sys.argv", ["rag", "bench", "run", "--output=r.jsonl"])
    assert _again(Path("r.jsonl")) == "rag bench run --output=r.jsonl"


@pytest.mark.parametrize("missing", [ENGINES, ("preread-exact",)])
def test_a_run_without_engines_or_without_ours_is_an_exit_code(parts: ScriptedParts, missing: tuple[str, ...]) -> None:
    parts.engines = lambda: [Scripted(name, parts.clock) for name in ENGINES if name not in missing]
    parts.absent = tuple(SkippedRecord(name=name, reason="does not start") for name in missing)
    code, out = bench_run(*QUICK, "--output", "r.jsonl")
    assert code == 3
    assert "left out: preread-exact: does not start" in out
    assert ("left out: questions: none of its engines is there" in out) == (missing == ENGINES)
    assert set(Results.load(Path("r.jsonl")).units) == (set() if missing == ENGINES else {"questions/0", "orders/0"})


def test_an_absent_peer_is_no_failure_and_needs_a_new_file(parts: ScriptedParts) -> None:
    parts.engines = lambda: [Scripted("preread-exact", parts.clock)]
    parts.absent = (SkippedRecord(name="openvino", reason="not installed"),)
    code, out = bench_run(*QUICK)
    assert code == 0
    assert "an engine that is added later needs a new file" in out


def test_other_choices_for_the_same_file_are_refused(parts: ScriptedParts) -> None:
    bench_run(*QUICK, "--output", "r.jsonl")
    with pytest.raises(InvalidRequestError, match="another suite"):
        bench_run(*QUICK, "--seed", "7", "--output", "r.jsonl")


def test_an_engine_that_fails_is_an_exit_code(parts: ScriptedParts) -> None:
    parts.engines = lambda: [Scripted(name, parts.clock, dies_at=1) for name in ENGINES]
    code, out = bench_run(*QUICK)
    assert code == 3
    assert "left out: openvino: failed in questions/0" in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_ends_its_engines_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, str(CHILD), "bench", "run", *QUICK, "--output", "r.jsonl"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, **pipes) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        child.send_signal(number)
        _, said = child.communicate(timeout=30)
    assert child.returncode == code
    assert "to go on: rag bench run quick" in said
    assert "--output r.jsonl" in said
    assert "Traceback" not in said
    assert {path.name for path in tmp_path.glob("*.closed")} == {f"{name}.closed" for name in ENGINES}
    assert Results.load(tmp_path / "r.jsonl").units == {}


def test_the_suites_are_listed() -> None:
    code, out = bench_run("--list")
    assert code == 0
    for name, experiment in EVERY_EXPERIMENT:
        assert name in out
        assert experiment.name in out


@pytest.mark.parametrize(("suite", "experiment"), EVERY_EXPERIMENT, ids=lambda one: getattr(one, "name", one))
def test_an_experiment_of_a_suite_makes_sense(suite: str, experiment: object) -> None:
    arrivals = experiment.workload.arrivals.kind
    timed = arrivals not in (ArrivalKind.TURNS, ArrivalKind.CLOSED)
    assert timed == (experiment.drive in (Drive.LOAD, Drive.GOODPUT))
    assert bool(experiment.contestants) == (experiment.drive not in (Drive.QUALITY, Drive.SIMULATION))
    assert experiment.warmup < experiment.workload.count
    assert [one.name for one in SUITES[suite].experiments].count(experiment.name) == 1


def test_what_a_user_chooses() -> None:
    url = "mine=http://127.0.0.1:8000"
    choice = Choice(engines=("preread-chunk", "preread-chunk@16", url), seed=5, corpus="python-stdlib")
    suite = choose("readme", choice)
    named = {one.name: one for one in suite.experiments}
    assert named["questions"].contestants == ("preread-chunk", "preread-chunk@16", url)
    assert named["questions"].workload.corpus == "python-stdlib"
    assert {one.workload.seed for one in suite.experiments} == {5}
    assert named["simulation"].contestants == ()
    assert choose("readme", Choice()) == SUITES["readme"]
    assert [one.name for one in choose("readme", Choice(only=("orders",))).experiments] == ["orders"]
    [pulse] = choose("full", Choice(only=("ragpulse",), trace=Path("week"))).experiments
    assert (pulse.workload.kind, pulse.workload.path) == (WorkloadKind.RAGPULSE, "week")


def test_a_trace_that_nobody_named_is_told_and_left_out() -> None:
    told: list[str] = []
    named = [one.name for one in choose("full", Choice(), told.append).experiments]
    assert [one.name for one in SUITES["full"].experiments if one.name not in named] == ["ragpulse"]
    [line] = told
    assert "--trace FOLDER" in line


def test_a_slow_starter_takes_part_in_quick_where_it_is_asked_for() -> None:
    assert "vllm" not in {name for one in SUITES["quick"].experiments for name in one.contestants}
    [orders] = choose("quick", Choice(only=("orders",), engines=("preread-chunk", "vllm"))).experiments
    assert orders.contestants == ("preread-chunk", "vllm")


def test_the_readme_measures_enough_and_no_more() -> None:
    named = {one.name: one for one in SUITES["readme"].experiments}
    for name in ("questions", "orders", "documents", "conversations"):
        assert named[name].workload.count - named[name].warmup >= 12
    assert named["goodput"].estimate <= 6 * 60
    assert sum(one.estimate for one in named.values()) <= 26 * 60
    assert sum(one.estimate for one in SUITES["quick"].experiments) <= 2 * 60
    assert named["bursts"].repeats == 2, "engines change places"


@pytest.mark.parametrize(
    ("suite", "choice", "message"),
    [
        ("quck", Choice(), "choose one of: quick, readme, full, checks, workload"),
        ("quick", Choice(only=("none",)), "experiments has none; choose from: questions"),
        ("quick", Choice(engines=("none",)), "'none' is no contestant; choose from: preread-off"),
        ("quick", Choice(engines=("foo=localhost:8000",)), "'foo=localhost:8000' is no contestant"),
        ("quick", Choice(engines=("preread-chunk@x",)), "what follows @ is a number"),
        ("quick", Choice(engines=("transformers@3",)), "'transformers@3' is no contestant"),
        ("quick", Choice(only=("orders",), engines=("transformers",)), "nothing is left of the suite quick"),
        ("full", Choice(only=("ragpulse",)), "name its folder with --trace FOLDER"),
        ("workload", Choice(), "name it with --workload FILE"),
    ],
)
def test_a_choice_that_cannot_work_says_what_can(suite: str, choice: Choice, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        choose(suite, choice)
