"""Reads passages before anybody asks: computes the KV of `[template, passage]` and has the store keep it.

Passages that are found often come first, then central ones, as far as the store's budget goes. What is stored is
skipped, so that an interrupted run is taken up by the next one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from rag.errors import NoKVStoreError, PrecomputeRunningError
from rag.living_store import namespace_of
from rag.precompute_run import PrecomputeRun, record_bytes, tier_of
from rag.schemas import PrecomputePlan

if TYPE_CHECKING:
    from engine.engine import Engine
    from rag.components import Components
    from retriever.records import Collection

__all__ = ["Precompute"]

_Measured = tuple[object, dict[int, bytes], dict[int, int]]


@dataclass(frozen=True, slots=True)
class _Todo:
    """What is to be computed for a collection: ids of passages, best ones first."""

    collection: "Collection"
    plan: PrecomputePlan
    passages: list[int]


class Precompute:
    """Plans and starts runs over collections.

    Args:
        components: library, layout, engine and store.
    """

    def __init__(self, components: "Components") -> None:
        self._components = components
        self._running = set[str]()
        self._last: _Measured | None = None  # of the collection that was asked about last
        self._lock = Lock()

    def plan(self, collection: str) -> PrecomputePlan:
        """Tell what a run would compute and how much disk space that takes.

        Raises:
            UnknownCollectionError: there is no such collection.
            NoKVStoreError: no KV is stored here.
        """
        return self._todo(collection).plan

    def start(self, collection: str) -> PrecomputeRun:
        """Make a run; iterating over it does the work. Errors are those of `plan`."""
        todo = self._todo(collection)
        return PrecomputeRun(self._components, todo.collection, todo.passages)

    @contextmanager
    def alone(self, collection: str) -> Iterator[None]:
        """Let nobody else run over a collection until the block ends.

        Raises:
            PrecomputeRunningError: somebody does already.
        """
        with self._lock:
            if collection in self._running:
                raise PrecomputeRunningError(
                    f"the passages of {collection!r} are being read ahead already; wait until that has ended"
                )
            self._running.add(collection)
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(collection)

    def _todo(self, collection: str) -> _Todo:
        library = self._components.library()
        row = library.collection(collection)
        store = self._components.store()
        if store is None or not self._components.keeps_kv:
            raise NoKVStoreError(
                "no KV is stored, since engine.kv_store_bytes (PREREAD_ENGINE__KV_STORE_BYTES) is 0; give it more"
            )
        engine = self._components.worker().engine
        sizes, missing = self._missing(row, engine)
        usage = store.stats()
        room = usage.capacity_bytes - usage.nbytes
        chosen, needed = _fitting(engine, missing, sizes, room)
        plan = PrecomputePlan(
            collection=collection,
            passages=len(sizes),
            stored=len(sizes) - len(missing),
            to_compute=len(chosen),
            tokens=sum(sizes[passage_id] for passage_id in chosen),
            bytes_needed=needed,
            bytes_stored=usage.nbytes,
            bytes_budget=usage.capacity_bytes,
        )
        return _Todo(row, plan, chosen)

    def _missing(self, row: "Collection", engine: "Engine") -> tuple[dict[int, int], list[int]]:
        """Return the number of tokens of each passage, by id, and the ids of those that are not stored, best first.

        Of passages with the same tokens only the best counts. Runs in the caller's thread.
        """
        keys, sizes = self._measured(row, engine)
        library = self._components.library()
        ranked = [item for item in library.popularity.ranking(row.name) if item in keys]
        first = {keys[item]: item for item in reversed(ranked)}
        tier = tier_of(engine)
        return sizes, [item for item in ranked if first[keys[item]] == item and not tier.holds(keys[item])]

    def _measured(self, row: "Collection", engine: "Engine") -> tuple[dict[int, bytes], dict[int, int]]:
        """Return keys and numbers of tokens of all passages, by id; asked again about the same, it reads nothing."""
        layout, namespace = self._components.layout_of(row), namespace_of(row.id)
        version = (row.id, row.generation, layout.head.tokens)
        last = self._last
        if last is None or last[0] != version:
            keys, sizes = dict[int, bytes](), dict[int, int]()
            for passage in self._components.library().iter_passages(row.name):
                tokens = layout.passage(passage).tokens
                keys[passage.id] = engine.identity.key(namespace, layout.head.tokens, tokens)
                sizes[passage.id] = len(tokens)
            self._last = last = (version, keys, sizes)
        return last[1], last[2]


def _fitting(engine: "Engine", passages: Sequence[int], sizes: dict[int, int], room: int) -> tuple[list[int], int]:
    """Return the first passages whose KV has room on disk, and the bytes that it takes."""
    chosen, needed = [], 0
    for passage_id in passages:
        num_bytes = record_bytes(engine, sizes[passage_id])
        if needed + num_bytes > room:
            break
        chosen.append(passage_id)
        needed += num_bytes
    return chosen, needed
