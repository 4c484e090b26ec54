"""Every SQL statement that reads rows, inside a transaction that `store.py` opened."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from retriever.config import CollectionSettings
from retriever.document import Document, Passage
from retriever.embedder import Vectors
from retriever.errors import (
    UnknownCollectionError,
    UnknownDocumentError,
)
from retriever.metadata import Filter
from retriever.vector_index import Ids

__all__ = ["Collection", "Reader", "Version"]

COLLECTIONS = """
SELECT c.id, c.name, c.settings, c.embedder_fingerprint, c.embedder_name, c.dimension, c.generation,
       (SELECT count(*) FROM documents d WHERE d.collection_id = c.id),
       (SELECT count(*) FROM passages p WHERE p.collection_id = c.id), c.created_at, c.answering
FROM collections c
"""
DOCUMENTS = """
SELECT d.id, d.uri, d.title, hex(d.content_hash), count(p.id), d.num_characters,
       coalesce(sum(length(p.token_ids)), 0) / 4, d.encoder_fingerprint, d.ingested_at, d.metadata
FROM documents d LEFT JOIN passages p ON p.document_key = d.key
"""
PASSAGES = """
SELECT p.id, d.id, p.label, p.text, p.token_ids, p.encoder_fingerprint, p.start_offset, p.end_offset, p.page,
       p.heading_path, d.title, d.uri
FROM passages p JOIN documents d ON d.key = p.document_key
"""


class Version(NamedTuple):
    """What a stored document was made from; metadata as canonical JSON."""

    content_hash: bytes
    encoder_fingerprint: str
    metadata: str


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection as it is stored; the embedder is unknown until the first vector is.

    How its questions are answered (`answering`) is a JSON object that means something to others.
    """

    id: int
    name: str
    settings: CollectionSettings
    embedder_fingerprint: str | None
    embedder_name: str | None
    dimension: int | None
    generation: int
    num_documents: int
    num_passages: int
    created_at: str
    answering: str


