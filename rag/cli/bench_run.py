"""`rag bench run`: its options."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.cli.bench_output import INTERRUPTED, WorkDir, listed, prepare_report, python_of, signals_unwind
from rag.cli.failures import FAILED, PARTLY
from rag.cli.options import AsJson, config_of
from rag.cli.output import print_json, printable

if TYPE_CHECKING:
    from rag.bench.suite.choice import Choice
    from rag.bench.suite.experiment import Suite
    from rag.bench.suite.pace import RunEvent, Watch
    from rag.bench.suite.parts import RunOptions
    from rag.bench.suite.runner import Outcome
    from rag.config import RagConfig

__all__ = ["run"]

RESULTS = Path("bench-results")
LINE_SECONDS = 30.0  # between lines where nobody looks at a bar


def run(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="quick, readme, full, checks; or workload, with --workload.")] = "quick",
    show_list: Annotated[bool, typer.Option("--list", help="Only print what the suites consist of.")] = False,
    engines: Annotated[
        str, typer.Option(help="Which take part, with commas; NAME=URL is a server. Default: the suite's own.")
    ] = "",
    only: Annotated[str, typer.Option(help="Experiments, with commas. Default: all.")] = "",
    peer_python: Annotated[
        list[str] | None,
        typer.Option(
            help="The Python that has the peers, or NAME=PATH for one of them. Repeatable. Default: this one."
        ),
    ] = None,
    gguf: Annotated[Path | None, typer.Option(help="For the peers that read one. Default: the model's own.")] = None,
    workload: Annotated[Path | None, typer.Option(help="A saved workload, for the suite `workload`.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Folder of a RAGPulse trace, for the suite `full`.")] = None,
    corpus: Annotated[
        str | None, typer.Option(help="What questions are about: python-topics, python-stdlib, or a folder.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every draw. Default: the suite's own.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of every engine. Default: one a core.")] = None,
    kv_gib: Annotated[
        int | None, typer.Option(min=1, help="Memory for KV, of each engine, at most. Default: 2.", show_default=False)
    ] = None,
    work_dir: WorkDir = None,
    output: Annotated[
        Path | None, typer.Option(help="Results, as JSON lines. Default: bench-results/SUITE-TIME.jsonl.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with what was chosen before: with --output, or the suite's newest unfinished results.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare engines on the same requests: speed, cached share, quality, memory.

    Engines that are not installed are left out, and how to install them is told. Results are written as they are
    complete: the same command with the same --output goes on after an interruption. An engine that is installed later
    needs a new file. The exit code is 3 where an engine failed, one of ours did not start or an experiment could not
    be run, 1 where a self-check fails.
    """
    from rag.bench.suite.choice import Choice

    choice = Choice(
        engines=listed(engines), only=listed(only), seed=seed, corpus=corpus, trace=trace, workload=workload
    )
    if show_list:
        _print_suites()
        return
    path, chosen, before = _begun(suite, choice, output) if resume else _new(suite, choice, output)
    options = replace(
        before,
        pythons=dict(python_of(text) for text in peer_python or ()) or before.pythons,
        gguf=gguf or before.gguf,
        work_dir=work_dir,
        threads=threads or before.threads,
        kv_gib=kv_gib or before.kv_gib,
    )
    outcome = _run(chosen, options.settled(chosen), config_of(context), path)
    _print_outcome(outcome, as_json=as_json)
    if outcome.failed:
        raise typer.Exit(FAILED)
    if outcome.broken:
        raise typer.Exit(PARTLY)


def _new(suite: str, choice: "Choice", output: Path | None) -> "tuple[Path, Suite, RunOptions]":
    """Return a file, which may be there, what is run in it, and options to begin with."""
    from rag.bench.suite.choice import choose
    from rag.bench.suite.parts import RunOptions

    chosen = choose(suite, choice, _warn)
    return prepare_report(output, suite, suffix="jsonl"), chosen, RunOptions()


def _begun(suite: str, choice: "Choice", output: Path | None) -> "tuple[Path, Suite, RunOptions]":
    """Return a file that is there, with the suite and the options that it was begun with.

    Raises:
        InvalidRequestError: there is none.
    """
    from rag.bench.suite.choice import Choice, choose
    from rag.bench.suite.parts import RunOptions
    from rag.bench.suite.results import Results

    chosen = None if choice == Choice() else choose(suite, choice, _warn)
    path = output or _newest_unfinished(suite, chosen)
    header = Results.load(path).header
    options = RunOptions() if header.setting is None else RunOptions.restored(header.setting)
    return path, chosen or header.suite, options


