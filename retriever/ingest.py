"""From sources to stored passages: read, extract, split, embed, encode, commit; batch by batch.

A batch is one transaction, so that a crash, an error or Ctrl-C at any moment leaves each document in its old or its
new version; what is committed is not read again by the next run. Ids and labels come from the content.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from retriever.config import RetrieverConfig
from retriever.document import PassageEncoder, RawDocument, Source, digest, document_id
from retriever.drafts import Draft, Pending, drafts_of, header_of, put_document
from retriever.embedder import TextEmbedder, Vectors
from retriever.errors import EmbedderError, EmbedderMismatchError, SourceError
from retriever.extract import EXTRACT_VERSION
from retriever.extract.sandbox import Extractor
from retriever.indexes import Indexes
from retriever.metadata import check_metadata
from retriever.records import Collection, Version
from retriever.splitter import split
from retriever.store import Store

__all__ = ["IngestEvent", "IngestReport", "Ingestion", "Stage", "check_embedder"]

CHARACTERS_PER_TOKEN = 4  # a guess, only to size batches


class Stage(StrEnum):
    """What an ingestion has just done."""

    UNCHANGED = "unchanged"
    SKIPPED = "skipped"
    EXTRACTED = "extracted"
    EMBEDDED = "embedded"
    COMMITTED = "committed"
    REMOVED = "removed"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class IngestEvent:
    """Progress of an ingestion.

    Attributes:
        stage: what was done.
        uri: of the document in question; empty where several are.
        documents: sources finished so far, of `total` (None while their number is unknown).
        passages: passages committed so far; with `EMBEDDED`, passages of the current batch embedded so far.
        message: the reason of a skip, or a notice.
        passage_ids: passages that a commit has added or changed.
    """

    stage: Stage
    uri: str
    documents: int
    total: int | None
    passages: int
    message: str = ""
    passage_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class IngestReport:
    """What an ingestion did; `skipped` holds (uri, reason), `passages` counts those of added and updated documents."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    passages: int = 0


