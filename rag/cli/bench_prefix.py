"""`rag bench prefix`: its options, its progress bar, and where its report goes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.cli.failures import FAILED
from rag.cli.options import AsJson, config_of
from rag.cli.output import print_json

if TYPE_CHECKING:
    from rag.bench.prefix import BenchEvent, Progress
    from rag.bench.report import PrefixReport

__all__ = ["prefix"]

INTERRUPTED = 130
STAGES = {
    "ingest": "ingesting the corpus",
    "load": "loading the models",
    "fill": "filling the warm cache",
    "measure": "measuring",
}


def prefix(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    questions: Annotated[int, typer.Option(help="Length of the stream.")] = 30,
    corpus: Annotated[str, typer.Option(help="python-topics or python-stdlib.")] = "python-topics",
    zipf_s: Annotated[float, typer.Option("--zipf", help="Exponent of the skew; 0 is none.")] = 1.0,
    popularity: Annotated[str, typer.Option(help="What the skew is over: question or document.")] = "question",
    k: Annotated[int, typer.Option("-k", "--top-k", help="Passages a question.")] = 4,
    max_tokens: Annotated[int, typer.Option(help="Length of an answer at most.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the stream and of the order of the modes.")] = 0,
    repeats: Annotated[int, typer.Option(help="Passes over the stream.")] = 1,
    workload: Annotated[Path | None, typer.Option(help="A saved stream to ask instead.")] = None,
    save_workload: Annotated[Path | None, typer.Option(help="Save the stream to this file.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Report with every measurement. Default: bench-results/prefix-TIME.json.")
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the benchmark keeps its collections. Default: in your cache.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Time to first token with the cache off, cold and warm, over a skewed stream of questions.

    The corpus goes into a collection of the benchmark's own, not into your data directory. Ctrl-C ends the measurement
    and keeps what is complete. The exit code is 1 when a self-check fails.
    """
    from rag.bench.prefix import PrefixBenchConfig, run

    bench = PrefixBenchConfig(
        corpus=corpus,
        questions=questions,
        zipf_s=zipf_s,
        popularity=popularity,  # type: ignore[arg-type]  # checked there
        k=k,
        max_tokens=max_tokens,
        seed=seed,
        repeats=repeats,
        workload=workload,
        save_workload=save_workload,
        work_dir=work_dir,
    )
    config = config_of(context)
    path = _prepare(output)
    with bench_progress() as progress:
        report = run(config, bench, progress)
    _publish(report, path, as_json=as_json)
    if report.problems:
        raise typer.Exit(FAILED)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)


def _prepare(output: Path | None) -> Path:
    """Return the report's path after making its folder: a run must not end with a path that cannot be written."""
    from datetime import UTC, datetime

    path = output or Path("bench-results") / f"prefix-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    if path.is_dir():
        raise typer.BadParameter(f"output is the folder {path}; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    path.open("a", encoding="utf-8").close()
    if not existed:
        path.unlink()
    return path


def _publish(report: "PrefixReport", path: Path, *, as_json: bool) -> None:
    from rag.bench.table import render

    partial = path.with_name(f"{path.name}.part")
    partial.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    if as_json:
        print_json(report)
    print(f"{render(report)}\nevery measurement: {path}", file=sys.stderr if as_json else sys.stdout)


@contextmanager
def bench_progress() -> "Iterator[Progress]":
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
                tasks[event.stage] = bars.add_task(STAGES[event.stage], total=event.total)
            bars.update(tasks[event.stage], completed=event.done, total=event.total)

        yield show
