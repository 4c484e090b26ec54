"""The same operations, done by a running server over HTTP."""

import base64
from collections.abc import Generator, Iterator, Sequence
from time import perf_counter
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from rag.cache_operations import RemoteCache
from rag.config import RetrieverSettings
from rag.job_operations import RemoteJobs
from rag.key_operations import RemoteKeys
from rag.operations import Progress, ignore_progress, ignored_settings
from rag.remote import Remote
from rag.schemas import (
    AnswerEvent,
    AnswerRequest,
    CollectionInfo,
    CollectionList,
    CollectionPatch,
    DeletedDocument,
    DocumentInfo,
    DocumentList,
    DocumentWithPassages,
    IngestReport,
    NewCollection,
    PrecomputePlan,
    PrecomputeProgress,
    SearchRequest,
    SearchResult,
    SkippedDocument,
)
from rag.usage_operations import RemoteUsage
from retriever.document import RawDocument, Source
from retriever.errors import SourceError
from retriever.ingest import IngestEvent, Stage

__all__ = ["Client"]

BATCH_BYTES = 4 * 2**20  # of documents in one request
BATCH_DOCUMENTS = 32

_EVENTS: TypeAdapter[AnswerEvent] = TypeAdapter(AnswerEvent)
_PROGRESS = TypeAdapter(PrecomputeProgress)
_NOTHING = IngestReport(collection="", added=0, updated=0, unchanged=0, removed=0, skipped=[], passages=0, seconds=0.0)


