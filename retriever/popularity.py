"""Which passages of a collection are worth preparing first: those that are found often, then those in its midst."""

from collections import Counter
from collections.abc import Iterable
from threading import Lock

import numpy as np

from retriever.errors import StoreError
from retriever.store import Store

__all__ = ["Popularity"]


class Popularity:
    """Counts retrievals; every method may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts: Counter[int] = Counter()
        self._lock = Lock()

    def note(self, passage_ids: Iterable[int]) -> None:
        """Count that these passages were found for a question; written down by `flush`, so that nobody waits for it."""
        with self._lock:
            self._counts.update(passage_ids)

    def flush(self) -> None:
        """Write the counts down.

        Raises:
            StoreError: the disk is full or the database is damaged; the counts are kept for the next time.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            with self._store.write() as writer:
                writer.count_retrievals(counts)
        except StoreError:
            with self._lock:
                self._counts.update(counts)
            raise

    def ranking(self, collection: str) -> list[int]:
        """Return the ids of a collection's passages: by falling number of retrievals, then by centrality.

        Central is a passage whose vector is close to the mean of all vectors: it is near to more questions.
        """
        self.flush()
        with self._store.read() as reader:
            row = reader.collection(collection)
            counts = reader.retrievals(row)
            ids, vectors = reader.vectors(row)
            owners = reader.passages_of_vectors(row, ids)
        closeness: dict[int, float] = {}
        nearness = vectors @ vectors.mean(axis=0) if len(ids) else np.empty(0)
        for vector_id, near in zip(ids.tolist(), nearness.tolist(), strict=True):
            passage_id = owners[vector_id]
            closeness[passage_id] = max(closeness.get(passage_id, near), near)
        return sorted(
            closeness, key=lambda passage_id: (-counts.get(passage_id, 0), -closeness[passage_id], passage_id)
        )
