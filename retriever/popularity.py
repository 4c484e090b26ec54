"""Which passages of a collection are worth preparing first: those that are found often, then those in its midst."""

from collections.abc import Mapping

import numpy as np

from retriever.store import Store

__all__ = ["Popularity"]


class Popularity:
    """Counts retrievals; every method may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def count(self, retrievals: Mapping[int, int]) -> None:
        """Add to how often passages, by id, were among those of a question."""
        with self._store.write() as writer:
            writer.count_retrievals(retrievals)

    def ranking(self, collection: str) -> list[int]:
        """Return the ids of a collection's passages: by falling number of retrievals, then by centrality.

        Central is a passage whose vector is close to the mean of all vectors: it is near to more questions.
        """
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
