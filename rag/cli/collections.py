"""`rag collections`: make, list, show, change and delete collections."""

from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.failures import validated
from rag.cli.options import AsJson, config_of
from rag.cli.output import number, print_json, print_table, printable

if TYPE_CHECKING:
    from rag.schemas import Answering, CollectionInfo

__all__ = ["app"]

app = typer.Typer(help="Make, list, show, change and delete collections; on its own it lists them.")

Name = Annotated[str, typer.Argument(help="Its name.")]
AnswerK = Annotated[int | None, typer.Option("-k", "--top-k", min=1, max=100, help="Passages to retrieve.")]
AnswerTokens = Annotated[int | None, typer.Option("--max-tokens", help="Length of a generated answer at most.")]
AnswerReuse = Annotated[str | None, typer.Option("--reuse", metavar="auto|exact|chunk", help="Which KV may serve.")]
AnswerOrder = Annotated[str | None, typer.Option("--order", metavar="score|cache", help="Of passages in the prompt.")]
AnswerSystem = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="System message; every passage is then read anew.")
]


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


@app.command("create")
def create(
    context: typer.Context,
    name: Name,
    *,
    passage_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens of a passage's text at most.")] = None,
    overlap_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens that neighbours share.")] = None,
    index: Annotated[str | None, typer.Option(metavar="FACTORY", help="FAISS index, such as HNSW32.")] = None,
    k: AnswerK = None,
    max_tokens: AnswerTokens = None,
    reuse: AnswerReuse = None,
    order: AnswerOrder = None,
    system: AnswerSystem = None,
    as_json: AsJson = False,
) -> None:
    """Make an empty collection with settings of its own."""
    from rag.connect import connect
    from rag.schemas import NewCollection, Splitting

    given = {"passage_tokens": passage_tokens, "overlap_tokens": overlap_tokens, "index_factory": index}
    splitting = validated(Splitting, **{key: value for key, value in given.items() if value is not None})
    answering = _answering(k=k, max_tokens=max_tokens, reuse=reuse, order=order, system=system)
    wanted = validated(NewCollection, name=name, settings=splitting, answering=answering)
    with connect(config_of(context)) as operations:
        info = operations.create_collection(wanted)
    _tell(info, "made", as_json=as_json)


@app.command("set")
def set_answering(
    context: typer.Context,
    name: Name,
    *,
    k: AnswerK = None,
    max_tokens: AnswerTokens = None,
    reuse: AnswerReuse = None,
    order: AnswerOrder = None,
    system: AnswerSystem = None,
    as_json: AsJson = False,
) -> None:
    """Change how questions over a collection are answered where they do not say."""
    from rag.connect import connect
    from rag.schemas import CollectionPatch

    answering = _answering(k=k, max_tokens=max_tokens, reuse=reuse, order=order, system=system)
    if not answering.model_fields_set:
        raise typer.BadParameter("name a setting to change, such as -k or --system")
    with connect(config_of(context)) as operations:
        info = operations.update_collection(name, CollectionPatch(answering=answering))
    _tell(info, "changed", as_json=as_json)


def _answering(*, system: str | None, **given: int | str | None) -> "Answering":
    from rag.schemas import Answering, Template

    fields: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if system is not None:
        fields["prompt"] = validated(Template, system=system)
    return validated(Answering, **fields)


def _tell(info: "CollectionInfo", done: str, *, as_json: bool) -> None:
    if as_json:
        print_json(info)
        return
    settings = info.answering.model_dump(exclude_none=True)
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(printable(f"{done} collection {info.name!r}: {said or 'answers as the server says'}"))


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