class Ingestion:
    """One run over sources; made by `Library.ingest`, which documents the arguments."""

    def __init__(
        self,
        store: Store,
        indexes: Indexes,
        embedder: TextEmbedder,
        encoder: PassageEncoder,
        extractor: Extractor,
        config: RetrieverConfig,
        progress: Callable[[IngestEvent], None],
    ) -> None:
        self._store = store
        self._indexes = indexes
        self._embedder = embedder
        self._encoder = encoder
        self._extractor = extractor
        self._config = config
        self._progress = progress
        self._finished = 0
        self._relabelled: dict[str, str] = {}  # metadata by document id, of those whose content is as it was
        self._total: int | None = None
        self.report = IngestReport()

    def run(self, collection: Collection, sources: Iterable[Source], scope: Sequence[str] | None) -> IngestReport:
        """Ingest the sources; with a `scope`, remove documents below its uri prefixes that were not among them."""
        check_embedder(collection, self._embedder)
        self._total = len(sources) if isinstance(sources, Sequence) else None
        with self._store.read() as reader:
            versions = reader.versions(collection)
        seen: set[str] = set()
        pending: list[Pending] = []
        size = 0
        for source in sources:
            identity = document_id(source.uri)
            if identity in seen and any(item.id == identity for item in pending):
                collection, pending, size = self._flush(collection, pending), [], 0  # keep the order of versions
            seen.add(identity)
            item = self._read(source, identity, versions)
            if item is not None:
                pending.append(item)
                size += 1 + len(item.text.text) // (CHARACTERS_PER_TOKEN * collection.settings.split.passage_tokens)
            if max(size, len(self._relabelled)) >= self._config.batch_passages:
                collection, pending, size = self._flush(collection, pending), [], 0
        self._flush(collection, pending)
        if scope is not None:
            self._prune(collection, seen, scope)
        return self.report

    def _tell(self, stage: Stage, uri: str = "", message: str = "", *, ids: tuple[int, ...] = ()) -> None:
        self._progress(IngestEvent(stage, uri, self._finished, self._total, self.report.passages, message, ids))

    def notice(self, message: str) -> None:
        """Tell the caller something about the collection."""
        self._tell(Stage.NOTICE, message=message)

    def _read(self, source: Source, identity: str, versions: dict[str, Version]) -> Pending | None:
        """Return the extracted document, or None when it is stored already or cannot be used."""
        try:
            raw = source.read(self._config.max_document_bytes)
            version, stored = self._version(raw, versions.get(identity)), versions.get(identity)
            if stored is not None and stored[:2] == version[:2]:
                self._note_stored(source.uri, identity, stored, version)
                versions[identity] = version
                return None
            text = self._extractor.extract(raw)
        except SourceError as error:
            self.report.skipped.append((source.uri, str(error)))
            self._finished += 1
            self._tell(Stage.SKIPPED, source.uri, str(error))
            return None
        versions[identity] = version
        self._tell(Stage.EXTRACTED, source.uri)
        return Pending(identity, source.uri, text.title or source.uri, version.content_hash, text, version.metadata)

    def _version(self, raw: RawDocument, stored: Version | None) -> Version:
        """Return what a document is made from; where nothing is said of its metadata, it keeps what it has."""
        kept = stored.metadata if stored is not None else check_metadata({})
        metadata = kept if raw.metadata is None else check_metadata(raw.metadata)
        return Version(digest(EXTRACT_VERSION, raw.content_hash), self._encoder.fingerprint, metadata)

    def _note_stored(self, uri: str, identity: str, stored: Version, version: Version) -> None:
        """Count a document whose text is stored already, or have its new metadata written with the next batch."""
        if stored != version:
            self._relabelled[identity] = version.metadata
            return
        self.report.unchanged += 1
        self._finished += 1
        self._tell(Stage.UNCHANGED, uri)

    def _flush(self, collection: Collection, pending: Sequence[Pending]) -> Collection:
        """Split, embed and commit a batch of documents, and return the collection as it is then."""
        self._relabel(collection)
        if not pending:
            return collection
        spans = split([item.text for item in pending], collection.settings.split, self._encoder.count)
        drafts = [drafts_of(collection, item, cut) for item, cut in zip(pending, spans, strict=True)]
        with self._store.read() as reader:
            wanted = [draft.id for group in drafts for draft in group]
            stored = reader.passages_by_id(collection, wanted).keys()
        vectors: dict[int, Vectors] = {}
        missing = set(wanted) - stored
        while True:  # twice only when another thread deletes a document in between
            vectors.update(self._embed(pending, drafts, missing))
            collection = self._bind(collection, vectors)
            missing = self._commit(collection, pending, drafts, vectors)
            if not missing:
                return collection

    def _relabel(self, collection: Collection) -> None:
        """Commit the metadata of documents whose text is stored already."""
        if self._relabelled:
            with self._store.write() as writer:
                writer.set_metadata(writer.refresh(collection), self._relabelled)
            self.report.updated += len(self._relabelled)
            self._finished += len(self._relabelled)
            self._relabelled.clear()
            self._tell(Stage.COMMITTED)

    def _embed(
        self, pending: Sequence[Pending], drafts: list[list[Draft]], wanted: set[int]
    ) -> Iterator[tuple[int, Vectors]]:
        """Yield passage id and vectors [windows, dimension] of the passages wanted."""
        items = [
            (draft, header_of(item.title, draft))
            for item, group in zip(pending, drafts, strict=True)
            for draft in group
            if draft.id in wanted
        ]
        step = self._config.batch_passages
        for start in range(0, len(items), step):
            chunk = items[start : start + step]
            found = self._embedder.embed_documents([draft.text for draft, _ in chunk], [header for _, header in chunk])
            for (draft, _), vectors in zip(chunk, found, strict=True):
                if not len(vectors) or not np.isfinite(vectors).all():
                    raise EmbedderError(
                        f"embedder {self._embedder.name!r} gave no usable vector for {draft.text[:80]!r}; "
                        "pull it again or choose another one"
                    )
                yield draft.id, vectors
            count = start + len(chunk)
            self._progress(IngestEvent(Stage.EMBEDDED, "", self._finished, self._total, count, f"of {len(items)}"))

    def _bind(self, collection: Collection, vectors: dict[int, Vectors]) -> Collection:
        """Make the collection remember its embedder, once there is a first vector."""
        if collection.embedder_fingerprint is not None:
            return collection
        dimension = next(iter(vectors.values())).shape[1]
        with self._store.write() as writer:
            current = writer.refresh(collection)
            check_embedder(current, self._embedder)
            if current.embedder_fingerprint is None:
                writer.set_embedder(current, self._embedder.fingerprint, self._embedder.name, dimension)
            return writer.refresh(collection)

    def _commit(
        self,
        collection: Collection,
        pending: Sequence[Pending],
        drafts: list[list[Draft]],
        vectors: dict[int, Vectors],
    ) -> set[int]:
        """Commit a batch, or return the passages whose stored vectors have gone meanwhile."""
        try:
            with self._store.write() as writer:
                collection = writer.refresh(collection)
                wanted = {draft.id for group in drafts for draft in group}
                missing = wanted - vectors.keys() - writer.passages_by_id(collection, wanted - vectors.keys()).keys()
                if missing:
                    return missing
                versions = writer.versions(collection)
                rows = [
                    row
                    for item, group in zip(pending, drafts, strict=True)
                    for row in put_document(writer, collection, item, group, vectors, self._encoder)
                ]
                added = {vector_id: vector for row in rows for vector_id, vector in row.vectors.items()}
                if added:
                    ids = np.fromiter(added, np.int64, len(added))
                    generation = writer.next_generation(collection)
                    self._indexes.add(collection, generation, ids, np.stack(list(added.values())))
                else:
                    writer.next_generation(collection)
        except BaseException:
            self._indexes.take_back(collection)
            raise
        updated = sum(item.id in versions for item in pending)
        self.report.updated += updated
        self.report.added += len(pending) - updated
        self.report.passages += len(rows)
        self._finished += len(pending)
        self._tell(Stage.COMMITTED, pending[0].uri if len(pending) == 1 else "", ids=tuple(row.id for row in rows))
        return set()

    def _prune(self, collection: Collection, seen: set[str], scope: Sequence[str]) -> None:
        with self._store.write() as writer:
            documents = writer.documents(collection)
            gone = [d for d in documents if d.id not in seen and d.uri.startswith(tuple(scope))]
            if gone:
                self.report.removed = writer.delete_documents(collection, [document.id for document in gone])
                writer.next_generation(collection)
        for document in gone:
            self._tell(Stage.REMOVED, document.uri)


def check_embedder(collection: Collection, embedder: TextEmbedder) -> None:
    """Check that a collection's vectors come from this embedder.

    Raises:
        EmbedderMismatchError: they come from another.
    """
    if collection.embedder_fingerprint in (None, embedder.fingerprint):
        return
    raise EmbedderMismatchError(
        f"collection {collection.name!r} was made with embedder {collection.embedder_name!r} "
        f"({collection.embedder_fingerprint}), not with {embedder.name!r} ({embedder.fingerprint}); "
        "use that embedder, or ingest the documents into a new collection"
    )
