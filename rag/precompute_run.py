"""A run over passages whose KV is to be stored: no faster than the disk, and stopped at any moment."""

import logging
from collections import deque
from collections.abc import Generator, Sequence
from itertools import islice
from threading import Event
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from engine.config import SamplingParams
from engine.errors import OutdatedPromptError, PromptError, QueueFullError
from engine.output import Generation
from engine.prompt import Prompt
from engine.request import FinishReason
from rag.living_store import claims_of, namespace_of
from rag.schemas import PrecomputeProgress
from retriever.errors import UnknownCollectionError

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.kv_tier import DiskTier
    from engine.prompt import Segment
    from engine.worker import EngineWorker, Handle
    from rag.components import Components
    from rag.living_store import LivingStore
    from retriever.records import Collection

__all__ = ["PrecomputeRun", "record_bytes", "tier_of"]

logger = logging.getLogger(__name__)

READ_AT_ONCE = 256  # passages that are in memory, and whose keys are written down in one commit
IN_FLIGHT = 32  # passages that the engine has to choose from
WRITTEN_AT_ONCE = 64 * 2**20  # bytes of KV that are computed before the disk has to keep up
RECORD_OVERHEAD = 4096
RETRY_SECONDS = 0.2  # while others fill the engine's queue


class PrecomputeRun:
    """One run over passages; iterate over it once, in any thread. `stop` may come from another.

    Args:
        components: library, layout, engine and store.
        collection: whose passages they are.
        passages: their ids, best ones first; those that are deleted meanwhile are left out.

    Attributes:
        is_refused: the disk takes no KV, so that the run has stopped.
    """

    def __init__(self, components: "Components", collection: "Collection", passages: Sequence[int]) -> None:
        self._components = components
        self._collection = collection
        self._namespace = namespace_of(collection.id)
        self._total = len(passages)
        self._left = deque(passages)
        self._stopped = Event()
        self._in_flight: deque[tuple[Handle, Segment]] = deque()
        self._keys: dict[int, bytes] = {}  # of passages that are computed, or will be
        self._started = perf_counter()
        self._passages = 0
        self._skipped = 0
        self._tokens = 0
        self._unwritten = 0
        self._declined = self._store.stats().declined
        self.is_refused = False

    @property
    def is_stopped(self) -> bool:
        """Whether it was ended before its time."""
        return self._stopped.is_set()

    @property
    def collection(self) -> "Collection":
        """Whose passages they are, as it was when the run was planned."""
        return self._collection

    def stop(self) -> None:
        """End it at once; what is computed stays."""
        self._stopped.set()
        worker = self._components.worker()
        for handle, _ in list(self._in_flight):
            worker.cancel(handle)

    def rest(self) -> "PrecomputeRun | None":
        """Return a run over what this one has left, if it has left anything; what has failed is not tried again."""
        return PrecomputeRun(self._components, self._collection, self._left) if self._left else None

    def __iter__(self) -> Generator[PrecomputeProgress, None, None]:
        """Compute; yields after each passage, and once more when what was computed is on disk."""
        yield self._progress()
        worker = self._components.worker()
        try:
            while (self._left and not self._stopped.is_set()) or self._in_flight:
                yield from self._compute_batch(worker)
        finally:
            if self._in_flight:  # whoever iterates has left, or a step has failed
                self.stop()
                self._put_back([segment for _, segment in self._in_flight])
                self._in_flight.clear()
        if self._stopped.is_set():  # somebody waits: what is computed is written behind their answer
            yield self._progress()
            return
        self._flush(worker.engine)
        living = self._components.library().derived.living(self._keys.values())
        yield self._progress(finished=all(map(tier_of(worker.engine).holds, living)))

    @property
    def _store(self) -> "LivingStore":
        store = self._components.store()
        assert store is not None, "a run is planned where KV is stored"
        return store

    def _compute_batch(self, worker: "EngineWorker") -> Generator[PrecomputeProgress, None, None]:
        """Compute the next passages; wait for all of them only where they are the last ones."""
        generation, segments = self._read() if self._left and not self._stopped.is_set() else (0, [])
        waiting = deque(segments)
        try:
            while waiting:
                while self._is_full(worker.engine, waiting[0]):
                    yield self._take(worker)
                if not self._submit(worker, waiting[0], generation):
                    break
                waiting.popleft()
        finally:
            self._put_back(waiting)
        while self._in_flight and (self._stopped.is_set() or not self._left):
            yield self._take(worker)

    def _read(self) -> "tuple[int, list[Segment]]":
        """Take the next passages that live and write down whose KV comes, so that the store takes it.

        Returns:
            The generation of the collection in which they live, and the passages.
        """
        layout, library = self._components.layout_of(self._collection), self._components.library()
        ids = list(islice(self._left, READ_AT_ONCE))
        try:
            row, passages = library.living(self._collection, ids)
        except UnknownCollectionError:
            self._left.clear()  # it is deleted, with all that is left
            return 0, []
        segments = [layout.passage(passages[item]) for item in ids if item in passages]
        identity = self._components.worker().engine.identity
        own, *claims = claims_of(identity, row.id, layout.head, segments)
        living = library.derived.claim([own, *claims])
        for _ in ids:  # only now: what cannot be written down is left
            self._left.popleft()
        kept = [pair for pair in zip(claims, segments, strict=True) if pair[0].key in living]
        self._keys |= {int(segment.name): claim.key for claim, segment in kept}
        return row.generation, [segment for _, segment in kept]

    def _put_back(self, segments: "Sequence[Segment] | deque[Segment]") -> None:
        """Leave passages that were taken and not computed for later, before all others."""
        self._left.extendleft(int(segment.name) for segment in reversed(segments))

    def _is_full(self, engine: "Engine", segment: "Segment") -> bool:
        """Whether what is computed at once, with one more, could become too much to be written behind."""
        if self._stopped.is_set() or not self._in_flight:
            return False
        planned = [segment, *(other for _, other in self._in_flight)]
        num_bytes = sum(record_bytes(engine, len(other.tokens)) for other in planned)
        return len(planned) > IN_FLIGHT or num_bytes > WRITTEN_AT_ONCE

    def _flush(self, engine: "Engine") -> None:
        """Wait until what is computed is on disk; the engine goes on with what it has."""
        self._unwritten = 0
        try:
            tier_of(engine).flush()
        except OSError as error:
            logger.warning("KV cannot be written (%s); what is missing is computed when it is needed", error)

    def _submit(self, worker: "EngineWorker", segment: "Segment", generation: int) -> bool:
        """Have a passage computed, or leave it out where the engine never will.

        Returns:
            False when it may have been deleted since it was read, or the run has stopped.
        """
        head = self._components.layout_of(self._collection).head
        prompt, how = Prompt([head, segment]), {"namespace": self._namespace}
        while not self._stopped.is_set():
            try:
                handle = worker.submit_sync(
                    prompt, SamplingParams(max_tokens=0), background=True, as_of=generation, **how
                )
            except QueueFullError:
                sleep(RETRY_SECONDS)
            except OutdatedPromptError:
                return False
            except PromptError as error:
                logger.warning("passage %s is not read ahead: %s", segment.name, error)
                self._skipped += 1
                self._keys.pop(int(segment.name))
                return True
            else:
                self._in_flight.append((handle, segment))
                if self._stopped.is_set():  # since it was looked at
                    worker.cancel(handle)
                return True
        return False

    def _take(self, worker: "EngineWorker") -> PrecomputeProgress:
        """Wait for the passage that was submitted first; one that was cancelled is left for later."""
        handle, segment = self._in_flight[0]
        try:
            *_, end = worker.stream_sync(handle)  # `stop` cancels it meanwhile
        finally:
            self._in_flight.popleft()  # also when its step has failed: nothing more comes
        if isinstance(end, Generation) and end.finish_reason is not FinishReason.CANCELLED:
            self._passages += 1
            self._tokens += len(segment.tokens)
            self._unwritten += record_bytes(worker.engine, len(segment.tokens))
        else:
            self._put_back([segment])
        if self._unwritten > WRITTEN_AT_ONCE:
            self._flush(worker.engine)
        if not self._stopped.is_set() and self._store.stats().declined > self._declined:
            logger.warning("reading ahead has stopped, since the disk takes no KV; see the messages before")
            self.is_refused = True
            self.stop()
        return self._progress()

    def _progress(self, *, finished: bool = False) -> PrecomputeProgress:
        return PrecomputeProgress(
            passages=self._passages,
            skipped=self._skipped,
            total=self._total,
            tokens=self._tokens,
            seconds=perf_counter() - self._started,
            finished=finished,
        )


def tier_of(engine: "Engine") -> "DiskTier":
    """Return where an engine keeps KV; there is one where KV is stored."""
    assert engine.tier is not None, "an engine has a tier where KV is stored"
    return engine.tier


def record_bytes(engine: "Engine", num_tokens: int) -> int:
    """Return about how many bytes a passage's KV takes on disk: whole blocks, and a little for what describes them."""
    blocks = -(-num_tokens // engine.config.block_size)
    return blocks * engine.runner.kv_cache.bytes_per_block + RECORD_OVERHEAD
