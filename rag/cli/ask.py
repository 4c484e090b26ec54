"""`rag ask`: a question, its answer as it is written, sources, and what the cache saved."""

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.conditions import WhereOption, parse_where
from rag.cli.failures import validated
from rag.cli.options import AsJson, CollectionOption, Passages, config_of
from rag.cli.output import cache_summary, print_json, print_sources, printable, waiting

if TYPE_CHECKING:
    from rag.operations import Operations
    from rag.schemas import Answer, AnswerRequest

__all__ = ["ask", "show_answer"]


def ask(  # noqa: PLR0917 - typer declares options as parameters
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="What to answer.")],
    collection: CollectionOption = "default",
    k: Passages = None,
    where: WhereOption = None,
    max_tokens: Annotated[int | None, typer.Option(help="Length of the generated answer at most.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    sample_top_k: Annotated[int, typer.Option(help="Sample among so many tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the tokens that reach this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    extractive: Annotated[
        bool | None,
        typer.Option("--extractive/--no-extractive", help="Quote the best sentence when the answer cites nothing."),
    ] = None,
    reuse: Annotated[
        str | None, typer.Option(metavar="auto|exact|chunk", help="Which cached KV of passages may serve.")
    ] = None,
    order: Annotated[
        str | None, typer.Option(metavar="score|cache", help="Passages by score, or as they hit the cache best.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question from a collection."""
    from rag.connect import connect
    from rag.schemas import AnswerRequest

    request = validated(
        AnswerRequest,
        question=question,
        collection=collection,
        k=k,
        where=parse_where(where),
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=sample_top_k,
        top_p=top_p,
        seed=seed,
        extractive=extractive,
        reuse=reuse,
        order=order,
    )
    with connect(config_of(context)) as operations:
        answer = show_answer(operations, request, quiet=as_json)
    if as_json:
        print_json(answer)
        return
    print("\nSources")
    print_sources(answer.sources)
    print(f"\n{cache_summary(answer)}")


def show_answer(operations: "Operations", request: "AnswerRequest", *, quiet: bool = False) -> "Answer":
    """Stream an answer to stdout, unless `quiet`, and return it; warnings go to stderr."""
    with ExitStack() as until_first_text:
        until_first_text.enter_context(waiting("reading"))
        for event in operations.answer(request):
            if event.type == "retrieval":
                for warning in event.warnings:
                    print(printable(f"WARNING: {warning}"), file=sys.stderr)
            elif event.type == "delta" and not quiet:
                until_first_text.close()
                print(printable(event.text), end="", flush=True)
            elif event.type == "done":
                answer = event.answer
    if not quiet:
        print()
    return answer
