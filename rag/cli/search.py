"""`rag search`: passages without an answer; the language model is not loaded."""

from typing import Annotated

import typer

from rag.cli.conditions import WhereOption, parse_where
from rag.cli.failures import validated
from rag.cli.options import AsJson, CollectionOption, Passages, config_of
from rag.cli.output import print_json, print_sources, waiting

__all__ = ["search"]


def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    collection: CollectionOption = "default",
    k: Passages = None,
    where: WhereOption = None,
    as_json: AsJson = False,
) -> None:
    """Find passages in a collection."""
    from rag.connect import connect
    from rag.schemas import SearchRequest

    request = validated(SearchRequest, query=query, collection=collection, k=k, where=parse_where(where))
    with connect(config_of(context)) as operations, waiting("searching"):
        result = operations.search(request)
    if as_json:
        print_json(result)
    elif result.results:
        print_sources(result.results, text=True)
    else:
        print(f"collection {collection!r} has no passages" + (" that fit" if where else ""))
