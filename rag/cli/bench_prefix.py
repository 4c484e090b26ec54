"""`rag bench prefix`: its options."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import (
    AnswerTokens,
    BenchPassages,
    CorpusOption,
    WorkDir,
    exit_unless_complete,
    measure_and_publish,
    output_option,
)
from rag.cli.options import AsJson

__all__ = ["prefix"]

STAGES = {
    "ingest": "ingesting the corpus",
    "load": "loading the models",
    "fill": "filling the warm cache",
    "measure": "measuring",
}


def prefix(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    questions: Annotated[int, typer.Option(help="Length of the stream.")] = 30,
    corpus: CorpusOption = "python-topics",
    zipf_s: Annotated[float, typer.Option("--zipf", help="Exponent of the skew; 0 is none.")] = 1.0,
    popularity: Annotated[str, typer.Option(help="What the skew is over: question or document.")] = "question",
    k: BenchPassages = 4,
    max_tokens: AnswerTokens = 16,
    seed: Annotated[int, typer.Option(help="Of the stream and of the order of the modes.")] = 0,
    repeats: Annotated[int, typer.Option(help="Passes over the stream.")] = 1,
    workload: Annotated[Path | None, typer.Option(help="A saved stream to ask instead.")] = None,
    save_workload: Annotated[Path | None, typer.Option(help="Save the stream to this file.")] = None,
    output: Annotated[Path | None, output_option("prefix")] = None,
    work_dir: WorkDir = None,
    as_json: AsJson = False,
) -> None:
    """Time to first token with the cache off, cold and warm, over a skewed stream of questions.

    The corpus goes into a collection of the benchmark's own, not into your data directory. Ctrl-C ends the measurement
    and keeps what is complete. The exit code is 1 when a self-check fails.
    """
    from rag.bench.prefix import PrefixBenchConfig, run
    from rag.bench.table import render

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
    report = measure_and_publish(
        context, "prefix", STAGES, partial(run, bench=bench), render, output=output, as_json=as_json
    )
    exit_unless_complete(report.problems, interrupted=report.interrupted)
