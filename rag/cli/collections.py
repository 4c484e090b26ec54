"""`rag collections`: list, show and delete collections."""

from typing import Annotated

import typer

from rag.cli.options import AsJson, config_of
from rag.cli.output import number, print_json, print_table

__all__ = ["app"]

app = typer.Typer(help="List, show and delete collections; on its own it lists them.")

Name = Annotated[str, typer.Argument(help="Its name.")]


@app.callback(invoke_without_command=True)
def _list_by_default(context: typer.Context, as_json: AsJson = False) -> None:
    if context.invoked_subcommand is None:
        list_collections(context, as_json)
    elif as_json:
        raise typer.BadParameter(f"put --json after {context.invoked_subcommand!r}")


@app.command("list")
def list_collections(context: typer.Context, as_json: AsJson = False) -> None:
    """List every collection."""
    from rag.connect import connect

    with connect(config_of(context)) as operations:
        found = operations.collections()
    if as_json:
        print_json([info.model_dump(mode="json") for info in found])
        return
    rows = [(i.name, number(i.documents), number(i.passages), i.embedder or "", i.created_at) for i in found]
    print_table(("name", "documents", "passages", "embedder", "created"), rows)


@app.command("show")
def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show a collection with its settings."""
    from rag.connect import connect

    with connect(config_of(context)) as operations:
        info = operations.collection(name)
    if as_json:
        print_json(info)
        return
    print_table(("", name), list(info.model_dump(exclude={"name"}).items()))


@app.command("delete")
def delete(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a collection with everything in it."""
    from rag.connect import connect

    with connect(config_of(context)) as operations:
        info = operations.collection(name)
        if not yes:
            typer.confirm(f"Delete {name!r} with its {info.documents} documents?", abort=True, err=True)
        operations.delete_collection(name)
    if as_json:
        print_json(info)
        return
    print(f"deleted collection {name!r}: {info.documents} documents, {info.passages} passages")