class Reader:
    """Reads of one snapshot."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def connection(self) -> sqlite3.Connection:
        """The transaction's connection, for tables that others keep in this database."""
        return self._connection

    def collections(self) -> list[Collection]:
        """Return every collection, by name."""
        return [_collection(row) for row in self._connection.execute(COLLECTIONS + "ORDER BY c.name")]

    def collection(self, name: str) -> Collection:
        """Return a collection.

        Raises:
            UnknownCollectionError: there is none of this name.
        """
        row = self._connection.execute(COLLECTIONS + "WHERE c.name = ?", (name,)).fetchone()
        if row is None:
            known = self._connection.execute("SELECT name FROM collections ORDER BY name")
            raise UnknownCollectionError(name, [other for (other,) in known])
        return _collection(row)

    def refresh(self, collection: Collection) -> Collection:
        """Return a collection as it is in this snapshot.

        Raises:
            UnknownCollectionError: it is deleted, even if another one has its name.
        """
        row = self._connection.execute(COLLECTIONS + "WHERE c.id = ?", (collection.id,)).fetchone()
        if row is None:
            raise UnknownCollectionError(collection.name, is_gone=True)
        return _collection(row)

    def versions(self, collection: Collection) -> dict[str, Version]:
        """Return what every document was made from, by id."""
        statement = "SELECT id, content_hash, encoder_fingerprint, metadata FROM documents WHERE collection_id = ?"
        return {row[0]: Version(*row[1:]) for row in self._connection.execute(statement, (collection.id,))}

    def documents(self, collection: Collection) -> list[Document]:
        """Return every document of a collection, by uri."""
        statement = DOCUMENTS + "WHERE d.collection_id = ? GROUP BY d.key ORDER BY d.uri"
        return [_document(row) for row in self._connection.execute(statement, (collection.id,))]

    def document(self, collection: Collection, document_id: str) -> Document:
        """Return a document.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        statement = DOCUMENTS + "WHERE d.collection_id = ? AND d.id = ? GROUP BY d.key"
        row = self._connection.execute(statement, (collection.id, document_id)).fetchone()
        if row is None:
            raise UnknownDocumentError(
                f"collection {collection.name!r} has no document {document_id!r}; list its documents for their ids"
            )
        return _document(row)

    def document_text(self, collection: Collection, document_id: str) -> str:
        """Return the extracted text of a document, which passage offsets refer to."""
        self.document(collection, document_id)
        statement = "SELECT text FROM documents WHERE collection_id = ? AND id = ?"
        text: str = self._connection.execute(statement, (collection.id, document_id)).fetchone()[0]
        return text

    def passages(self, collection: Collection, document_id: str | None = None) -> Iterator[Passage]:
        """Yield the passages of a document, or of all, in the order of ids and of the text."""
        condition = "WHERE p.collection_id = ? AND (? IS NULL OR d.id = ?) ORDER BY d.id, p.ordinal"
        return map(_passage, self._connection.execute(PASSAGES + condition, (collection.id, document_id, document_id)))

    def passages_by_id(self, collection: Collection, ids: Iterable[int]) -> dict[int, Passage]:
        """Return those of the passages that live, by id."""
        condition = "WHERE +p.collection_id = ? AND p.id IN (SELECT value FROM json_each(?))"  # +: found by id
        values = (collection.id, json.dumps(list(ids)))
        return {row[0]: _passage(row) for row in self._connection.execute(PASSAGES + condition, values)}

    def passages_of_vectors(self, collection: Collection, ids: Ids) -> dict[int, int]:
        """Return the passage id of each vector that lives, by vector id."""
        condition = "collection_id = ? AND id IN (SELECT value FROM json_each(?))"
        statement = f"SELECT id, passage_id FROM vectors WHERE {condition}"  # noqa: S608 - no outside text
        return dict(self._connection.execute(statement, (collection.id, json.dumps(ids.tolist()))))

    def num_vectors(self, collection: Collection) -> int:
        """Return how many vectors live."""
        statement = "SELECT count(*) FROM vectors WHERE collection_id = ?"
        count: int = self._connection.execute(statement, (collection.id,)).fetchone()[0]
        return count

    def vector_ids(self, collection: Collection) -> Ids:
        """Return the ids of all vectors that live, ascending."""
        rows = self._connection.execute("SELECT id FROM vectors WHERE collection_id = ? ORDER BY id", (collection.id,))
        return np.fromiter((row[0] for row in rows), np.int64)

    def vectors(self, collection: Collection, ids: Ids | None = None) -> tuple[Ids, Vectors]:
        """Return ids and vectors [n, dimension], ascending by id: of all that live, or of those asked for."""
        condition = "collection_id = ? AND (?2 IS NULL OR id IN (SELECT value FROM json_each(?2))) ORDER BY id"
        statement = f"SELECT id, data FROM vectors WHERE {condition}"  # noqa: S608 - no outside text
        wanted = None if ids is None else json.dumps(ids.tolist())
        found: list[int] = []
        data = bytearray()
        for vector_id, blob in self._connection.execute(statement, (collection.id, wanted)):
            found.append(vector_id)
            data += blob
        return np.array(found, np.int64), np.frombuffer(data, "<f4").reshape(len(found), -1 if found else 0)

    def matching_vectors(self, collection: Collection, condition: Filter) -> dict[int, int]:
        """Return the passage id of each vector that lives and whose document fits a condition, by vector id."""
        statement = f"""
            SELECT v.id, v.passage_id FROM documents d JOIN passages p ON p.document_key = d.key
            JOIN vectors v ON v.passage_id = p.id WHERE d.collection_id = ? AND {condition.over("d.metadata")}
        """  # noqa: S608 - made of checked names
        return dict(self._connection.execute(statement, (collection.id, *condition.values)))

    def live_keys(self, keys: Iterable[bytes]) -> set[bytes]:
        """Return those of the keys of derived data that a passage or a collection needs."""
        statement = "SELECT 1 FROM derived_keys WHERE key = ?"
        return {key for key in keys if self._connection.execute(statement, (key,)).fetchone()}

    def all_live_keys(self) -> set[bytes]:
        """Return every key of derived data that a passage or a collection needs."""
        return {key for (key,) in self._connection.execute("SELECT DISTINCT key FROM derived_keys")}

    def keys_of(self, collection: Collection, document_id: str) -> set[bytes]:
        """Return the keys of data derived from a document's passages."""
        statement = """
            SELECT k.key FROM documents d JOIN passages p ON p.document_key = d.key
            JOIN derived_keys k ON k.passage_id = p.id WHERE d.collection_id = ? AND d.id = ?
        """
        return {key for (key,) in self._connection.execute(statement, (collection.id, document_id))}

    def dead_keys(self) -> list[tuple[bytes, bool]]:
        """Return the keys that nothing needs any more, and whether every copy of their data must go."""
        rows = self._connection.execute("SELECT key, erase FROM dead_keys")
        return [(key, bool(erase)) for key, erase in rows]

    def twins(self, collection: Collection, document_id: str) -> dict[int, Passage]:
        """Return, by id, for passages of a document one of another document that has the same tokens."""
        pairs = """
            SELECT p.id, min(o.id) FROM documents d JOIN passages p ON p.document_key = d.key
            JOIN passages o ON o.collection_id = d.collection_id
                AND substr(o.token_ids, -128) = substr(p.token_ids, -128)  -- as the index has them
                AND o.token_ids = p.token_ids AND o.document_key <> d.key
            WHERE d.collection_id = ? AND d.id = ? GROUP BY p.id
        """
        found = dict(self._connection.execute(pairs, (collection.id, document_id)))
        others = self.passages_by_id(collection, found.values())
        return {passage_id: others[other] for passage_id, other in found.items()}

    def retrievals(self, collection: Collection) -> dict[int, int]:
        """Return how often each passage was found for a question, by id; those that never were are left out."""
        statement = """
            SELECT r.passage_id, r.count FROM retrievals r JOIN passages p ON p.id = r.passage_id
            WHERE p.collection_id = ?
        """
        return dict(self._connection.execute(statement, (collection.id,)))

    def vectors_of_passages(self, ids: Iterable[int]) -> dict[int, Vectors]:
        """Return the vectors [windows, dimension] of passages, by id."""
        statement = "SELECT data FROM vectors WHERE passage_id = ?"
        rows = {item: self._connection.execute(statement, (item,)).fetchall() for item in ids}
        return {item: np.stack([np.frombuffer(data, "<f4") for (data,) in found]) for item, found in rows.items()}

    def generation(self, collection: Collection) -> int:
        """Return the collection's generation in this snapshot, which is 0 for one that is deleted."""
        row = self._connection.execute("SELECT generation FROM collections WHERE id = ?", (collection.id,)).fetchone()
        return int(row[0]) if row else 0


def _collection(row: Any) -> Collection:
    return Collection(*(*row[:2], CollectionSettings.from_json(row[2]), *row[3:]))


def _document(row: Any) -> Document:
    return Document(*(*row[:3], row[3].lower(), *row[4:-1], json.loads(row[-1])))


def _passage(row: Any) -> Passage:
    tokens = tuple(np.frombuffer(row[4], "<i4").tolist())
    return Passage(*(*row[:4], tokens, *row[5:9], tuple(json.loads(row[9])), *row[10:]))
