"""`rag bench fidelity`: its options."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import (
    AnswerTokens,
    BenchPassages,
    CorpusOption,
    WorkDir,
    listed,
    measure_and_publish,
    output_option,
)
from rag.cli.options import AsJson

__all__ = ["fidelity"]

STAGES = {"ingest": "ingesting the corpus", "measure": "answers"}


def fidelity(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    questions: Annotated[int, typer.Option(help="How many.")] = 12,
    corpus: CorpusOption = "python-topics",
    k: BenchPassages = 2,
    max_tokens: AnswerTokens = 48,
    dtype: Annotated[str, typer.Option(help="Compute modes, with commas.")] = "float32,bfloat16,float16,int8",
    weights: Annotated[str, typer.Option(help="Weights of the answers' rows, with commas.")] = "full,int8",
    seed: Annotated[int, typer.Option(help="Of the questions and the intervals.")] = 0,
    output: Annotated[Path | None, output_option("fidelity")] = None,
    work_dir: WorkDir = None,
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
        dtypes=listed(dtype),
        weights=listed(weights),
        seed=seed,
        work_dir=work_dir,
    )
    measure_and_publish(context, "fidelity", STAGES, partial(run, bench=bench), render, output=output, as_json=as_json)
