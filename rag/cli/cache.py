"""`rag cache`: what a running server has in memory, and passages to read ahead, to keep, or to forget."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.options import AsJson, CollectionOption, config_of
from rag.cli.output import mebibytes, number, print_json, print_table, waiting

if TYPE_CHECKING:
    from rag.cache_operations import RemoteCache

__all__ = ["app"]

app = typer.Typer(
    help="Look into the cache of the running server; read passages ahead, keep them in memory, or forget them.",
    no_args_is_help=True,
)

DocumentOption = Annotated[
    str | None, typer.Option("--document", metavar="ID", help="Only this document, by its id in `rag documents list`.")
]


@app.callback()
def _group() -> None:
    """Look into the cache of the running server; read passages ahead, keep them in memory, or forget them."""


@app.command("stats")
def stats(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what the cache holds."""
    with _cache(context) as cache:
        found = cache.stats()
    if as_json:
        print_json(found)
        return
    size = found.block_bytes
    rows = [
        ("blocks", f"{number(found.blocks)} of {found.block_tokens} tokens ({mebibytes(found.blocks * size)})"),
        ("free", number(found.free_blocks)),
        ("cached", f"{number(found.cached_blocks)} ({mebibytes(found.cached_blocks * size)})"),
        ("pinned", number(found.pinned_blocks)),
        ("evicted since the start", number(found.evicted_blocks)),
        ("prompt tokens", f"{number(found.prompt_tokens)}, {number(found.cached_tokens)} of them from the cache"),
    ]
    if found.kv_store is not None:
        store = found.kv_store
        held = f"{number(store.records)} records, {mebibytes(store.bytes_stored)} of {mebibytes(store.bytes_budget)}"
        rows.append(("on disk", held))
    print_table(("", "the server's cache"), rows)
    if found.collections:
        print()
        kept = [(item.collection, mebibytes(item.bytes), number(item.pinned_passages)) for item in found.collections]
        print_table(("collection", "in memory", "pinned passages"), kept)


@app.command("warm")
def warm(
    context: typer.Context,
    collection: CollectionOption = "default",
    document: DocumentOption = None,
    as_json: AsJson = False,
) -> None:
    """Bring passages into memory, those found often first, as far as half of it goes."""
    with _cache(context) as cache, waiting("reading"):
        job = cache.warm(collection, document)
    if as_json:
        print_json(job)
    elif job.state == "succeeded":
        print(f"{collection}: {number(job.progress.done)} of {number(job.progress.total or 0)} passages are in memory")
    else:
        print(f"{collection}: {job.state}: {job.error or 'somebody has ended it'}", file=sys.stderr)
    if job.state != "succeeded":
        raise typer.Exit(1)


@app.command("pin")
def pin(
    context: typer.Context,
    collection: CollectionOption = "default",
    document: DocumentOption = None,
    as_json: AsJson = False,
) -> None:
    """Keep passages in memory until they are let go or deleted, or the server stops."""
    with _cache(context) as cache, waiting("reading"):
        pinned = cache.pin(collection, document)
    if as_json:
        print_json(pinned)
        return
    print(f"{collection}: {number(pinned.passages)} passages are kept in memory")
    if pinned.left_out:
        print(
            f"WARNING: there is no room for {number(pinned.left_out)} more: half of the memory may be kept so; "
            "raise the server's PREREAD_ENGINE__KV_CACHE_BYTES",
            file=sys.stderr,
        )


@app.command("unpin")
def unpin(
    context: typer.Context,
    collection: CollectionOption = "default",
    document: DocumentOption = None,
    as_json: AsJson = False,
) -> None:
    """Let passages go from memory when room is needed."""
    with _cache(context) as cache:
        unpinned = cache.unpin(collection, document)
    if as_json:
        print_json(unpinned)
    else:
        print(f"{collection}: {number(unpinned.passages)} passages may go from memory again")


@app.command("flush")
def flush(
    context: typer.Context,
    collection: CollectionOption = "default",
    document: DocumentOption = None,
    disk: Annotated[bool, typer.Option("--disk", help="On disk too: the passages are then computed anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget the KV of passages; they are read again when somebody asks."""
    with _cache(context) as cache:
        flushed = cache.flush(collection, document, from_disk=disk)
    if as_json:
        print_json(flushed)
    else:
        records = f", {number(flushed.records)} records removed from disk" if disk else ""
        print(f"{collection}: {number(flushed.blocks)} blocks freed{records}")


@contextmanager
def _cache(context: typer.Context) -> "Iterator[RemoteCache]":
    from rag.connect import connect_to_server

    with connect_to_server(config_of(context)) as client:
        yield client.cache
