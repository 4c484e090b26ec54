"""`rag bench fidelity`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import bench_progress, prepare_report, publish_report
from rag.cli.options import AsJson, config_of

__all__ = ["fidelity"]

STAGES = {"ingest": "ingesting the corpus", "measure": "answers"}


def fidelity(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    questions: Annotated[int, typer.Option(help="How many.")] = 12,
    corpus: Annotated[str, typer.Option(help="python-topics or python-stdlib.")] = "python-topics",
    k: Annotated[int, typer.Option("-k", "--top-k", help="Passages a question.")] = 2,
    max_tokens: Annotated[int, typer.Option(help="Length of an answer at most.")] = 48,
    dtype: Annotated[str, typer.Option(help="Compute modes, with commas.")] = "float32,bfloat16,float16,int8",
    weights: Annotated[str, typer.Option(help="Weights of the answers' rows, with commas.")] = "full,int8",
    seed: Annotated[int, typer.Option(help="Of the questions and the intervals.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Report with every measurement. Default: bench-results/fidelity-TIME.json.")
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where the benchmark keeps its collections. Default: in your cache.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How far each way to compute is from float32: KL of the next-token distributions, and the top tokens.

    The reference (float32, reference kernels) answers questions over the corpus greedily; every choice of compute mode
    and weights is then made to give the same answers, token by token, through the engine.
    """
    from rag.bench.fidelity import FidelityBenchConfig, run
    from rag.bench.fidelity_table import render

    bench = FidelityBenchConfig(
        corpus=corpus,
        questions=questions,
        k=k,
        max_tokens=max_tokens,
        dtypes=_listed(dtype),
        weights=_listed(weights),
        seed=seed,
        work_dir=work_dir,
    )
    config = config_of(context)
    path = prepare_report(output, "fidelity")
    with bench_progress(STAGES) as progress:
        report = run(config, bench, progress)
    publish_report(report, render(report), path, as_json=as_json)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
