"""What people may ask of the cache: to tell what it holds, to read passages ahead, to keep them, to forget them."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from itertools import islice
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

from engine.config import SamplingParams
from engine.errors import OutdatedPromptError, QueueFullError
from engine.prompt import Prompt
from rag.cleaning import release_dead_pins
from rag.living_store import claims_of, namespace_of
from rag.schemas import PrecomputeProgress
from rag.schemas.cache import CachedCollection, CacheStats, Flushed, Pinned

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.prompt import Segment
    from engine.worker import Handle
    from rag.components import Components
    from retriever.records import Collection

__all__ = ["CacheControl"]

logger = logging.getLogger(__name__)

AT_ONCE = 16  # passages that are read between two looks at whether somebody wants it to end
RETRY_SECONDS = 0.2  # while others fill the engine's queue


class CacheControl:
    """The cache of one process; every method may be called from any thread.

    Args:
        components: library, layout, engine and store.
    """

    def __init__(self, components: "Components") -> None:
        self._components = components

    def stats(self) -> CacheStats:
        """Return what the cache holds."""
        components = self._components
        names = {namespace_of(row.id): row.name for row in components.library().collections()}
        found: CacheStats = components.worker().call(lambda engine: _stats(engine, names)).result()
        store = components.store.if_made
        return found.model_copy(update={"kv_store": store.info() if store else None})

    async def warm(self, collection: str, document_id: str | None = None) -> AsyncGenerator[PrecomputeProgress, None]:
        """Bring passages into the engine's memory, from the disk or by computing them; questions go first.

        Yields after every few passages. It ends early when the memory is full, so that none pushes out another.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        started = perf_counter()
        row, segments = await asyncio.to_thread(self._passages, collection, document_id)
        room = await asyncio.to_thread(self._room)
        done = tokens = 0
        passages = iter(segments)
        while batch := list(islice(passages, AT_ONCE)):
            sizes = [len(segment.tokens) for segment in batch]
            room -= sum(-(-size // self._components.worker().engine.config.block_size) for size in sizes)
            if room < 0:
                logger.warning("%s: %d passages have no room in memory", collection, len(segments) - done)
                break
            await asyncio.to_thread(self._read, row, batch)
            done, tokens = done + len(batch), tokens + sum(sizes)
            yield _progress(done, len(segments), tokens, started)
        yield _progress(done, len(segments), tokens, started, finished=done == len(segments))

    async def pin(self, collection: str, document_id: str | None = None) -> Pinned:
        """Read passages and keep them in the engine's memory, until they are let go or deleted, or the server stops.

        Questions go first. Cancelling the task ends it at once; what is kept by then stays.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        row, segments = await asyncio.to_thread(self._passages, collection, document_id)
        head = self._components.layout_of(row).head
        worker, pinned = self._components.worker(), 0
        try:
            for segment in segments:
                await self._read_one(row, segment)
                if not await asyncio.wrap_future(worker.call(partial(_pin, namespace_of(row.id), head, segment))):
                    break
                pinned += 1
        finally:  # one of them may have been deleted meanwhile
            await asyncio.shield(asyncio.to_thread(release_dead_pins, self._components))
        return Pinned(passages=pinned, left_out=len(segments) - pinned)

    def unpin(self, collection: str, document_id: str | None = None) -> int:
        """Let passages be evicted again, and return how many they were.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        library = self._components.library()
        namespace = namespace_of(library.collection(collection).id)
        names = {str(passage.id) for passage in library.passages(collection, document_id)}
        call = self._components.worker().call(
            lambda engine: engine.cache.unpin(namespace, lambda passage: passage.name not in names)
        )
        return call.result()

    def flush(self, collection: str, document_id: str | None = None, *, from_disk: bool = False) -> Flushed:
        """Forget the KV of passages; they are read again when somebody asks.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        row, segments = self._passages(collection, document_id)
        namespace, worker = namespace_of(row.id), self._components.worker()

        def forget(engine: "Engine") -> int:
            before = engine.cache.pool.num_free
            if document_id is None:
                engine.drop_namespace(namespace)
            else:
                engine.purge(namespace, [segment.tokens for segment in segments])
            return engine.cache.pool.num_free - before

        blocks = worker.call(forget).result()
        records = self._forget_stored(row, segments) if from_disk else 0
        return Flushed(blocks=blocks, records=records)

    def _forget_stored(self, row: "Collection", segments: "Sequence[Segment]") -> int:
        store, worker = self._components.store.if_made, self._components.worker()
        if store is None:
            return 0
        if worker.engine.tier is not None:
            worker.engine.tier.flush()  # what waits to be written would come after
        claims = claims_of(worker.engine.identity, row.id, self._components.layout_of(row).head, segments)
        return store.delete(*(claim.key for claim in claims if claim.passage_id is not None))

    def _passages(self, collection: str, document_id: str | None) -> "tuple[Collection, list[Segment]]":
        """Return a collection, and the passages of it or of a document, those found most often first."""
        library = self._components.library()
        row = library.collection(collection)
        layout = self._components.layout_of(row)
        rank = {passage_id: i for i, passage_id in enumerate(library.popularity.ranking(collection))}
        passages = library.passages(collection, document_id)
        passages.sort(key=lambda passage: rank.get(passage.id, len(rank)))
        return row, [layout.passage(passage) for passage in passages]

    def _room(self) -> int:
        """Return how many blocks the passages may take that are read ahead."""
        call = self._components.worker().call(
            lambda engine: engine.cache.pool.num_blocks - engine.cache.pins.num_blocks
        )
        return call.result() // 2

    async def _read_one(self, row: "Collection", segment: "Segment") -> None:
        """Do what `_read` does with one passage, in no thread: cancelling the task ends it."""
        worker = self._components.worker()
        await asyncio.to_thread(self._expect, row, [segment])
        prompt, how = Prompt([self._components.layout_of(row).head, segment]), _background(row)
        while True:
            try:
                handle = await worker.submit(prompt, SamplingParams(max_tokens=0), **how)
            except QueueFullError:
                await asyncio.sleep(RETRY_SECONDS)
            except OutdatedPromptError:
                return
            else:
                break
        try:
            async for _ in worker.stream(handle):
                pass
        finally:
            worker.cancel(handle)

    def _expect(self, row: "Collection", segments: "Sequence[Segment]") -> None:
        """Tell the store, if there is one, whose KV is to come."""
        if store := self._components.store.if_made:
            head, worker = self._components.layout_of(row).head, self._components.worker()
            store.expect(claims_of(worker.engine.identity, row.id, head, segments))

    def _read(self, row: "Collection", segments: "Sequence[Segment]") -> None:
        """Have the engine read passages; nothing happens to those that it has, and to those that have been deleted."""
        head, worker = self._components.layout_of(row).head, self._components.worker()
        self._expect(row, segments)
        how = _background(row)
        handles: list[Handle] = []
        for segment in segments:
            while len(handles) < AT_ONCE:
                try:
                    prompt, sampling = Prompt([head, segment]), SamplingParams(max_tokens=0)
                    handles.append(worker.submit_sync(prompt, sampling, **how))
                except QueueFullError:
                    sleep(RETRY_SECONDS)
                except OutdatedPromptError:
                    return
                else:
                    break
        for handle in handles:
            for _ in worker.stream_sync(handle):
                pass


def _background(row: "Collection") -> dict[str, Any]:
    """Return how passages of a collection are read for nobody in particular."""
    return {"background": True, "namespace": namespace_of(row.id), "as_of": row.generation}


def _pin(namespace: str, head: "Segment", passage: "Segment", engine: "Engine") -> bool:
    return engine.cache.pin(namespace, head, passage)


def _stats(engine: "Engine", names: dict[str, str]) -> CacheStats:
    stats, cache = engine.stats(), engine.cache
    block_bytes = engine.runner.kv_cache.bytes_per_block
    sizes = {name: sum(len(node.blocks) for node in cache.tree(space).nodes()) for space, name in names.items()}
    pinned = {name: len(cache.pins.passages(space)) for space, name in names.items()}
    return CacheStats(
        block_tokens=engine.config.block_size,
        block_bytes=block_bytes,
        blocks=stats.num_blocks,
        free_blocks=stats.free_blocks,
        cached_blocks=stats.cached_blocks,
        pinned_blocks=cache.pins.num_blocks,
        evicted_blocks=stats.evicted_blocks,
        prompt_tokens=stats.totals.prompt_tokens,
        cached_tokens=stats.totals.cached_tokens,
        collections=[
            CachedCollection(collection=name, blocks=size, bytes=size * block_bytes, pinned_passages=pinned[name])
            for name, size in sorted(sizes.items())
            if size
        ],
        kv_store=None,
    )


def _progress(done: int, total: int, tokens: int, started: float, *, finished: bool = False) -> PrecomputeProgress:
    seconds = perf_counter() - started
    return PrecomputeProgress(passages=done, total=total, tokens=tokens, seconds=seconds, finished=finished)
