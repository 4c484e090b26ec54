"""Reads passages before anybody asks: computes the KV of `[template, passage]` and has the store keep it.

Passages that are found often come first, then central ones, as far as the store's budget goes. What is stored is
skipped, so that an interrupted run is taken up by the next one.
"""

import logging
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from threading import Event
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from engine.config import SamplingParams
from engine.errors import QueueFullError
from engine.output import Generation
from engine.prompt import Prompt
from engine.request import FinishReason
from rag.errors import NoKVStoreError
from rag.living_store import claims_of, namespace_of
from rag.schemas import PrecomputePlan, PrecomputeProgress

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.prompt import Segment
    from engine.worker import EngineWorker, Handle
    from rag.components import Components

__all__ = ["Precompute", "PrecomputeRun"]

logger = logging.getLogger(__name__)

CLAIMED_AT_ONCE = 256  # passages whose keys are written down in one commit
IN_FLIGHT = 32  # passages that the engine has to choose from
WRITTEN_AT_ONCE = 64 * 2**20  # bytes of KV that are computed before the disk has to keep up
RECORD_OVERHEAD = 4096
RETRY_SECONDS = 0.2  # while others fill the engine's queue


@dataclass(frozen=True, slots=True)
class _Todo:
    """What is to be computed for a collection."""

    collection_id: int
    plan: PrecomputePlan
    segments: "list[Segment]"


class Precompute:
    """Plans and starts runs over collections.

    Args:
        components: library, layout, engine and store.
    """

    def __init__(self, components: "Components") -> None:
        self._components = components

    def plan(self, collection: str) -> PrecomputePlan:
        """Tell what a run would compute and how much disk space that takes.

        Raises:
            UnknownCollectionError: there is no such collection.
            NoKVStoreError: no KV is stored here.
        """
        return self._todo(collection).plan

    def start(self, collection: str) -> "PrecomputeRun":
        """Make a run; iterating over it does the work. Errors are those of `plan`."""
        todo = self._todo(collection)
        return PrecomputeRun(self._components, todo.collection_id, todo.segments)

    def _todo(self, collection: str) -> _Todo:
        library = self._components.library()
        row = library.collection(collection)
        store = self._components.store()
        if store is None or not self._components.keeps_kv:
            raise NoKVStoreError(
                "no KV is stored, since engine.kv_store_bytes (PREREAD_ENGINE__KV_STORE_BYTES) is 0; give it more"
            )
        layout = self._components.layout()
        passages = {passage.id: layout.passage(passage) for passage in library.iter_passages(collection)}
        ranked = [passages[item] for item in library.popularity.ranking(collection) if item in passages]
        worker = self._components.worker()
        namespace = namespace_of(row.id)
        missing = worker.call(lambda engine: engine.missing(layout.head, ranked, namespace)).result()
        usage = store.stats()
        room = usage.capacity_bytes - usage.nbytes
        chosen, needed = _fitting(worker.engine, [ranked[i] for i in missing], room)
        plan = PrecomputePlan(
            collection=collection,
            passages=len(ranked),
            stored=len(ranked) - len(missing),
            to_compute=len(chosen),
            tokens=sum(len(segment.tokens) for segment in chosen),
            bytes_needed=needed,
            bytes_stored=usage.nbytes,
            bytes_budget=usage.capacity_bytes,
        )
        return _Todo(row.id, plan, chosen)


