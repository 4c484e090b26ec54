"""What commands print: results on stdout, progress and warnings on stderr."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from rag.operations import Progress
    from rag.schemas import Answer, PrecomputeProgress, Source
    from rag.schemas.jobs import JobProgress

__all__ = [
    "cache_summary", "ingest_progress", "job_progress", "mebibytes", "number", "precompute_progress", "print_json",
    "print_sources", "print_table", "printable", "waiting",
]  # fmt: skip

CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Leave out control characters: a document or a file name must not steer the terminal that shows it."""
    return text.translate(CONTROLS)


def print_json(value: "BaseModel | Any") -> None:
    """Print a result as JSON; text is kept as it is, not escaped."""
    import json

    from pydantic import BaseModel

    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    print(json.dumps(plain, ensure_ascii=False, indent=2))


def number(value: int) -> str:
    """Write a number with thin groups of three digits, such as `1 312`."""
    return f"{value:,}".replace(",", " ")


def mebibytes(size: int) -> str:
    """Write a number of bytes for people."""
    return f"{size / 2**20:.1f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"


def cache_summary(answer: "Answer") -> str:
    """Say in one line what the cache saved, and how the passages got their KV."""
    usage, cache = answer.usage, answer.cache
    disk = f" ({number(cache.hit_tokens.disk)} of them from disk)" if cache.hit_tokens.disk else ""
    outcomes = Counter(passage.outcome for passage in cache.passages)
    return (
        f"{number(usage.prompt_tokens)} prompt tokens, {number(usage.cached_tokens)} from cache{disk}"
        f" · passages: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}"
        f" · first token {answer.timings_ms.ttft:.0f} ms"
    )


def print_sources(sources: "Iterable[Source]", *, text: bool = False) -> None:
    """Print one line a source, with its text where it is wanted."""
    for source in sources:
        page = f" · page {source.page}" if source.page is not None else ""
        where = f"{source.uri}{page} · characters {source.start}-{source.end} · score {source.score:.2f}"
        print(printable(f"  [{source.n}] {source.title}\n      {where}"))
        if text:
            lines = printable(source.text).strip().splitlines()
            print("\n".join(f"      {line}" for line in lines) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print rows as a table that fits the terminal, or whole where stdout is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*map(printable, columns), title=title, box=None, pad_edge=False, title_justify="left")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """Show on stderr that something takes a while, where somebody is looking."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(message):
        yield


@contextmanager
def ingest_progress() -> "Iterator[Progress]":
    """Show the progress of an ingestion on stderr; skipped documents and notices are told at once."""
    from retriever.ingest import IngestEvent, Stage

    with _bar("documents") as bar:

        def show(event: IngestEvent) -> None:
            if event.stage is Stage.EMBEDDED:
                description = f"embedded {event.passages} {event.message}"
            else:
                description = f"{event.passages} passages"
            bar.move(event.documents, event.total, description)
            if event.stage in (Stage.SKIPPED, Stage.NOTICE):
                bar.say(f"{event.stage}: {event.message}")

        yield show


@contextmanager
def precompute_progress(total: int) -> "Iterator[Callable[[PrecomputeProgress], None]]":
    """Show on stderr how many passages are read ahead of the questions."""
    with _bar("passages read", shows_rest=True) as bar:

        def show(progress: "PrecomputeProgress") -> None:
            rate = progress.tokens / progress.seconds if progress.tokens else 0
            bar.move(progress.passages + progress.skipped, total, f"{rate:.0f} tokens/s")

        yield show


@contextmanager
def job_progress() -> "Iterator[Callable[[JobProgress], None]]":
    """Show on stderr how far a job is."""
    with _bar("done") as bar:

        def show(progress: "JobProgress") -> None:
            bar.move(progress.done, progress.total, printable(progress.message) or f"{progress.passages} passages")

        yield show


@dataclass(frozen=True, slots=True)
class _Bar:
    bars: "Bars"
    task: "TaskID"

    def move(self, done: int, total: int | None, description: str) -> None:
        self.bars.update(self.task, completed=done, total=total, description=description)

    def say(self, message: str) -> None:
        self.bars.console.print(printable(message), style="yellow", markup=False, highlight=False)


@contextmanager
def _bar(what: str, *, shows_rest: bool = False) -> Iterator[_Bar]:
    """Show a bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn()) if shows_rest else (TimeElapsedColumn(),)
    console = Console(stderr=True, soft_wrap=True)
    with Bars(*columns, *times, console=console, disable=not sys.stderr.isatty()) as bars:
        yield _Bar(bars, bars.add_task("", total=None))
