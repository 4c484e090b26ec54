"""The library: collections of documents that can be ingested and searched. The package's front door."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from retriever.config import CollectionSettings, RetrieverConfig
from retriever.derived import Deletion, DerivedKeys
from retriever.document import Document, Hit, Passage, PassageEncoder, Source
from retriever.embedder import TextEmbedder, Vectors
from retriever.errors import (
    EmbedderError,
    QueryError,
    SettingsError,
    SettingsMismatchError,
    StoreError,
    UnknownCollectionError,
)
from retriever.extract.sandbox import Extractor
from retriever.index_spec import IndexSpec
from retriever.indexes import Indexes
from retriever.ingest import IngestEvent, Ingestion, IngestReport, check_embedder
from retriever.metadata import Metadata, check_metadata, parse_filter
from retriever.popularity import Popularity
from retriever.records import Collection
from retriever.search import OnCandidates, find, ignore_candidates
from retriever.store import Store
from retriever.upkeep import check_collection

__all__ = ["Library"]

logger = logging.getLogger(__name__)

COLLECTION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TRIAL_DIMENSION = 768  # to refuse a bad factory string before the embedder is loaded; divisible by what PQ asks for


def _ignore(event: IngestEvent) -> None:
    """Stand in for a progress callback."""


class Library:
    """Documents, passages and vectors below one folder; every method may be called from any thread.

    A search sees one committed state of its collection: a document that is deleted, or replaced, is so at once.
    Made by `open`.

    Attributes:
        store: the database, in which others keep tables of their own.
        derived: keys of data that others derive from passages.
        popularity: which passages are found often.
    """

    def __init__(self, store: Store, indexes: Indexes, config: RetrieverConfig, embedder: TextEmbedder | None) -> None:
        self.store = store
        self._indexes = indexes
        self._config = config
        self._embedder = embedder
        self._extractor = Extractor(config.extract)
        self.derived = DerivedKeys(store)
        self.popularity = Popularity(store)

    @classmethod
    def open(
        cls, path: str | Path, config: RetrieverConfig | None = None, *, embedder: TextEmbedder | None = None
    ) -> Self:
        """Open the library below a folder, or make it.

        Without an embedder documents can be listed and deleted, and searched by vector.

        Raises:
            StoreError: the folder or its database cannot be used.
        """
        config = config or RetrieverConfig()
        folder = Path(path).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            store = Store(folder / "library.sqlite3")
            return cls(store, Indexes(folder / "indexes", store, config), config, embedder)
        except OSError as error:
            raise StoreError(f"{folder} cannot be used ({error.strerror or error}); choose another folder") from error

    def close(self) -> None:
        """Save the indexes and close the database; the library cannot be used afterwards."""
        self._extractor.close()
        try:
            self.popularity.flush()
        except StoreError as error:
            logger.warning("how often passages were found is not written down: %s", error)
        try:
            self._indexes.close()
        finally:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Collections

    def create_collection(
        self, name: str, settings: CollectionSettings | None = None, *, answering: str = "{}"
    ) -> Collection:
        """Make an empty collection; how its questions are answered is a JSON object that is kept for others.

        Raises:
            CollectionExistsError: there is one of this name.
            SettingsError: the name or a setting cannot work.
        """
        if not COLLECTION_NAME.fullmatch(name):
            raise SettingsError(
                f"{name!r} cannot name a collection; use at most 64 letters, digits, '.', '_', '-', no sign first"
            )
        settings = settings or self._config.collection
        IndexSpec(TRIAL_DIMENSION, settings.index_factory, settings.index_parameters, device="cpu").make()
        with self.store.write() as writer:
            return writer.add_collection(name, settings, answering)

    def set_answering(self, name: str, answering: str) -> Collection:
        """Replace how a collection's questions are answered, and return the collection.

        Raises:
            UnknownCollectionError: there is none of this name.
        """
        with self.store.write() as writer:
            collection = writer.collection(name)
            writer.set_answering(collection, answering)
            return writer.collection(name)

    def ensure_collection(self, name: str, settings: CollectionSettings | None = None) -> Collection:
        """Return a collection, made if it is missing.

        Raises:
            SettingsMismatchError: it is there with other settings than those given.
            SettingsError: the name or a setting cannot work.
        """
        try:
            collection = self.collection(name)
        except UnknownCollectionError:
            return self.create_collection(name, settings)
        if settings is not None and settings != collection.settings:
            raise SettingsMismatchError(
                f"collection {name!r} was made with {collection.settings.to_json()}, not with {settings.to_json()}; "
                "leave the settings out, or ingest the documents into a new collection"
            )
        return collection

    def collections(self) -> list[Collection]:
        """Return every collection, by name."""
        with self.store.read() as reader:
            return reader.collections()

    def collection(self, name: str) -> Collection:
        """Return a collection.

        Raises:
            UnknownCollectionError: there is none of this name.
        """
        with self.store.read() as reader:
            return reader.collection(name)

    def delete_collection(self, name: str) -> Collection:
        """Delete a collection with everything in it, and return it.

        Raises:
            UnknownCollectionError: there is none of this name.
        """
        with self.store.write() as writer:
            collection = writer.collection(name)
            writer.delete_collection(collection)
        self._indexes.drop(collection)
        return collection

    def drop_empty_collection(self, name: str) -> bool:
        """Delete a collection if it is there and has no documents, and return whether it was."""
        with self.store.write() as writer:
            collection = next((row for row in writer.collections() if row.name == name), None)
            if collection is None or collection.num_documents:
                return False
            writer.delete_collection(collection)
        self._indexes.drop(collection)
        return True

    # Documents and passages

    def ingest(
        self,
        collection: str,
        sources: Iterable[Source],
        encoder: PassageEncoder,
        *,
        prune: bool = False,
        scope: Sequence[str] | None = None,
        progress: Callable[[IngestEvent], None] = _ignore,
    ) -> IngestReport:
        """Bring a collection in line with sources: add new documents, update changed ones, leave the others.

        A source that cannot be used is reported and skipped; if it is stored already, its old version stays.
        Whatever is committed survives an interruption, and the next run goes on from there.

        Args:
            collection: its name.
            sources: what to ingest; a sequence lets progress know the total.
            encoder: gives passages their tokens.
            prune: also remove documents that are not among the sources.
            scope: uri prefixes that `prune` is limited to; None means the whole collection.
            progress: called after every step, in the calling thread.

        Raises:
            UnknownCollectionError: there is no such collection.
            EmbedderMismatchError: the collection was made with another embedder.
            SettingsError: the token budget is too small for the text.
            PassageEncoderError: the encoder breaks its contract.
        """
        row = self.collection(collection)
        embedder = self._require_embedder()
        run = Ingestion(self.store, self._indexes, embedder, encoder, self._extractor, self._config, progress)
        report = run.run(row, sources, ("",) if prune and scope is None else scope if prune else None)
        if report.added or report.updated or report.removed:
            notice = self._maintain(collection)
            if notice:
                run.notice(notice)
        return report

    def documents(self, collection: str) -> list[Document]:
        """Return every document of a collection, by uri.

        Raises:
            UnknownCollectionError: there is no such collection.
        """
        with self.store.read() as reader:
            return reader.documents(reader.collection(collection))

    def document(self, collection: str, document_id: str) -> Document:
        """Return a document.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        with self.store.read() as reader:
            return reader.document(reader.collection(collection), document_id)

    def set_metadata(self, collection: str, document_id: str, metadata: Metadata) -> Document:
        """Replace a document's metadata, and return the document; its text and vectors stay as they are.

        Raises:
            UnknownDocumentError: the collection has none of this id.
            MetadataError: a name or a value that cannot be kept.
        """
        with self.store.write() as writer:
            row = writer.collection(collection)
            writer.document(row, document_id)
            writer.set_metadata(row, {document_id: check_metadata(metadata)})
            return writer.document(row, document_id)

    def document_text(self, collection: str, document_id: str) -> str:
        """Return the extracted text of a document; a passage of it is `text[passage.start:passage.end]`.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        with self.store.read() as reader:
            return reader.document_text(reader.collection(collection), document_id)

    def delete_document(self, collection: str, document_id: str, *, erase: bool = False) -> Deletion:
        """Delete a document with its passages, at once for every search that starts later.

        Args:
            collection: where it is.
            document_id: which one.
            erase: ask that data derived from its passages is overwritten where it lies, not only freed.

        Returns:
            What there was of it, so that others can end theirs.

        Raises:
            UnknownDocumentError: the collection has none of this id.
        """
        with self.store.write() as writer:
            row = writer.collection(collection)
            document = writer.document(row, document_id)
            passages = tuple(writer.passages(row, document_id))
            twins = writer.twins(row, document_id) if erase else {}
            keys = writer.keys_of(row, document_id)
            writer.delete_documents(row, [document_id])
            generation = writer.next_generation(row)
            if erase:
                writer.ask_for_erasure(keys)
            dead = frozenset(keys - writer.live_keys(keys))
        self._maintain(collection)
        return Deletion(row.id, generation, document, passages, dead, twins)

    def passages(self, collection: str, document_id: str | None = None) -> list[Passage]:
        """Return the passages of a document, or of the whole collection, in order.

        Raises:
            UnknownDocumentError: the collection has no document of this id.
        """
        with self.store.read() as reader:
            row = reader.collection(collection)
            if document_id is not None:
                reader.document(row, document_id)
            return list(reader.passages(row, document_id))

    def living(self, collection: Collection, passages: Iterable[int]) -> tuple[Collection, dict[int, Passage]]:
        """Return a collection as it is now and those of its passages that live in it, by id.

        Raises:
            UnknownCollectionError: it is deleted, even if another one has its name.
        """
        with self.store.read() as reader:
            now = reader.refresh(collection)
            return now, reader.passages_by_id(now, passages)

    def iter_passages(self, collection: str) -> Iterator[Passage]:
        """Yield every passage of one snapshot of a collection without holding them all in memory."""
        with self.store.read() as reader:
            yield from reader.passages(reader.collection(collection))

    # Search

    def embed_query(self, question: str) -> Vectors:
        """Return the unit vector [dimension] of a question.

        Raises:
            QueryError: the question is empty.
        """
        if not question.strip():
            raise QueryError("the question is empty; ask something")
        return self._require_embedder().embed_query(question)

    def search(
        self,
        collection: str,
        query: str | Vectors,
        k: int = 5,
        *,
        where: Mapping[str, Any] | None = None,
        on_candidates: OnCandidates = ignore_candidates,
    ) -> list[Hit]:
        """Return the k passages closest to a question, or to its vector [dimension]; best first, each once.

        Args:
            collection: its name.
            query: the question, or its unit vector.
            k: how many.
            where: a condition on the metadata of documents (see `retriever.metadata`); the result is then exact,
                whatever the index.
            on_candidates: called with the k best of the first stage; where the index keeps vectors only roughly, a
                second one scores exactly what that has found.

        Raises:
            UnknownCollectionError: there is no such collection.
            EmbedderMismatchError: the collection was made with another embedder.
            QueryError: the question is empty, k is below 1, the vector has the wrong length, or the condition is none.
        """
        condition = parse_filter(where) if where else None
        if k < 1:
            raise QueryError(f"k is {k}; ask for 1 passage or more")
        row = self.collection(collection)
        if isinstance(query, str):
            check_embedder(row, self._require_embedder())
            query = self.embed_query(query)
        return find(self.store, self._indexes, collection, query, k, condition, on_candidates)

    # Upkeep

    def rebuild_index(self, collection: str) -> int:
        """Make a collection's FAISS index anew from the store, without deleted vectors, and return its size."""
        row = self.collection(collection)
        return len(self._indexes.rebuild(row)) if row.dimension is not None else 0

    def index_status(self, collection: str) -> dict[str, object]:
        """Return what a collection's index is: factory, device, vectors, dead ones, whether it is trained."""
        row = self.collection(collection)
        status: dict[str, object] = {"factory": row.settings.index_factory, "vectors": 0, "dead": 0}
        if row.dimension is None:
            return status
        index = self._indexes.get(row)
        with self.store.read() as reader:
            live = reader.num_vectors(row)
        state = {"device": index.device, "vectors": live, "dead": len(index) - live, "is_trained": index.is_trained}
        return status | state

    def check_invariants(self, collection: str) -> None:
        """Check that every passage is the text it claims to be, has tokens and vectors, and can be found.

        Raises:
            StoreError: the first damage found, with the passage's label.
        """
        with self.store.read() as reader:
            row = reader.collection(collection)
            check_collection(reader, row, self._indexes.get(row) if row.dimension is not None else None)

    def _require_embedder(self) -> TextEmbedder:
        if self._embedder is None:
            raise EmbedderError("the library was opened without an embedder; pass one to Library.open")
        return self._embedder

    def _maintain(self, collection: str) -> str:
        row = self.collection(collection)
        return self._indexes.maintain(row) if row.dimension is not None else ""