class PrecomputeRun:
    """One run over passages; iterate over it once, in any thread. `stop` may come from another.

    Args:
        components: library, layout, engine and store.
        collection_id: whose passages they are.
        segments: the passages, best ones first.
    """

    def __init__(self, components: "Components", collection_id: int, segments: "Sequence[Segment]") -> None:
        self._components = components
        self._collection_id = collection_id
        self._segments = segments
        self._stopped = Event()
        self._in_flight: deque[tuple[Handle, Segment]] = deque()
        self._started = perf_counter()
        self._passages = 0
        self._tokens = 0
        self._unwritten = 0

    @property
    def is_stopped(self) -> bool:
        """Whether it was ended before its time."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End it at once; what is computed stays."""
        self._stopped.set()
        worker = self._components.worker()
        for handle, _ in list(self._in_flight):
            worker.cancel(handle)

    def __iter__(self) -> Generator[PrecomputeProgress, None, None]:
        """Compute; yields after each passage, and once more when what was computed is on disk."""
        yield self._progress()
        worker = self._components.worker()
        segments = iter(self._segments)
        try:
            while not self._stopped.is_set() and (batch := list(islice(segments, CLAIMED_AT_ONCE))):
                for segment in self._claim(worker.engine, batch):
                    while self._is_full(worker.engine, segment):
                        yield self._take(worker)
                    self._submit(worker, segment)
            while self._in_flight:
                yield self._take(worker)
        finally:
            if self._in_flight:  # whoever iterates has left, or a step has failed
                self.stop()
        if self._stopped.is_set():  # somebody waits: what is computed is written behind their answer
            yield self._progress()
            return
        self._flush(worker.engine)
        yield self._progress(finished=self._is_all_stored(worker))

    def _is_all_stored(self, worker: "EngineWorker") -> bool:
        head, namespace = self._components.layout().head, namespace_of(self._collection_id)
        return not worker.call(lambda engine: engine.missing(head, self._segments, namespace)).result()

    def _is_full(self, engine: "Engine", segment: "Segment") -> bool:
        """Whether what is computed at once, with one more, could become too much to be written behind."""
        if self._stopped.is_set() or not self._in_flight:
            return False
        planned = [segment, *(other for _, other in self._in_flight)]
        num_bytes = sum(_record_bytes(engine, len(other.tokens)) for other in planned)
        return len(planned) > IN_FLIGHT or num_bytes > WRITTEN_AT_ONCE

    def _flush(self, engine: "Engine") -> None:
        """Wait until what is computed is on disk; the engine goes on with what it has."""
        self._unwritten = 0
        try:
            if engine.tier is not None:
                engine.tier.flush()
        except OSError as error:
            logger.warning("KV cannot be written (%s); what is missing is computed when it is needed", error)

    def _claim(self, engine: "Engine", segments: "Sequence[Segment]") -> "list[Segment]":
        """Write down whose KV comes, so that the store takes it; return the passages that still live."""
        head = self._components.layout().head
        claims = claims_of(engine.identity, self._collection_id, head, segments)
        living = self._components.library().derived.claim(claims)
        _, *own = claims
        return [segment for claim, segment in zip(own, segments, strict=True) if claim.key in living]

    def _submit(self, worker: "EngineWorker", segment: "Segment") -> None:
        prompt = Prompt([self._components.layout().head, segment])
        namespace = namespace_of(self._collection_id)
        while not self._stopped.is_set():
            try:
                handle = worker.submit_sync(prompt, SamplingParams(max_tokens=0), namespace=namespace, background=True)
            except QueueFullError:
                sleep(RETRY_SECONDS)
            else:
                self._in_flight.append((handle, segment))
                if self._stopped.is_set():  # since it was looked at
                    worker.cancel(handle)
                return

    def _take(self, worker: "EngineWorker") -> PrecomputeProgress:
        """Wait for the passage that was submitted first."""
        handle, segment = self._in_flight[0]
        *_, end = worker.stream_sync(handle)
        self._in_flight.popleft()
        if isinstance(end, Generation) and end.finish_reason is not FinishReason.CANCELLED:
            self._passages += 1
            self._tokens += len(segment.tokens)
            self._unwritten += _record_bytes(worker.engine, len(segment.tokens))
        if self._unwritten > WRITTEN_AT_ONCE:
            self._flush(worker.engine)
        return self._progress()

    def _progress(self, *, finished: bool = False) -> PrecomputeProgress:
        return PrecomputeProgress(
            passages=self._passages,
            total=len(self._segments),
            tokens=self._tokens,
            seconds=perf_counter() - self._started,
            finished=finished,
        )


def _fitting(engine: "Engine", segments: "Sequence[Segment]", room: int) -> "tuple[list[Segment], int]":
    """Return the first segments whose KV has room on disk, and the bytes that it takes."""
    chosen, needed = [], 0
    for segment in segments:
        num_bytes = _record_bytes(engine, len(segment.tokens))
        if needed + num_bytes > room:
            break
        chosen.append(segment)
        needed += num_bytes
    return chosen, needed


def _record_bytes(engine: "Engine", num_tokens: int) -> int:
    """Return about how many bytes a passage's KV takes on disk: whole blocks, and a little for what describes them."""
    blocks = -(-num_tokens // engine.config.block_size)
    return blocks * engine.runner.kv_cache.bytes_per_block + RECORD_OVERHEAD
