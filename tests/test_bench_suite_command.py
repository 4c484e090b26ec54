"""`rag bench run`: what is chosen, how it ends, and how an interrupted run goes on."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_contestants import Clock, Scripted, ScriptedParts
from typer.testing import CliRunner

import rag.bench.suite.parts
from rag.bench.suite.choice import Choice, choose
from rag.bench.suite.experiment import ArrivalKind, Drive, WorkloadKind
from rag.bench.suite.results import Results
from rag.bench.suite.suites import SUITES
from rag.cli.main import app
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


@pytest.mark.parametrize(
    ("suite", "choice", "message"),
    [
        ("quck", Choice(), "choose one of: quick, readme, full, checks, workload"),
        ("quick", Choice(only=("none",)), "experiments has none; choose from: questions"),
        ("quick", Choice(engines=("none",)), "engines has none; choose from: "),
        ("quick", Choice(only=("orders",), engines=("vllm",)), "nothing is left of the suite quick"),
        ("workload", Choice(), "name it with --workload FILE"),
    ],
)
def test_a_choice_that_cannot_work_says_what_can(suite: str, choice: Choice, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        choose(suite, choice)