class Client:
    """Talks to a server.

    Args:
        url: its address, such as `http://127.0.0.1:8000`.
        wanted: what the user has set for documents here; it says so where a collection has other settings,
            and sends no larger ones.
        key: an API key, or the token of the server's data directory; empty is none.
        transport: used instead of the network (tests).
    """

    def __init__(
        self,
        url: str,
        *,
        wanted: RetrieverSettings | None = None,
        key: str = "",
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url
        self._wanted = wanted or RetrieverSettings()
        self._remote = Remote(url, key=key, transport=transport)
        self._call = self._remote.call
        self.jobs = RemoteJobs(self._remote)
        self.cache = RemoteCache(self._call, self.jobs)
        self.keys = RemoteKeys(self._call)
        self.usage = RemoteUsage(self._call)

    def close(self) -> None:
        """Close the connections."""
        self._remote.close()

    def health(self) -> dict[str, Any]:
        """Return what the server says about itself.

        Raises:
            ServerError: it does not answer.
        """
        health: dict[str, Any] = self._call("GET", "/healthz").json()
        return health

    def answer(self, request: AnswerRequest) -> Iterator[AnswerEvent]:
        """Answer a question; see `Operations.answer`."""
        body = request.model_copy(update={"stream": True}).model_dump(mode="json", exclude_none=True)
        return self._remote.events("POST", "/v1/answer", _EVENTS, json=body)

    def search(self, request: SearchRequest) -> SearchResult:
        """Find passages."""
        body = request.model_dump(mode="json", exclude_none=True)
        return SearchResult.model_validate(self._call("POST", "/v1/search", json=body).json())

    def ingest(
        self,
        collection: str,
        sources: Sequence[Source],
        *,
        prune_scope: Sequence[str] | None = None,
        progress: Progress = ignore_progress,
    ) -> IngestReport:
        """Send documents in batches; see `Operations.ingest`."""
        started = perf_counter()
        total = _NOTHING.model_copy(update={"collection": collection})
        skipped: list[SkippedDocument] = []
        done = 0
        for batch, sources_done in _batches(sources, skipped, self._wanted.max_document_bytes):
            if batch:
                total = _add(total, self._send(collection, batch))
            done += sources_done
            progress(IngestEvent(Stage.COMMITTED, "", done, len(sources), total.passages))
        stored = done > len(total.skipped) + len(skipped)
        if stored and self._wanted != RetrieverSettings():
            for message in ignored_settings(self.collection(collection), self._wanted):
                progress(IngestEvent(Stage.NOTICE, "", done, len(sources), total.passages, message))
        if prune_scope is not None and (stored or any(info.name == collection for info in self.collections())):
            kept = {source.uri for source in sources}
            gone = [
                document
                for document in self.documents(collection)
                if document.uri not in kept and document.uri.startswith(tuple(prune_scope))
            ]
            for document in gone:
                self.delete_document(collection, document.id)
                progress(IngestEvent(Stage.REMOVED, document.uri, done, len(sources), total.passages))
            total = total.model_copy(update={"removed": len(gone)})
        return total.model_copy(update={"skipped": [*total.skipped, *skipped], "seconds": perf_counter() - started})

    def precompute_plan(self, collection: str) -> PrecomputePlan:
        """Tell what it takes to store the KV of a collection's passages."""
        return PrecomputePlan.model_validate(self._call("GET", _path(collection, "precompute")).json())

    def precompute(self, collection: str) -> Generator[PrecomputeProgress, None, None]:
        """Let the server compute; see `Operations.precompute`."""
        return self._remote.events("POST", _path(collection, "precompute"), _PROGRESS)

    def collections(self) -> list[CollectionInfo]:
        """Return every collection, by name."""
        return CollectionList.model_validate(self._call("GET", "/v1/collections").json()).collections

    def collection(self, name: str) -> CollectionInfo:
        """Return a collection."""
        return CollectionInfo.model_validate(self._call("GET", _path(name)).json())

    def create_collection(self, wanted: NewCollection) -> CollectionInfo:
        """Make an empty collection."""
        body = wanted.model_dump(mode="json", exclude_unset=True)
        return CollectionInfo.model_validate(self._call("POST", "/v1/collections", json=body).json())

    def update_collection(self, name: str, patch: CollectionPatch) -> CollectionInfo:
        """Change how questions over a collection are answered."""
        body = patch.model_dump(mode="json", exclude_unset=True)
        return CollectionInfo.model_validate(self._call("PATCH", _path(name), json=body).json())

    def delete_collection(self, name: str) -> None:
        """Delete a collection with everything in it."""
        self._call("DELETE", _path(name))

    def documents(self, collection: str) -> list[DocumentInfo]:
        """Return every document of a collection, by uri."""
        return DocumentList.model_validate(self._call("GET", _path(collection, "documents")).json()).documents

    def document(self, collection: str, document_id: str) -> DocumentWithPassages:
        """Return a document with its passages."""
        response = self._call("GET", _path(collection, "documents", document_id))
        return DocumentWithPassages.model_validate(response.json())

    def delete_document(self, collection: str, document_id: str, *, purge: bool = False) -> DeletedDocument:
        """Delete a document with its passages, and return it; see `Operations.delete_document`."""
        response = self._call("DELETE", _path(collection, "documents", document_id), params={"purge": purge})
        return DeletedDocument.model_validate(response.json())

    def _send(self, collection: str, batch: list[RawDocument]) -> IngestReport:
        documents = [
            {
                "uri": raw.uri,
                "data": base64.b64encode(raw.data).decode(),
                "name": raw.name,
                "title": raw.title,
                "media_type": raw.media_type,
                "metadata": raw.metadata,
            }
            for raw in batch
        ]
        response = self._remote.send("POST", _path(collection, "documents"), json={"documents": documents})
        if skipped := _skipped(response):  # none of them can be used; those of other batches may be
            return _NOTHING.model_copy(update={"collection": collection, "skipped": skipped})
        self._remote.check(response)
        return IngestReport.model_validate(response.json())


def _path(*parts: str) -> str:
    return "/v1/collections/" + "/".join(quote(part, safe="") for part in parts)


def _skipped(response: httpx.Response) -> list[SkippedDocument]:
    """Return the documents of a request that was refused because none of them can be used."""
    if response.status_code != httpx.codes.UNPROCESSABLE_ENTITY:
        return []
    return [SkippedDocument.model_validate(item) for item in response.json().get("skipped", [])]


def _batches(
    sources: Sequence[Source], skipped: list[SkippedDocument], max_bytes: int
) -> Iterator[tuple[list[RawDocument], int]]:
    """Yield documents to send, with how many sources they stand for; what cannot be read is added to `skipped`."""
    batch: list[RawDocument] = []
    size = taken = 0
    for source in sources:
        taken += 1
        try:
            raw = source.read(max_bytes)
        except SourceError as error:
            skipped.append(SkippedDocument(uri=source.uri, reason=str(error)))
            continue
        batch.append(raw)
        size += len(raw.data)
        if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield batch, taken
            batch, size, taken = [], 0, 0
    if taken:
        yield batch, taken


def _add(total: IngestReport, part: IngestReport) -> IngestReport:
    counts = {
        name: getattr(total, name) + getattr(part, name) for name in ("added", "updated", "unchanged", "passages")
    }
    return total.model_copy(update={**counts, "skipped": [*total.skipped, *part.skipped]})
