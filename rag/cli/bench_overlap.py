"""`rag bench overlap`: its options."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import BenchPassages, CorpusOption, WorkDir, measure_and_publish, output_option
from rag.cli.options import AsJson

__all__ = ["overlap"]

STAGES = {"ingest": "documents", "read ahead": "passages", "measure": "questions"}


def overlap(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    corpus: CorpusOption = "python-topics",
    questions: Annotated[int, typer.Option(min=1, help="Questions, each asked with and without.")] = 20,
    k: BenchPassages = 6,
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
    work_dir: WorkDir = None,
    output: Annotated[Path | None, output_option("overlap")] = None,
    as_json: AsJson = False,
) -> None:
    """What it saves to begin with a search's candidates before the search has ended, and what embedding costs then.

    Reads the whole corpus ahead at the first run, which takes minutes and disk space.
    """
    from rag.bench.overlap import OverlapBenchConfig, render, run

    bench = OverlapBenchConfig(corpus=corpus, questions=questions, k=k, work_dir=work_dir, seed=seed)
    measure_and_publish(context, "overlap", STAGES, partial(run, bench=bench), render, output=output, as_json=as_json)
