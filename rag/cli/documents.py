"""`rag documents`: list, show and delete documents of a collection."""

from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.options import AsJson, CollectionOption, config_of
from rag.cli.output import mebibytes, number, print_json, print_table, printable

if TYPE_CHECKING:
    from rag.schemas import Purge

__all__ = ["app"]

app = typer.Typer(help="List, show and delete documents.", no_args_is_help=True)

DocumentId = Annotated[str, typer.Argument(metavar="ID", help="Its id, as `rag documents list` shows it.")]


@app.command("list")
def list_documents(context: typer.Context, collection: CollectionOption = "default", as_json: AsJson = False) -> None:
    """List the documents of a collection."""
    from rag.connect import connect

    with connect(config_of(context)) as operations:
        found = operations.documents(collection)
    if as_json:
        print_json([info.model_dump(mode="json") for info in found])
        return
    rows = [(i.id, i.title, number(i.passages), number(i.tokens), i.uri) for i in found]
    print_table(("id", "title", "passages", "tokens", "uri"), rows)


@app.command("show")
def show(
    context: typer.Context, document_id: DocumentId, collection: CollectionOption = "default", as_json: AsJson = False
) -> None:
    """Show a document and the passages that it was cut into."""
    from rag.connect import connect

    with connect(config_of(context)) as operations:
        document = operations.document(collection, document_id)
    if as_json:
        print_json(document)
        return
    print_table(("", document.title), list(document.model_dump(exclude={"title", "passage_list"}).items()))
    for passage in document.passage_list:
        where = " > ".join(passage.heading_path)
        page = f" · page {passage.page}" if passage.page is not None else ""
        place = f"{page} · characters {passage.start}-{passage.end} · {passage.tokens} tokens"
        print(printable(f"\n[{passage.label}] {where}{place}\n{passage.text}"))


@app.command("delete")
def delete(
    context: typer.Context,
    document_id: DocumentId,
    collection: CollectionOption = "default",
    purge: Annotated[
        bool, typer.Option("--purge", help="Wait until no copy of its KV is left in memory and on disk, and check it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a document; searches that start later do not see it."""
    from rag.connect import connect

    with connect(config_of(context)) as operations:
        document = operations.delete_document(collection, document_id, purge=purge)
    if as_json:
        print_json(document)
        return
    print(printable(f"deleted {document.title!r} ({document.uri}): {document.passages} passages"))
    if document.purge is not None:
        _tell_purge(document.purge)


def _tell_purge(purge: "Purge") -> None:
    on_disk = (
        f"{purge.records} records erased from disk, and none of their keys is left in the "
        f"{mebibytes(purge.scanned_bytes)} of the KV store"
        if purge.scanned_bytes
        else "nothing of it was stored"
    )
    print(f"purged the KV of {purge.passages} passages: {on_disk}")
    for kept in purge.kept:
        print(printable(f"kept the KV of passage {kept.passage_id}: {kept.same_as_uri} has one of the same tokens"))
