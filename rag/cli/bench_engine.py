"""`rag bench engine`: its options."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import exit_unless_complete, listed, measure_and_publish, output_option, python_of
from rag.cli.options import AsJson

__all__ = ["engine"]

STAGES = {
    "serve": "starting the server",
    "load": "loading the model",
    "machine": "measuring the machine",
    "peers": "starting the peers",
    "cases": "measuring the cases",
    "beside": "measuring beside a decode step",
}


def engine(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    only: Annotated[
        str, typer.Option(help="Parts, with commas: prefill, warm, decode, shared, overhead, search, serve.")
    ] = "",
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Run the same on openvino, llamacpp, transformers, vllm or a server's URL. Repeatable."),
    ] = None,
    peer_python: Annotated[
        list[str] | None,
        typer.Option(help="The Python that has the peers, or NAME=PATH for one of them. Default: this one."),
    ] = None,
    gguf: Annotated[Path | None, typer.Option(help="For the peers that read one. Default: the model's own.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute mode of the engine.")] = None,
    weights: Annotated[str | None, typer.Option(help="Weights of rows whose KV is not published.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Sequences of the decode cases. Repeatable.")] = None,
    ctx: Annotated[
        list[int] | None, typer.Option("--context", help="Tokens before each sequence's next. Repeatable.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Measurements of each case.")] = 5,
    tokens: Annotated[int, typer.Option(help="Decode steps timed a repeat.")] = 16,
    kv_gib: Annotated[float | None, typer.Option(help="Memory for KV. Default: what the cases need.")] = None,
    skip_serve: Annotated[bool, typer.Option("--skip-serve", help="Do not start `rag serve`.")] = False,
    seed: Annotated[int, typer.Option(help="Of token ids and of the order of turns.")] = 0,
    output: Annotated[Path | None, output_option("engine")] = None,
    as_json: AsJson = False,
) -> None:
    """Time the engine beside what the machine allows, and beside other engines.

    First the machine is measured: GEMM by rows, a single row, read bandwidth. Then every case is printed with its floor
    (operations over the measured peak, or bytes over the measured bandwidth) and how many times longer it takes. Peers
    run the same prompts in the same run, in turn with ours. Ctrl-C ends the cases and keeps what is complete.
    """
    from rag.bench.engine import run
    from rag.bench.engine_config import PARTS, EngineBenchConfig
    from rag.bench.engine_table import render

    parts = listed(only)
    if skip_serve:
        parts = tuple(part for part in parts or PARTS if part != "serve")
    bench = EngineBenchConfig(
        only=parts,
        peers=tuple(peer or ()),
        peer_pythons=tuple(python_of(text) for text in peer_python or ()),
        gguf=gguf,
        dtype=dtype,
        weights=weights,
        batches=tuple(batch or ()),
        contexts=tuple(ctx or ()),
        repeats=repeats,
        tokens=tokens,
        kv_gib=kv_gib,
        seed=seed,
    )
    report = measure_and_publish(
        context, "engine", STAGES, partial(run, bench=bench), render, output=output, as_json=as_json
    )
    exit_unless_complete(report.problems, interrupted=report.interrupted)
