"""`rag bench drafts`: its options."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import AnswerTokens, CorpusOption, listed, measure_and_publish, output_option
from rag.cli.options import AsJson

__all__ = ["drafts"]

STAGES = {"measure": "answers"}


def drafts(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    kinds: Annotated[
        str, typer.Option(help="Prompts, with commas: copy, quote, question, story, sampled story. Default: all.")
    ] = "",
    prompts: Annotated[int, typer.Option(help="How many of each kind.")] = 8,
    batch: Annotated[int, typer.Option(help="Prompts answered at once.")] = 1,
    max_tokens: AnswerTokens = 128,
    repeats: Annotated[int, typer.Option(help="Measurements with and without drafts.")] = 3,
    corpus: CorpusOption = "python-topics",
    seed: Annotated[int, typer.Option(help="Of prompts and sampled answers.")] = 0,
    output: Annotated[Path | None, output_option("drafts")] = None,
    as_json: AsJson = False,
) -> None:
    """How much faster answers are with drafts: where they quote their passages, and where they do not.

    The same prompts are answered with and without drafts by turns; only the time after the first token counts.
    """
    from rag.bench.drafts import DraftsBenchConfig, run
    from rag.bench.drafts_report import render

    bench = DraftsBenchConfig(
        corpus=corpus,
        kinds=listed(kinds),
        prompts=prompts,
        batch=batch,
        max_tokens=max_tokens,
        repeats=repeats,
        seed=seed,
    )
    measure_and_publish(context, "drafts", STAGES, partial(run, bench=bench), render, output=output, as_json=as_json)
