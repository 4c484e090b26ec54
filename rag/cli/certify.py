"""`rag certify`: its options."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rag.cli.bench_output import INTERRUPTED, AnswerTokens, WorkDir, listed, measure_and_publish, output_option
from rag.cli.failures import FAILED
from rag.cli.options import AsJson, CollectionOption

__all__ = ["certify"]

STAGES = {
    "ingest": "ingesting the corpus", "retrieve": "retrieving passages",
    "screening": "questions that choose the repair", "confirmation": "fresh questions",
}  # fmt: skip


def certify(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    collection: CollectionOption = "default",
    corpus: Annotated[
        str | None, typer.Option(help="A built-in corpus instead: python-topics or python-stdlib.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="File with a question a line. Default: made from the collection's passages.")
    ] = None,
    sets: Annotated[int, typer.Option(help="Questions that choose the repair; as many fresh ones confirm it.")] = 64,
    k: Annotated[str, typer.Option("--k", help="Passages a question, with commas.")] = "2,5,10",
    repairs: Annotated[str, typer.Option(help="Repairs to try, in tokens, with commas.")] = "0,16,32,64",
    max_tokens: AnswerTokens = 64,
    orders: Annotated[int, typer.Option(help="Random orders a set at most.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the questions, the orders and the intervals.")] = 0,
    answers: Annotated[bool, typer.Option("--answers", help="Score free answers, too: token F1, gold texts.")] = False,
    no_template: Annotated[
        bool, typer.Option("--no-template", help="Make the reused KV without the template, to see it refused.")
    ] = False,
    output: Annotated[Path | None, output_option("certify")] = None,
    work_dir: WorkDir = None,
    as_json: AsJson = False,
) -> None:
    """Test whether reused KV may move answers no more than another order of the passages does; certify it if so.

    The model answers questions over the collection with full prefill; the answers are then forced, token by token,
    over the same passages in other orders, over reused KV, and over no passages. For each number of passages the
    smallest repair that passes is confirmed on fresh questions, and the certificate is written beside the model: from
    then on `auto` and `chunk` reuse KV at any position. Minutes to an hour. Ctrl-C loses nothing: the same command goes
    on where it ended. The exit code is 1 when no repair passes.
    """
    from rag.certify.config import CertifyConfig
    from rag.certify.run import run
    from rag.certify.table import render

    wanted = CertifyConfig(
        corpus=corpus,
        collection=collection,
        questions=questions,
        sets=sets,
        ks=_numbers("k", k),
        repairs=_numbers("repairs", repairs),
        max_tokens=max_tokens,
        orders=orders,
        seed=seed,
        answers=answers,
        template=not no_template,
        work_dir=work_dir,
    )
    try:
        report = measure_and_publish(
            context,
            "certify",
            STAGES,
            lambda config, progress: run(config, wanted, progress),
            render,
            output=output,
            as_json=as_json,
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the question that was not complete", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if not report.bands:
        raise typer.Exit(FAILED)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between.

    Raises:
        typer.BadParameter: one of them is none.
    """
    try:
        return tuple(int(part) for part in listed(text))
    except ValueError:
        raise typer.BadParameter(f"{name} is {text!r}; it must be whole numbers with commas between") from None
