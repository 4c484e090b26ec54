"""`rag bench drafts`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import bench_progress, prepare_report, publish_report
from rag.cli.options import AsJson, config_of

__all__ = ["drafts"]

STAGES = {"measure": "answers"}


def drafts(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    kinds: Annotated[
        str, typer.Option(help="Prompts, with commas: copy, quote, question, story, sampled story. Default: all.")
    ] = "",
    prompts: Annotated[int, typer.Option(help="How many of each kind.")] = 8,
    batch: Annotated[int, typer.Option(help="Prompts answered at once.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="Length of an answer at most.")] = 128,
    repeats: Annotated[int, typer.Option(help="Measurements with and without drafts.")] = 3,
    corpus: Annotated[str, typer.Option(help="python-topics or python-stdlib.")] = "python-topics",
    seed: Annotated[int, typer.Option(help="Of prompts and sampled answers.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Report with every measurement. Default: bench-results/drafts-TIME.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How much faster answers are with drafts: where they quote their passages, and where they do not.

    The same prompts are answered with and without drafts by turns; only the time after the first token counts.
    """
    from rag.bench.drafts import DraftsBenchConfig, run
    from rag.bench.drafts_report import render

    bench = DraftsBenchConfig(
        corpus=corpus,
        kinds=tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
        prompts=prompts,
        batch=batch,
        max_tokens=max_tokens,
        repeats=repeats,
        seed=seed,
    )
    config = config_of(context)
    path = prepare_report(output, "drafts")
    with bench_progress(STAGES) as progress:
        report = run(config, bench, progress)
    publish_report(report, render(report), path, as_json=as_json)
