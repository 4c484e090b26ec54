"""`rag cache`: what a running server has in memory, and passages to read ahead, to keep, or to forget."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.failures import FAILED, OK
from rag.cli.options import AsJson, CollectionOption, config_of
from rag.cli.output import mebibytes, number, print_json, print_table, waiting

if TYPE_CHECKING:
    from pydantic import BaseModel

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


@dataclass(frozen=True, slots=True)
class _Told:
    """What a command has done: for programs, and for people."""

    result: "BaseModel"
    message: str
    warning: str = ""
    code: int = OK


def _over_passages(name: str) -> "Callable[[Callable[[RemoteCache, str, str | None], _Told]], None]":
    """Make a command over the passages of a collection, or of one document of it."""

    def make(work: "Callable[[RemoteCache, str, str | None], _Told]") -> None:
        def command(
            context: typer.Context,
            collection: CollectionOption = "default",
            document: DocumentOption = None,
            as_json: AsJson = False,
        ) -> None:
            _tell(context, lambda cache: work(cache, collection, document), as_json=as_json)

        app.command(name, help=work.__doc__)(command)

    return make


def _tell(context: typer.Context, work: "Callable[[RemoteCache], _Told]", *, as_json: bool) -> None:
    with _cache(context) as cache, waiting("reading"):
        told = work(cache)
    if as_json:
        print_json(told.result)
    elif told.message:
        print(told.message)
    if told.warning and not as_json:
        print(told.warning, file=sys.stderr)
    if told.code != OK:
        raise typer.Exit(told.code)


@_over_passages("warm")
def _warm(cache: "RemoteCache", collection: str, document: str | None) -> _Told:
    """Bring passages into memory, those found often first, as far as half of it goes."""
    job = cache.warm(collection, document)
    if job.state == "succeeded":
        done, total = number(job.progress.done), number(job.progress.total or 0)
        return _Told(job, f"{collection}: {done} of {total} passages are in memory")
    return _Told(job, "", f"{collection}: {job.state}: {job.error or 'somebody has ended it'}", FAILED)


@_over_passages("pin")
def _pin(cache: "RemoteCache", collection: str, document: str | None) -> _Told:
    """Keep passages in memory until they are let go or deleted, or the server stops."""
    pinned = cache.pin(collection, document)
    warning = (
        f"WARNING: there is no room for {number(pinned.left_out)} more: half of the memory may be kept so; raise the "
        "server's PREREAD_ENGINE__KV_CACHE_BYTES"
    )
    message = f"{collection}: {number(pinned.passages)} passages are kept in memory"
    return _Told(pinned, message, warning if pinned.left_out else "")


@_over_passages("unpin")
def _unpin(cache: "RemoteCache", collection: str, document: str | None) -> _Told:
    """Let passages go from memory when room is needed."""
    unpinned = cache.unpin(collection, document)
    return _Told(unpinned, f"{collection}: {number(unpinned.passages)} passages may go from memory again")


@app.command("flush")
def flush(
    context: typer.Context,
    collection: CollectionOption = "default",
    document: DocumentOption = None,
    disk: Annotated[bool, typer.Option("--disk", help="On disk too: the passages are then computed anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget the KV of passages; they are read again when somebody asks."""

    def work(cache: "RemoteCache") -> _Told:
        flushed = cache.flush(collection, document, from_disk=disk)
        records = f", {number(flushed.records)} records removed from disk" if disk else ""
        return _Told(flushed, f"{collection}: {number(flushed.blocks)} blocks freed{records}")

    _tell(context, work, as_json=as_json)


@contextmanager
def _cache(context: typer.Context) -> "Iterator[RemoteCache]":
    from rag.connect import connect_to_server

    with connect_to_server(config_of(context)) as client:
        yield client.cache
