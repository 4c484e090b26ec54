"""`rag bench prefix`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import INTERRUPTED, bench_progress, prepare_report, publish_report
from rag.cli.failures import FAILED
from rag.cli.options import AsJson, config_of

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
    config = config_of(context)
    path = prepare_report(output, "prefix")
    with bench_progress(STAGES) as progress:
        report = run(config, bench, progress)
    publish_report(report, render(report), path, as_json=as_json)
    if report.problems:
        raise typer.Exit(FAILED)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
