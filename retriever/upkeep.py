"""Checks that a collection is whole; for `rag doctor` and for tests."""

import numpy as np

from retriever.errors import StoreError
from retriever.records import Collection, Reader
from retriever.vector_index import VectorIndex

__all__ = ["check_collection"]


def check_collection(reader: Reader, collection: Collection, index: VectorIndex | None) -> None:
    """Check that every passage is the text it claims to be, has tokens and vectors, and can be found.

    Raises:
        StoreError: the first damage found, with what to do about it.
    """
    for document in reader.documents(collection):
        text = reader.document_text(collection, document.id)
        passages = list(reader.passages(collection, document.id))
        if not passages:
            raise StoreError(f"document {document.uri} has no passages; delete it and ingest it again")
        for passage in passages:
            if text[passage.start : passage.end] != passage.text or not passage.token_ids:
                raise StoreError(
                    f"passage {passage.label!r} does not fit its document; delete {document.uri} and ingest it again"
                )
    ids = reader.vector_ids(collection)
    owners = set(reader.passages_of_vectors(collection, ids).values())
    bare = [passage.label for passage in reader.passages(collection) if passage.id not in owners]
    if bare:
        raise StoreError(f"passages {bare[:5]} have no vector; delete their documents and ingest them again")
    if index is not None and len(np.setdiff1d(ids, index.ids)):
        raise StoreError(f"the index of {collection.name!r} lacks vectors; rebuild it")
