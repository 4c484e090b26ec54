"""Every SQL statement that changes rows, inside a transaction that `store.py` opened."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retriever.config import CollectionSettings
from retriever.embedder import Vectors
from retriever.errors import CollectionExistsError
from retriever.records import Collection, Reader

__all__ = ["DocumentRow", "PassageRow", "Writer"]


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document to be stored."""

    id: str
    uri: str
    title: str
    content_hash: bytes
    text: str
    encoder_fingerprint: str
    metadata: str = "{}"  # canonical JSON


@dataclass(frozen=True, slots=True)
class PassageRow:
    """A passage to be stored; without vectors where those of the same id are stored already."""

    id: int
    label: str
    text: str
    start: int
    end: int
    page: int | None
    heading_path: tuple[str, ...]
    token_ids: Sequence[int]
    vectors: dict[int, Vectors]  # vector id -> [dimension], in the order of the windows


class Writer(Reader):
    """Changes of one transaction; it reads what it has changed."""

    def add_collection(self, name: str, settings: CollectionSettings, answering: str = "{}") -> Collection:
        """Make a collection.

        Raises:
            CollectionExistsError: there is one of this name.
        """
        try:
            values = (name, settings.to_json(), answering)
            self._connection.execute("INSERT INTO collections (name, settings, answering) VALUES (?, ?, ?)", values)
        except sqlite3.IntegrityError as error:
            raise CollectionExistsError(f"collection {name!r} exists already; use it or choose another name") from error
        return self.collection(name)

    def delete_collection(self, collection: Collection) -> None:
        """Delete a collection with everything in it."""
        self._connection.execute("DELETE FROM collections WHERE id = ?", (collection.id,))

    def set_embedder(self, collection: Collection, fingerprint: str, name: str, dimension: int) -> None:
        """Remember what made the collection's vectors."""
        statement = "UPDATE collections SET embedder_fingerprint = ?, embedder_name = ?, dimension = ? WHERE id = ?"
        self._connection.execute(statement, (fingerprint, name, dimension, collection.id))

    def next_generation(self, collection: Collection) -> int:
        """Count one more change of the collection's vectors and return the new generation."""
        self._connection.execute("UPDATE collections SET generation = generation + 1 WHERE id = ?", (collection.id,))
        return self.generation(collection)

    def put_document(self, collection: Collection, document: DocumentRow) -> int:
        """Insert a document or replace its row, and return its key; its passages stay as they are."""
        statement = """
            INSERT INTO documents (collection_id, id, uri, title, content_hash, text, num_characters,
                                   encoder_fingerprint, metadata)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (collection_id, id) DO UPDATE SET title = excluded.title, text = excluded.text,
                num_characters = excluded.num_characters, content_hash = excluded.content_hash,
                encoder_fingerprint = excluded.encoder_fingerprint, metadata = excluded.metadata,
                ingested_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
            RETURNING key
        """
        d = document
        content = (d.uri, d.title, d.content_hash, d.text, len(d.text), d.encoder_fingerprint, d.metadata)
        key: int = self._connection.execute(statement, (collection.id, d.id, *content)).fetchone()[0]
        return key

    def set_metadata(self, collection: Collection, metadata: Mapping[str, str]) -> None:
        """Replace the metadata of documents, by id."""
        self._connection.executemany(
            "UPDATE documents SET metadata = ? WHERE collection_id = ? AND id = ?",
            ((text, collection.id, document_id) for document_id, text in metadata.items()),
        )

    def set_answering(self, collection: Collection, answering: str) -> None:
        """Replace how the collection's questions are answered; what was prepared for them may have to be made anew."""
        self._connection.execute("UPDATE collections SET answering = ? WHERE id = ?", (answering, collection.id))
        self.next_generation(collection)

    def keep_passages(self, key: int, ids: Iterable[int]) -> dict[int, str]:
        """Delete a document's passages that are not among `ids`, and return the labels of the others by id."""
        condition = "document_key = ? AND id NOT IN (SELECT value FROM json_each(?))"
        self._connection.execute(f"DELETE FROM passages WHERE {condition}", (key, json.dumps(list(ids))))  # noqa: S608
        return dict(self._connection.execute("SELECT id, label FROM passages WHERE document_key = ?", (key,)))

    def label_is_free(self, collection: Collection, label: str) -> bool:
        """Tell whether no passage of the collection has the label."""
        statement = "SELECT 1 FROM passages WHERE collection_id = ? AND label = ?"
        return self._connection.execute(statement, (collection.id, label)).fetchone() is None

    def put_passages(self, collection: Collection, key: int, encoder: str, passages: Sequence[PassageRow]) -> None:
        """Insert a document's passages in their order, or update those whose id is there."""
        statement = """
            INSERT INTO passages (id, collection_id, document_key, ordinal, label, text, start_offset, end_offset, page,
                                  heading_path, token_ids, encoder_fingerprint)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (id) DO UPDATE SET ordinal = excluded.ordinal, start_offset = excluded.start_offset,
                end_offset = excluded.end_offset, page = excluded.page, token_ids = excluded.token_ids,
                encoder_fingerprint = excluded.encoder_fingerprint
        """
        for ordinal, p in enumerate(passages):
            path = json.dumps(p.heading_path, ensure_ascii=False)
            place = (p.id, collection.id, key, ordinal, p.label, p.text, p.start, p.end, p.page, path)
            self._connection.execute(statement, (*place, _token_blob(p.token_ids), encoder))
        self._connection.executemany(
            "INSERT INTO vectors (id, collection_id, passage_id, window, data) VALUES (?, ?, ?, ?, ?)",
            (
                (vector_id, collection.id, p.id, window, vector.astype("<f4").tobytes())
                for p in passages
                for window, (vector_id, vector) in enumerate(p.vectors.items())
            ),
        )

    def delete_documents(self, collection: Collection, ids: Sequence[str]) -> int:
        """Delete documents with their passages and vectors, and return how many there were."""
        condition = "collection_id = ? AND id IN (SELECT value FROM json_each(?))"
        values = (collection.id, json.dumps(list(ids)))
        return self._connection.execute(f"DELETE FROM documents WHERE {condition}", values).rowcount  # noqa: S608

    def claim_keys(self, claims: Iterable[tuple[bytes, int, int | None]]) -> None:
        """Write down which keys of derived data are needed: (key, collection id, passage id or None).

        What is deleted, or of another collection, needs nothing.
        """
        statement = """
            INSERT OR IGNORE INTO derived_keys (key, collection_id, passage_id) SELECT ?1, ?2, ?3
            WHERE CASE WHEN ?3 IS NULL THEN EXISTS (SELECT 1 FROM collections WHERE id = ?2)
                  ELSE EXISTS (SELECT 1 FROM passages WHERE id = ?3 AND collection_id = ?2) END
        """
        self._connection.executemany(statement, claims)

    def forget_dead_keys(self, keys: Iterable[bytes]) -> None:
        """Take keys out of the queue of those whose data must be removed."""
        self._connection.executemany("DELETE FROM dead_keys WHERE key = ?", ((key,) for key in keys))

    def ask_for_erasure(self, keys: Iterable[bytes]) -> None:
        """Ask of those of the keys that are in the queue that no copy of their data is left."""
        self._connection.executemany("UPDATE dead_keys SET erase = 1 WHERE key = ?", ((key,) for key in keys))

    def count_retrievals(self, counts: Mapping[int, int]) -> None:
        """Add to how often passages were found for a question, by id; those that are deleted are left out."""
        statement = """
            INSERT INTO retrievals (passage_id, count) SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM passages WHERE id = ?1)
            ON CONFLICT (passage_id) DO UPDATE SET count = count + excluded.count
        """
        self._connection.executemany(statement, counts.items())


def _token_blob(token_ids: Sequence[int]) -> bytes:
    return np.asarray(token_ids, "<i4").tobytes()
