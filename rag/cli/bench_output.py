"""What the benchmarks' commands share: a progress bar, and where a report goes."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rag.cli.output import print_json

if TYPE_CHECKING:
    from pydantic import BaseModel

    from rag.bench.progress import BenchEvent, Progress

__all__ = ["INTERRUPTED", "bench_progress", "prepare_report", "publish_report"]

INTERRUPTED = 130


def prepare_report(output: Path | None, name: str) -> Path:
    """Return the report's path after making its folder: a run must not end with a path that cannot be written.

    Raises:
        typer.BadParameter: the path is a folder.
    """
    from datetime import UTC, datetime

    path = output or Path("bench-results") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
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
