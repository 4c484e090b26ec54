"""Removes the KV of passages that have gone; where that is asked for, so that no copy of it is left."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
    from engine.kv_report import PurgeReport
    from rag.components import Components
    from rag.living_store import LivingStore
    from retriever.document import Document, Passage
    from retriever.records import Collection
    from retriever.retriever import Library

__all__ = ["MemoryPurge", "clean", "drop_namespace", "outdate", "purge", "release_dead_pins"]

PATIENCE_SECONDS = 60.0  # for answers that run over a purged passage to end
POLL_SECONDS = 0.05
IN_MEMORY, ON_DISK, IN_LIBRARY = "its KV in memory", "its KV on the disk", "its text and vectors"


@dataclass(frozen=True, eq=False, slots=True)
class MemoryPurge:
    """Passages that the engine is to forget: the namespace that they were in, and their tokens."""

    namespace: str
    passages: "Sequence[tuple[int, ...]]"


def clean(components: "Components") -> None:
    """Remove the KV of passages that have gone, where KV is stored; none of them stays pinned in memory.

    What a purge had to leave in memory is forgotten where the answers that used it have ended.
    """
    release_dead_pins(components)
    for item in list(components.purging):
        _forget(components, item)
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
                dead = set(pinned) - {str(passage_id) for passage_id in living}
                worker.call(partial(_unpin, namespace, dead)).result()  # not what was pinned since it was looked at


def _pinned(namespace: str, engine: "Engine") -> list[str]:
    return [segment.name for segment in engine.cache.pins.passages(namespace)]


def _unpin(namespace: str, names: set[str], engine: "Engine") -> int:
    return engine.cache.unpin(namespace, lambda passage: passage.name not in names)


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

    What cannot be removed in one place is removed in the others all the same.

    Raises:
        UnknownDocumentError: the collection has none of this id.
        PurgeError: an answer over its passages goes on for too long, or the disk fails; says what is left where.
    """
    store = components.store()  # opened before the document is deleted, so that it does not clean up on its own
    library = components.library()
    deletion = library.delete_document(collection, document_id, erase=True)
    outdate(components, deletion.collection_id, deletion.generation)
    gone = [passage for passage in deletion.passages if passage.id not in deletion.twins]
    failures: dict[str, Exception] = {}
    report: PurgeReport | None = None
    with _noted(failures, IN_MEMORY):
        _purge_memory(components, deletion.collection_id, gone)
    with _noted(failures, ON_DISK):
        report = _purge_store(components, store, deletion.keys)
    with _noted(failures, IN_LIBRARY):
        _purge_library(library, collection)
    if failures:
        erased = [part for part in (IN_MEMORY, ON_DISK, IN_LIBRARY) if part not in failures]
        left = "; ".join(f"{part}: {reason}" for part, reason in failures.items())
        raise PurgeError(
            "the document is deleted, but it could not be purged everywhere. "
            f"Erased: {', '.join(erased) or 'nothing'}. Left: {left}"
        ) from next(iter(failures.values()))
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


@contextmanager
def _noted(failures: dict[str, Exception], part: str) -> Iterator[None]:
    """Note why a part of a purge has failed, so that the other parts are purged."""
    try:
        yield
    except (PurgeError, StoreError, OSError) as error:
        failures[part] = error


def _purge_store(
    components: "Components", store: "LivingStore | None", keys: "frozenset[bytes]"
) -> "PurgeReport | None":
    """Erase records, and see that nothing is left of them; None where there are none."""
    if not keys:
        return None
    if store is None:
        if any(components.store_folder.glob("*")):
            raise PurgeError(
                f"it may be in {components.store_folder}, which cannot be opened; mend it and start again, which "
                "erases it, or delete that folder while no server runs"
            )
        return None
    report = store.erase(keys)
    if not report.absent:
        raise PurgeError(
            f"remains of it may be there: {', '.join(report.unreadable) or 'a record'} cannot be read; mend the disk "
            "and start again, which erases them, or delete that file while no server runs"
        )
    return report


def _purge_library(library: "Library", collection: str) -> None:
    """Leave no text of what was deleted in the files of the database, and no vector of it in those of the index."""
    try:
        with suppress(UnknownCollectionError):  # it is deleted, with its index
            library.rebuild_index(collection)
        library.store.erase_deleted()
    except (OSError, StoreError) as error:
        raise PurgeError(
            f"remains may be in {library.store.path} or beside it ({error}); mend that and purge any other document, "
            "or stop the server, which empties the log"
        ) from error


def _purge_memory(components: "Components", collection_id: int, passages: "Sequence[Passage]") -> None:
    """Make the engine forget passages; answers that read them may end first."""
    worker = components.worker.if_made
    if worker is None:
        return
    tokens_of = components.passage_tokens().of  # of the engine's own model
    tokens = {passage.token_ids for passage in passages} | {tokens_of(passage) for passage in passages}
    item, deadline = MemoryPurge(namespace_of(collection_id), list(tokens)), monotonic() + PATIENCE_SECONDS
    components.purging.append(item)
    while not (is_gone := _forget(components, item)) and monotonic() < deadline:
        sleep(POLL_SECONDS)
    if worker.engine.tier is not None:
        with suppress(OSError):  # a disk that fails tells it when it is to erase
            worker.engine.tier.flush()  # what waited to be written is declined, since its passage is gone
    if not is_gone:
        raise PurgeError(
            "an answer that uses its passages runs on; no other one finds it, and it is forgotten with the first "
            "delete or ingestion after the end of that answer"
        )


def _forget(components: "Components", item: MemoryPurge) -> bool:
    """Make the engine forget passages; False while a request reads one of them: then it is to be done once more."""
    if worker := components.worker.if_made:
        with suppress(EngineStoppedError):  # then its cache has gone with it
            if not worker.call(lambda engine: engine.purge(item.namespace, item.passages)).result():
                return False
    with suppress(ValueError):  # another thread has seen it, too
        components.purging.remove(item)
    return True
