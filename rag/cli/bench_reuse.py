"""`rag bench reuse`: its options."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import exit_unless_complete, listed, measure_and_publish, output_option
from rag.cli.options import AsJson

__all__ = ["reuse"]

STAGES = {
    "cases": "first tokens",
    "endurance": "new orders",
    "precompute": "reading passages",
    "disk": "loading from the disk",
}


def reuse(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    only: Annotated[str, typer.Option(help="Parts, with commas: cases, endurance, precompute, disk.")] = "",
    passages: Annotated[str, typer.Option(help="Numbers of passages in a prompt.")] = "1,2,4,6,8,16",
    lengths: Annotated[str, typer.Option(help="Of passages, in tokens.")] = "64,256,1024",
    repairs: Annotated[
        str,
        typer.Option(
            help="Tokens computed at the head of each passage but the first. Default: 0, 16, 32 and the certified ones."
        ),
    ] = "",
    batches: Annotated[int, typer.Option(help="New orders of the same passages, for endurance.")] = 50,
    repeats: Annotated[int, typer.Option(help="Measurements of everything else.")] = 5,
    seed: Annotated[int, typer.Option(help="Of token ids, orders and turns.")] = 0,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where passages are stored meanwhile. Default: in your cache.")
    ] = None,
    output: Annotated[Path | None, output_option("reuse")] = None,
    as_json: AsJson = False,
) -> None:
    """How much sooner the first token comes over passages that were read before, in any order.

    Beside full prefill by the same engine, and beside as many new tokens after one cached prefix. Then what becomes of
    it over many new orders, how fast ingestion reads passages, and what loading from the disk takes. Chunk reuse needs
    no certificate here: its times are measured, not its answers.
    """
    from rag.bench.reuse import ReuseBenchConfig, run
    from rag.bench.reuse_table import render

    bench = ReuseBenchConfig(
        only=listed(only),
        passages=_numbers("passages", passages),
        lengths=_numbers("lengths", lengths),
        repairs=_numbers("repairs", repairs),
        batches=batches,
        repeats=repeats,
        seed=seed,
        work_dir=work_dir,
    )
    report = measure_and_publish(
        context, "reuse", STAGES, partial(run, bench=bench), render, output=output, as_json=as_json
    )
    exit_unless_complete((), interrupted=report.interrupted)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in listed(text))
    except ValueError as error:
        raise typer.BadParameter(f"{name} is {text!r}; give whole numbers with commas") from error
