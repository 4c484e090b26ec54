"""From a query vector to passages, in two stages: a coarse search of the index, then exact scores of what it found.

Knows one snapshot of the store; what is dead in it is no candidate. Under a condition every passage that fits is scored
exactly, whatever the index: a few that fit may be far from the best of all, where an approximate search never looks.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from retriever.document import Hit, Passage
from retriever.embedder import Vectors
from retriever.errors import QueryError
from retriever.indexes import Indexes
from retriever.metadata import Filter
from retriever.records import Collection, Reader
from retriever.store import Store
from retriever.vector_index import Ids, VectorIndex

__all__ = ["OnCandidates", "find", "ignore_candidates"]

FIRST_FETCH = 16

OnCandidates = Callable[[Sequence[Passage]], None]


def ignore_candidates(passages: Sequence[Passage]) -> None:
    """Stand in for a callback."""


def find(
    store: Store,
    indexes: Indexes,
    collection: str,
    query: Vectors,
    k: int,
    condition: Filter | None,
    on_candidates: OnCandidates,
) -> list[Hit]:
    """Return the k passages of a collection closest to a query [dimension], as one snapshot of the store has them.

    Args:
        store: has the collection.
        indexes: have its vectors.
        collection: its name.
        query: unit vector.
        k: how many.
        condition: that their documents have to fit; None is any.
        on_candidates: called with the k best by the index's own scores, before exact ones are computed.

    Raises:
        UnknownCollectionError: there is no such collection.
        QueryError: the vector has the wrong length.
    """
    while True:
        with store.read() as reader:
            row = reader.collection(collection)
            if row.dimension is None:
                return []
            if query.shape != (row.dimension,):
                raise QueryError(
                    f"the query has shape {query.shape}; collection {collection!r} needs ({row.dimension},)"
                )
            index = indexes.get(row)
            if index.base_generation > row.generation:
                continue  # it was rebuilt without what this snapshot still has
            if condition is not None:
                return _find_among(reader, row, index, query, k, condition, on_candidates)
            return _find_passages(reader, row, index, query, k, on_candidates)


def _find_passages(
    reader: Reader, collection: Collection, index: VectorIndex, query: Vectors, k: int, on_candidates: OnCandidates
) -> list[Hit]:
    """Return the k live passages closest to a query, best first, each once.

    The collection is as it is in the reader's snapshot, and the index holds at least every vector that lives in it.
    """
    found = _candidates(reader, collection, index, query, k)
    chosen = _best(found, k)
    passages = reader.passages_by_id(collection, chosen)
    on_candidates([passages[passage_id] for passage_id in chosen])
    if index.is_approximate:
        vectors = reader.vectors_of_passages(found)
        found = {passage_id: float((own @ query).max()) for passage_id, own in vectors.items()}
        chosen = _best(found, k)
        passages |= reader.passages_by_id(collection, set(chosen) - passages.keys())
    return [Hit(passages[passage_id], found[passage_id]) for passage_id in chosen]


def _find_among(
    reader: Reader,
    collection: Collection,
    index: VectorIndex,
    query: Vectors,
    k: int,
    condition: Filter,
    on_candidates: OnCandidates,
) -> list[Hit]:
    """Return the k closest of the live passages whose documents fit a condition; see `_find_passages`."""
    owners = reader.matching_vectors(collection, condition)
    scores = _scores_among(reader, collection, index, query, k, owners)
    chosen = _best(scores, k)
    passages = reader.passages_by_id(collection, chosen)
    on_candidates([passages[passage_id] for passage_id in chosen])
    return [Hit(passages[passage_id], scores[passage_id]) for passage_id in chosen]


def _scores_among(
    reader: Reader, collection: Collection, index: VectorIndex, query: Vectors, k: int, owners: Mapping[int, int]
) -> dict[int, float]:
    """Score the vectors of `owners` exactly, at least as far as the k best passages go; scores by passage id."""
    wanted = np.fromiter(owners, np.int64, len(owners))
    fetch = 2 * k + FIRST_FETCH
    while (found := index.search_among(query, fetch, wanted)) is not None:
        best = _best_scores(*found, owners)
        if len(best) >= k or len(found[0]) < fetch:
            return best
        fetch *= 4
    ids, vectors = reader.vectors(collection, wanted)  # the index cannot, but the store has every vector
    return _best_scores(vectors @ query, ids, owners) if len(ids) else {}


def _best_scores(scores: Vectors, ids: Ids, owners: Mapping[int, int]) -> dict[int, float]:
    best: dict[int, float] = {}
    for score, vector_id in zip(scores.tolist(), ids.tolist(), strict=True):
        passage_id = owners[vector_id]
        best[passage_id] = max(best.get(passage_id, score), score)
    return best


def _candidates(reader: Reader, collection: Collection, index: VectorIndex, query: Vectors, k: int) -> dict[int, float]:
    """Search until k passages live, fetching more while vectors are dead or share a passage; scores by passage id."""
    fetch = 2 * k + FIRST_FETCH
    while True:
        scores, ids = index.search(query, fetch)
        owners = reader.passages_of_vectors(collection, ids)
        best: dict[int, float] = {}
        for score, vector_id in zip(scores.tolist(), ids.tolist(), strict=True):
            if vector_id in owners:
                best.setdefault(owners[vector_id], score)
        if len(best) >= k or fetch >= len(index):
            return best
        fetch *= 4


def _best(scores: Mapping[int, float], k: int) -> list[int]:
    return sorted(scores, key=lambda passage_id: (-scores[passage_id], passage_id))[:k]
