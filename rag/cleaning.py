"""Removes the KV of passages that have gone; where that is asked for, so that no copy of it is left."""

from contextlib import suppress
from functools import partial
from time import monotonic, sleep
from typing import TYPE_CHECKING

from engine.errors import EngineStoppedError
from rag.errors import PurgeError
from rag.living_store import namespace_of
from rag.schemas import KeptPassage, Purge
from retriever.errors import StoreError, UnknownCollectionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.engine import Engine
    from rag.components import Components
    from retriever.document import Document, Passage
    from retriever.records import Collection
    from retriever.retriever import Library

__all__ = ["clean", "drop_namespace", "outdate", "purge", "release_dead_pins"]

PATIENCE_SECONDS = 60.0  # for answers that run over a purged passage to end
POLL_SECONDS = 0.05


def clean(components: "Components") -> None:
    """Remove the KV of passages that have gone, where KV is stored; none of them stays pinned in memory."""
    release_dead_pins(components)
    if store := components.store():
        store.clean()


def release_dead_pins(components: "Components") -> None:
    """Let go of pinned passages that have been deleted or changed."""
    worker = components.worker.if_made
    if worker is None or not worker.engine.cache.pins:
        return
    for row in components.library().collections():
        namespace = namespace_of(row.id)
        with suppress(EngineStoppedError, UnknownCollectionError):  # with either of them its pins have gone
            if pinned := worker.call(partial(_pinned, namespace)).result():
                _, living = components.library().living(row, [int(name) for name in pinned])
                worker.call(partial(_keep_pinned, namespace, {str(passage_id) for passage_id in living})).result()


def _pinned(namespace: str, engine: "Engine") -> list[str]:
    return [segment.name for segment in engine.cache.pins.passages(namespace)]


def _keep_pinned(namespace: str, names: set[str], engine: "Engine") -> int:
    return engine.cache.unpin(namespace, lambda passage: passage.name in names)


def drop_namespace(components: "Components", collection: "Collection") -> None:
    """Forget what the engine has cached for a collection that is deleted."""
    outdate(components, collection.id, collection.generation + 1)  # it will never have so high a generation
    if worker := components.worker.if_made:
        with suppress(EngineStoppedError):  # then its cache has gone with it
            worker.call(lambda engine: engine.drop_namespace(namespace_of(collection.id))).result()


def outdate(components: "Components", collection_id: int, generation: int) -> None:
    """Have the engine refuse what was retrieved from a collection before this generation, and not submitted yet."""
    if worker := components.worker.if_made:
        with suppress(EngineStoppedError):
            worker.call(lambda engine: engine.outdate(namespace_of(collection_id), generation)).result()


def purge(components: "Components", collection: str, document_id: str) -> "tuple[Document, Purge]":
    """Delete a document and remove every copy of its KV, its text and its vectors: in memory, then on the disk.

    Raises:
        UnknownDocumentError: the collection has none of this id.
        PurgeError: an answer over its passages goes on for too long, or the disk fails.
    """
    store = components.store()  # opened before the document is deleted, so that it does not clean up on its own
    library = components.library()
    deletion = library.delete_document(collection, document_id, erase=True)
    outdate(components, deletion.collection_id, deletion.generation)
    gone = [passage for passage in deletion.passages if passage.id not in deletion.twins]
    _purge_memory(components, deletion.collection_id, gone)
    if store is None and deletion.keys and any(components.store_folder.glob("*")):
        raise PurgeError(
            f"the document is deleted, but its KV may be in {components.store_folder}, which cannot be opened; "
            "mend it, or delete that folder while no server runs"
        )
    report = store.erase(deletion.keys) if store and deletion.keys else None
    if report and not report.absent:
        raise PurgeError(
            "the document is deleted, but remains of its KV may be on the disk: "
            f"{', '.join(report.unreadable) or 'a record'} cannot be read; mend the disk, or delete that file while no "
            "server runs"
        )
    _purge_library(library, collection)
    kept = [
        KeptPassage(passage_id=passage_id, same_as=twin.id, same_as_uri=twin.uri)
        for passage_id, twin in deletion.twins.items()
    ]
    return deletion.document, Purge(
        passages=len(gone),
        records=report.erased if report else 0,
        scanned_bytes=report.scanned_bytes if report else 0,
        kept=kept,
    )


def _purge_library(library: "Library", collection: str) -> None:
    """Leave no text of what was deleted in the files of the database, and no vector of it in those of the index."""
    try:
        with suppress(UnknownCollectionError):  # it is deleted, with its index
            library.rebuild_index(collection)
        library.store.erase_deleted()
    except (OSError, StoreError) as error:
        raise PurgeError(
            f"the document and its KV are deleted, but remains of its text or vectors may be in {library.store.path} "
            f"or beside it ({error}); mend that and purge any other document, or stop the server, which empties the log"
        ) from error


def _purge_memory(components: "Components", collection_id: int, passages: "Sequence[Passage]") -> None:
    """Make the engine forget passages; answers that read them may end first."""
    worker = components.worker.if_made
    if worker is None:
        return
    tokens_of = components.passage_tokens().of  # of the engine's own model
    tokens = list({passage.token_ids for passage in passages} | {tokens_of(passage) for passage in passages})
    namespace, deadline = namespace_of(collection_id), monotonic() + PATIENCE_SECONDS
    with suppress(EngineStoppedError):  # then its cache has gone with it
        while not worker.call(lambda engine: engine.purge(namespace, tokens)).result():
            if monotonic() >= deadline:
                raise PurgeError(
                    "the document is deleted, but an answer that uses its passages runs on; its KV is left in memory "
                    "until that has ended, and on disk until the next delete, ingestion or start"
                )
            sleep(POLL_SECONDS)
    if worker.engine.tier is not None:
        with suppress(OSError):  # a disk that fails tells it when it is to erase
            worker.engine.tier.flush()  # what waited to be written is declined, since its passage is gone
