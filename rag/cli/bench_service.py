"""`rag bench service`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import (
    AnswerTokens,
    BenchPassages,
    CorpusOption,
    WorkDir,
    exit_unless_complete,
    listed,
    measure_and_publish,
    output_option,
)
from rag.cli.options import AsJson

__all__ = ["service"]

STAGES = {
    "ingest": "ingesting the corpus",
    "overhead": "warm answers over HTTP",
    "fairness": "questions beside a flood",
    "soak": "seconds of the soak",
}


def service(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    only: Annotated[str, typer.Option(help="Parts, with commas: overhead, fairness, soak. Default: all.")] = "",
    corpus: CorpusOption = "python-topics",
    k: BenchPassages = 4,
    max_tokens: AnswerTokens = 48,
    questions: Annotated[int, typer.Option(min=1, help="Of each kind.")] = 20,
    flood: Annotated[int, typer.Option(min=1, help="Requests of one key that are always on their way.")] = 50,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the soak, at once.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="How long the soak lasts.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
    work_dir: WorkDir = None,
    output: Annotated[Path | None, output_option("service")] = None,
    as_json: AsJson = False,
) -> None:
    """What HTTP costs, whether a flood of one key makes another wait, and what many rude clients leave behind.

    Starts servers of its own. The exit code is 1 when a condition does not hold.
    """
    from rag.bench.service import ServiceBenchConfig, run
    from rag.bench.service_report import render

    bench = ServiceBenchConfig(
        only=listed(only),
        corpus=corpus,
        k=k,
        max_tokens=max_tokens,
        questions=questions,
        flood=flood,
        clients=clients,
        seconds=seconds,
        work_dir=work_dir,
        seed=seed,
    )
    report = measure_and_publish(
        context,
        "service",
        STAGES,
        lambda config, progress: run(config, bench, progress),
        render,
        output=output,
        as_json=as_json,
    )
    exit_unless_complete(report.problems, interrupted=False)
