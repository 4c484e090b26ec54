"""`rag demo`: from nothing to two cited answers, the second over passages that were already read."""

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from rag.cli.ask import show_answer
from rag.cli.ingest import corpus_sources, describe
from rag.cli.options import AsJson, config_of
from rag.cli.output import cache_summary, ingest_progress, print_json, print_sources, print_table, waiting

if TYPE_CHECKING:
    from rag.operations import Operations
    from rag.schemas import Answer

__all__ = ["QUESTIONS", "demo"]

COLLECTION = "python-topics"
# The two find the same passages, in the same order.
QUESTIONS = ("What does the with statement do?", "How do I use the with statement?")


def demo(context: typer.Context, as_json: AsJson = False) -> None:
    """Ingest Python's help topics, then ask two questions over the same passages and compare."""
    from rag.connect import connect
    from rag.schemas import AnswerRequest

    with connect(config_of(context)) as operations:
        _ingest(operations, quiet=as_json)
        _warm_up(operations)
        answers: list[Answer] = []
        for question in QUESTIONS:
            if not as_json:
                print(f"\nQuestion: {question}\n")
            request = AnswerRequest(question=question, collection=COLLECTION)
            answers.append(show_answer(operations, request, quiet=as_json))
            if not as_json:
                print("\nSources")
                print_sources(answers[-1].sources)
                print(f"\n{cache_summary(answers[-1])}")
    if as_json:
        print_json([answer.model_dump(mode="json") for answer in answers])
        return
    _compare(answers)
    print(
        f"\nNext:  rag ask -c {COLLECTION} 'What is a lambda expression?'"
        "\n       rag ingest FOLDER && rag ask 'A question about your documents'"
        "\n       rag serve        (then every command uses the running server and its cache)"
        "\n       rag bench run quick"
    )


def _ingest(operations: "Operations", *, quiet: bool) -> None:
    with ExitStack() as stack:
        progress = stack.enter_context(ingest_progress())
        report = operations.ingest(COLLECTION, corpus_sources("python-topics"), progress=progress)
    print(f"{COLLECTION}: {describe(report)}", file=sys.stderr if quiet else sys.stdout)


def _warm_up(operations: "Operations") -> None:
    """Load the models and run them once on something else, so that both questions are measured alike."""
    from rag.service import Service

    if isinstance(operations, Service):
        with waiting("loading the models"):
            operations.warm_up()


def _compare(answers: "list[Answer]") -> None:
    first, second = answers
    read = {passage.passage_id for passage in first.cache.passages}
    shared = sum(passage.passage_id in read for passage in second.cache.passages)
    rows = [
        ("prompt tokens", first.usage.prompt_tokens, second.usage.prompt_tokens),
        ("of them from cache", first.usage.cached_tokens, second.usage.cached_tokens),
        ("time to first token, ms", f"{first.timings_ms.ttft:.0f}", f"{second.timings_ms.ttft:.0f}"),
        ("of it computing the prompt, ms", f"{first.timings_ms.prefill:.0f}", f"{second.timings_ms.prefill:.0f}"),
    ]
    print()
    print_table(("", "first question", "second question"), rows)
    print(f"\n{shared} of the second question's {len(second.cache.passages)} passages were read for the first one.")
    if first.usage.cached_tokens > len(read):
        print("The first question had cached tokens too: passages had been read before, and their KV was kept.")
