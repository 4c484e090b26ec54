"""`rag bench trace`: its options."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import exit_unless_complete, listed, measure_and_publish, output_option
from rag.cli.options import AsJson

__all__ = ["trace"]

STAGES = {
    "text": "laying text over the trace",
    "load": "loading the model",
    "fill": "reading the passages",
    "simulate": "simulating",
    "measure": "measuring",
    "check": "simulating the same",
}


def trace(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--trace", help="Folder of a RAGPulse trace.")],
    reuse: Annotated[str, typer.Option(help="exact, chunk, or both with a comma.")] = "chunk",
    order: Annotated[str, typer.Option(help="score, cache, or both with a comma.")] = "score",
    policy: Annotated[str, typer.Option(help="lru, lfu, pgdsf, or several with commas.")] = "lru",
    device_tokens: Annotated[
        str, typer.Option(help="What the device holds: tokens, a share of the distinct ones (10%), unbounded; commas.")
    ] = "unbounded",
    limit: Annotated[int | None, typer.Option(help="Requests at most. Default: all.")] = None,
    first: Annotated[int, typer.Option(help="Requests to leave out at the beginning.")] = 0,
    repair: Annotated[
        int | None,
        typer.Option(help="Tokens that chunk reuse computes at a shifted passage's head. Default: the certified ones."),
    ] = None,
    store: Annotated[bool, typer.Option(help="Passages are on disk before the first request.")] = True,
    simulate: Annotated[bool, typer.Option("--simulate", help="Run the bookkeeping alone, without a model.")] = False,
    output: Annotated[Path | None, output_option("trace")] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where passages are stored meanwhile. Default: in your cache.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How much of a recorded week of questions is found cached, and when their first tokens come.

    Recorded requests are ids and lengths: real text of the same lengths is laid over them. One request comes after the
    other, each for one token. Without --simulate the engine answers them, and must find what the simulation finds.
    Chunk reuse needs no certificate here: its hits and times are measured, not its answers. The exit code is 1 when a
    self-check fails.
    """
    from rag.bench.trace import TraceBenchConfig, run
    from rag.bench.trace_table import render

    bench = TraceBenchConfig(
        trace=folder,
        reuse=listed(reuse),
        order=listed(order),
        policy=listed(policy),
        device_tokens=listed(device_tokens),
        first=first,
        limit=limit,
        repair=repair,
        store=store,
        simulate=simulate,
        work_dir=work_dir,
    )
    report = measure_and_publish(
        context, "trace", STAGES, partial(run, bench=bench), render, output=output, as_json=as_json
    )
    exit_unless_complete(report.problems, interrupted=report.interrupted)
