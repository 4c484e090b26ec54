"""Where documents of a request come from."""

from collections.abc import Mapping
from typing import Any

from rag.fetch import UrlSource
from rag.schemas import DocumentInput, IngestRequest
from retriever.document import BytesSource, Source, TextSource

__all__ = ["source_of_input", "sources_of"]


def source_of_input(document: DocumentInput, metadata: Mapping[str, Any] | None = None) -> Source:
    """Make a source of a document that came with a request; `metadata` is for one that has none of its own."""
    known = metadata if document.metadata is None else document.metadata
    if document.text is not None:
        return TextSource(document.uri, document.text, document.title, document.media_type, known)
    assert document.data is not None, "a document has text or data"
    name = document.name or document.uri.rsplit("/", 1)[-1]
    return BytesSource(name, document.data, document.uri, document.title, document.media_type, known)


def sources_of(request: IngestRequest, url_seconds: float) -> list[Source]:
    """Make the sources of a request: documents that came with it, then those that it only names.

    Args:
        request: what to ingest.
        url_seconds: fetching one document may take so long.
    """
    given: list[Source] = [source_of_input(document, request.metadata) for document in request.documents]
    return given + [UrlSource(url, url_seconds, request.metadata) for url in request.urls]
