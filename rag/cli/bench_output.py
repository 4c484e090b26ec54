"""What the benchmarks' commands share: options, a progress bar, and where a report goes."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Protocol, TypeVar

import typer

from rag.cli.failures import FAILED
from rag.cli.options import config_of
from rag.cli.output import print_json

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rag.bench.progress import BenchEvent, Progress
    from rag.config import RagConfig

__all__ = [
    "INTERRUPTED",
    "AnswerTokens",
    "BenchPassages",
    "CorpusOption",
    "Measure",
    "WorkDir",
    "bench_progress",
    "exit_unless_complete",
    "listed",
    "measure_and_publish",
    "output_option",
    "prepare_report",
    "publish_report",
    "python_of",
    "signals_unwind",
]

INTERRUPTED = 130

CorpusOption = Annotated[str, typer.Option(help="python-topics or python-stdlib.")]
BenchPassages = Annotated[int, typer.Option("-k", "--top-k", help="Passages a question.")]
AnswerTokens = Annotated[int, typer.Option(help="Length of an answer at most.")]
WorkDir = Annotated[
    Path | None, typer.Option(help="Where the benchmark keeps its collections. Default: in your cache.")
]

Report = TypeVar("Report", bound="BaseModel")
Report_co = TypeVar("Report_co", bound="BaseModel", covariant=True)


class Measure(Protocol[Report_co]):
    """A benchmark: from the settings to a report."""

    def __call__(self, config: "RagConfig", *, progress: "Progress") -> Report_co:
        """Measure; `progress` is called as it advances."""


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Let SIGTERM, and a closed terminal's SIGHUP, end the block as an exception does: what was begun is cleaned up."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def output_option(name: str) -> Any:
    """Return the option that names the report's file."""
    return typer.Option(help=f"Report with every measurement. Default: bench-results/{name}-TIME.json.")


def python_of(text: str) -> tuple[str, Path]:
    """Split NAME=PATH; a path alone is for every peer."""
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals else ("", Path(text))


def listed(text: str) -> tuple[str, ...]:
    """Split what is given with commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def measure_and_publish(
    context: typer.Context,
    name: str,
    stages: Mapping[str, str],
    measure: "Measure[Report]",
    render: "Callable[[Report], str]",
    *,
    output: Path | None,
    as_json: bool,
) -> "Report":
    """Run a benchmark under a progress bar, write its report and print it.

    Args:
        context: of the command, with the global options.
        name: of the benchmark, in the report's file name.
        stages: what the bar says at each.
        measure: from the settings to a report.
        render: from a report to a table.
        output: the report's path; None is one in bench-results.
        as_json: print the report as JSON on stdout.
    """
    config = config_of(context)
    path = prepare_report(output, name)
    with bench_progress(stages) as progress, signals_unwind():
        report = measure(config, progress=progress)
    publish_report(report, render(report), path, as_json=as_json)
    return report


def exit_unless_complete(problems: Sequence[str], *, interrupted: bool) -> None:
    """End with the exit code of failed self-checks or of Ctrl-C."""
    if problems:
        raise typer.Exit(FAILED)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def prepare_report(output: Path | None, name: str, *, suffix: str = "json") -> Path:
    """Return the report's path after making its folder: a run must not end with a path that cannot be written.

    Raises:
        typer.BadParameter: the path is a folder.
    """
    from datetime import UTC, datetime

    path = output or Path("bench-results") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{suffix}"
    if path.is_dir():
        raise typer.BadParameter(f"output is the folder {path}; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    path.open("a", encoding="utf-8").close()
    if not existed:
        path.unlink()
    return path


def publish_report(report: "BaseModel", rendered: str, path: Path, *, as_json: bool) -> None:
    """Write the report's file in one step; print it as a table, or as JSON with the table on stderr."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    if as_json:
        print_json(report)
    print(f"{rendered}\nevery measurement: {path}", file=sys.stderr if as_json else sys.stdout)


@contextmanager
def bench_progress(stages: Mapping[str, str]) -> "Iterator[Progress]":
    """Show a bar a stage, with the time left, on stderr where somebody is looking."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns: tuple[Any, ...] = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), Remaining())
    with Progress(*columns, *times, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def show(event: "BenchEvent") -> None:
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(stages[event.stage], total=event.total)
            bars.update(tasks[event.stage], completed=event.done, total=event.total)

        yield show
