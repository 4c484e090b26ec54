"""`rag bench workload`: its options."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rag.cli.bench_output import WorkDir, bench_progress
from rag.cli.options import AsJson, config_of
from rag.cli.output import print_json, printable

if TYPE_CHECKING:
    from rag.bench.suite.experiment import WorkloadSpec

__all__ = ["workload"]

USUAL_COUNT = 100

STAGES = {
    "text": "laying text over lengths",
    "ingest": "documents",
    "load": "loading the embedder",
    "retrieve": "finding passages",
}


def workload(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    kind: Annotated[
        str,
        typer.Argument(help="questions, documents, passages, fusion, orders, conversations, ragpulse, or file."),
    ],
    count: Annotated[
        int | None, typer.Option("--requests", "-n", min=1, help="Requests at most. Default: 100, or all of a file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    k: Annotated[int | None, typer.Option("-k", "--top-k", min=1, help="Passages a request.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a passage.")] = None,
    pool: Annotated[int | None, typer.Option(min=1, help="Distinct passages or questions to draw from.")] = None,
    skew: Annotated[float | None, typer.Option(min=0, help="Zipf exponent of their popularity.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Of a conversation.")] = 4,
    question_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a question without words.")] = 32,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 16,
    corpus: Annotated[
        str, typer.Option(help="What questions are about: python-topics, python-stdlib, or a folder.")
    ] = "python-topics",
    path: Annotated[Path | None, typer.Option(help="The saved workload, or the folder of a RAGPulse trace.")] = None,
    first: Annotated[int, typer.Option(min=0, help="Requests of a file or trace to leave out at the beginning.")] = 0,
    arrivals: Annotated[
        str | None, typer.Option(help="turns, closed, poisson, bursty, or recorded. Default: turns, or the file's own.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, for poisson and bursty.")] = None,
    cv: Annotated[float, typer.Option(help="Coefficient of variation of the gaps, for bursty.")] = 3.0,
    clients: Annotated[int, typer.Option(min=1, help="That ask at once, for closed.")] = 1,
    scale: Annotated[float, typer.Option(help="Recorded times are multiplied by it.")] = 1.0,
    save: Annotated[Path | None, typer.Option(dir_okay=False, help="Save the workload to this file.")] = None,
    work_dir: WorkDir = None,
    as_json: AsJson = False,
) -> None:
    """Draw a workload, say what it is like, and save it for `rag bench run workload --workload FILE`.

    The same options draw the same requests: equal digests are equal prompts, times and lengths. Options that are not
    given are the kind's own. Nothing is answered.
    """
    from rag.bench.suite.description import describe, render
    from rag.bench.suite.drawing import draw, save_workload
    from rag.bench.suite.prompts import make_stream

    timing = {"kind": arrivals, "rate": rate, "cv": cv, "clients": clients, "scale": scale}
    shape = {"k": k, "length": length, "pool": pool, "skew": skew, "turns": turns, "corpus": corpus}
    lengths = {"question_tokens": question_tokens, "output_tokens": output_tokens}
    spec = _spec(kind, path, count, {**shape, **lengths, "seed": seed, "first": first}, timing)
    drawn = draw(spec) if save is None else save_workload(spec, save)
    with bench_progress(STAGES) as progress:
        stream = make_stream(spec, config_of(context), progress, work_dir=work_dir)
    report = describe(drawn, stream)
    if as_json:
        print_json(report)
    else:
        print(printable(render(report)), end="")
    if save is not None:
        print(f"saved: {save}", file=sys.stderr)


def _spec(
    kind: str, path: Path | None, count: int | None, settings: Mapping[str, Any], timing: Mapping[str, Any]
) -> "WorkloadSpec":
    """Make the workload; a file's own requests and times stand where nothing else is asked for.

    Raises:
        InvalidRequestError: a value that cannot work.
        DataError: the file cannot be read.
    """
    from pydantic import ValidationError

    from rag.bench.suite.drawing import saved_spec
    from rag.bench.suite.experiment import Arrivals, WorkloadSpec
    from rag.errors import InvalidRequestError

    saved = saved_spec(path) if kind == "file" and path is not None else None
    try:
        if timing["kind"] is None:
            arrivals = saved.arrivals if saved else Arrivals()
        else:
            arrivals = Arrivals.model_validate(timing)
        wanted = {"kind": kind, "path": None if path is None else str(path), "arrivals": arrivals}
        return WorkloadSpec.model_validate(
            {**settings, **wanted, "count": count or (saved.count if saved else USUAL_COUNT)}
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "arrivals"
        raise InvalidRequestError(f"{field} is {first['input']!r}: {first['msg']}") from error