def _warn(line: str) -> None:
    print(printable(line), file=sys.stderr)


def _run(suite: "Suite", options: "RunOptions", config: "RagConfig", path: Path) -> "Outcome":
    from rag.bench.suite.parts import make_parts
    from rag.bench.suite.runner import run_suite

    try:
        with signals_unwind(), _shown() as watch:
            return run_suite(suite, make_parts(options, config), path, watch)
    except (KeyboardInterrupt, SystemExit) as end:
        if path.exists():
            print(f"interrupted; to go on: {_again(path)}", file=sys.stderr)
        if isinstance(end, KeyboardInterrupt):
            raise typer.Exit(INTERRUPTED) from None
        raise


def _again(path: Path) -> str:
    """Return the command that goes on with a file: the one that was given, with this output."""
    words = sys.argv[1:]
    given = any(word == "--output" or word.startswith("--output=") for word in words)
    return shlex.join(["rag", *words, *([] if given else ["--output", str(path)])])


def _newest_unfinished(suite: str, chosen: "Suite | None") -> Path:
    """Return the results to go on with: of what was chosen now, or else whatever was chosen of the suite.

    Raises:
        InvalidRequestError: there are none.
    """
    from rag.bench.suite.results import Results
    from rag.bench.suite.runner import is_complete
    from rag.errors import InvalidRequestError

    for path in sorted(RESULTS.glob(f"{suite}-*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            results = Results.load(path)
        except InvalidRequestError:
            continue  # not ours
        found = results.header.suite
        if found.name == suite and chosen in (None, found) and not is_complete(results):
            return path
    choice = "" if chosen is None else " with this choice"
    raise InvalidRequestError(f"{RESULTS} has no unfinished results of {suite}{choice}: run it without --resume")


def _print_suites() -> None:
    from rag.bench.suite.suites import SUITES
    from rag.cli.output import print_table

    rows = [
        (
            suite.name,
            one.name,
            one.title,
            one.drive.value,
            one.workload.count,
            _minutes(one.estimate),
            len(one.contestants) or "none",
        )
        for suite in SUITES.values()
        for one in suite.experiments
    ]
    print_table(("suite", "experiment", "what it shows", "drive", "requests", "takes about", "engines"), rows)


@contextmanager
def _shown() -> "Iterator[Watch]":
    """Show a bar with the time left on stderr; without a terminal, a line now and then and when a part is complete.

    The bar is drawn between measurements only: a thread that draws it would take time from the engines.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("{task.fields[part]}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    bar = Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal)
    task = bar.add_task("", total=1.0, part="")
    told = monotonic()

    def show(event: "RunEvent") -> None:
        nonlocal told
        left = f"about {_minutes(event.left)} left"
        bar.update(task, completed=event.done, part=event.part, description=f"{left} · {event.doing}", refresh=True)
        if event.complete or (not console.is_terminal and monotonic() - told > LINE_SECONDS):
            told = monotonic()
            bar.console.print(printable(f"{event.part}: {event.doing}, {left}"))

    with bar:
        yield show


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _print_outcome(outcome: "Outcome", *, as_json: bool) -> None:
    if as_json:
        print_json(_plain(outcome))
        return
    for one in (*outcome.absent, *outcome.broken):
        print(printable(f"left out: {one.name}: {one.reason}"))
    if outcome.absent:
        print("an engine that is added later needs a new file: what is complete in this one stays without it")
    for check in outcome.failed:
        print(printable(f"FAILED: {check.name}: {check.detail}"))
    print(f"{outcome.measured} units measured: {outcome.path}\nread them with: rag bench report {outcome.path}")


def _plain(outcome: "Outcome") -> Mapping[str, Any]:
    return {
        "path": str(outcome.path),
        "measured": outcome.measured,
        "absent": [one.model_dump(include={"name", "reason"}) for one in outcome.absent],
        "broken": [one.model_dump(include={"name", "reason"}) for one in outcome.broken],
        "failed": [one.model_dump(include={"name", "detail"}) for one in outcome.failed],
    }
