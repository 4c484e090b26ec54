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
MADE_UP = frozenset(("seed", "k", "length", "pool", "skew", "question_tokens", "output_tokens"))
USED = {  # by kind, of the options that not every kind uses
    "questions": {"seed", "k", "pool", "skew", "output_tokens", "corpus"},
    "documents": MADE_UP,
    "passages": MADE_UP,
    "fusion": MADE_UP,
    "orders": MADE_UP,
    "conversations": MADE_UP | {"turns"},
    "ragpulse": {"path", "first", "output_tokens"},
    "file": {"path", "first", "k", "output_tokens"},  # those two where the file does not know them
}
ARRIVALS = {"rate": {"poisson", "bursty"}, "cv": {"bursty"}, "clients": {"closed"}, "scale": {"recorded"}}

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
    seed: Annotated[int | None, typer.Option(help="Of every draw. Default: 0.")] = None,
    k: Annotated[int | None, typer.Option("-k", "--top-k", min=1, help="Passages a request.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a passage.")] = None,
    pool: Annotated[int | None, typer.Option(min=1, help="Distinct passages or questions to draw from.")] = None,
    skew: Annotated[float | None, typer.Option(min=0, help="Zipf exponent of their popularity.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="Of a conversation. Default: 4.")] = None,
    question_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a question without words. Default: 32.")
    ] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer. Default: 16.")] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="What questions are about: python-topics (default), python-stdlib, or a folder."),
    ] = None,
    path: Annotated[Path | None, typer.Option(help="The saved workload, or the folder of a RAGPulse trace.")] = None,
    first: Annotated[
        int | None, typer.Option(min=0, help="Requests of a file or trace to leave out at the beginning. Default: 0.")
    ] = None,
    arrivals: Annotated[
        str | None, typer.Option(help="turns, closed, poisson, bursty, or recorded. Default: turns, or the file's own.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second, for poisson and bursty.")] = None,
    cv: Annotated[
        float | None, typer.Option(help="Coefficient of variation of the gaps, for bursty. Default: 3.")
    ] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="That ask at once, for closed. Default: 1.")] = None,
    scale: Annotated[float | None, typer.Option(help="Recorded times are multiplied by it. Default: 1.")] = None,
    save: Annotated[Path | None, typer.Option(dir_okay=False, help="Save the workload to this file.")] = None,
    work_dir: WorkDir = None,
    as_json: AsJson = False,
) -> None:
    """Draw a workload, say what it is like, and save it for `rag bench run workload --workload FILE`.

    The same options draw the same requests: equal digests are equal prompts, times and lengths. Options that are not
    given are the kind's own; one that the kind or its arrivals do not use is refused. Nothing is answered.
    """
    from rag.bench.suite.description import describe, render
    from rag.bench.suite.drawing import draw, save_workload
    from rag.bench.suite.prompts import make_stream

    timing = {"kind": arrivals, "rate": rate, "cv": cv, "clients": clients, "scale": scale}
    shape = {"k": k, "length": length, "pool": pool, "skew": skew, "turns": turns, "corpus": corpus, "seed": seed}
    lengths = {"question_tokens": question_tokens, "output_tokens": output_tokens}
    place = {"path": None if path is None else str(path), "first": first}
    spec = _spec(kind, count, _given({**shape, **lengths, **place}), _given(timing))
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


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _spec(kind: str, count: int | None, settings: Mapping[str, Any], timing: Mapping[str, Any]) -> "WorkloadSpec":
    """Make the workload of the options that are given; a file's own requests and times stand otherwise.

    Raises:
        InvalidRequestError: a value that cannot work, or an option that is not used.
        DataError: the file cannot be read.
    """
    from pydantic import ValidationError

    from rag.bench.suite.drawing import saved_spec
    from rag.bench.suite.experiment import Arrivals, WorkloadSpec
    from rag.errors import InvalidRequestError

    _refuse_unused(kind, settings, timing)
    saved = saved_spec(Path(settings["path"])) if kind == "file" and "path" in settings else None
    try:
        arrivals = saved.arrivals if saved and not timing else Arrivals.model_validate(timing)
        usual = saved.count if saved else USUAL_COUNT
        return WorkloadSpec.model_validate({**settings, "kind": kind, "arrivals": arrivals, "count": count or usual})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "arrivals"
        raise InvalidRequestError(f"{field} is {first['input']!r}: {first['msg']}") from error


def _refuse_unused(kind: str, settings: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
    """Refuse options that would change nothing; kinds that there are not are refused elsewhere.

    Raises:
        InvalidRequestError: the first of them.
    """
    from rag.errors import InvalidRequestError

    for name, kinds in ARRIVALS.items():
        if name in timing and timing.get("kind") not in kinds:
            needed = " or ".join(sorted(kinds))
            raise InvalidRequestError(
                f"--{name} changes nothing without --arrivals {needed}: add that, or leave it out"
            )
    used = USED.get(kind, set(settings))
    if timing.get("kind") in ARRIVALS["rate"]:
        used = used | {"seed"}  # of the times
    for name in settings:
        if name not in used:
            option = "top-k" if name == "k" else name.replace("_", "-")
            raise InvalidRequestError(f"--{option} changes nothing for {kind}: leave it out")
