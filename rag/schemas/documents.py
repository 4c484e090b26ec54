"""Collections, the documents in them, and the passages that those were cut into."""

from rag.schemas.base import PassageId, Result
from rag.schemas.passage_kv import Purge

__all__ = [
    "CollectionInfo",
    "CollectionList",
    "DeletedDocument",
    "DocumentInfo",
    "DocumentList",
    "DocumentWithPassages",
    "PassageInfo",
]


class CollectionInfo(Result):
    """A collection; the embedder is null until something was ingested."""

    name: str
    id: int
    documents: int
    passages: int
    embedder: str | None
    passage_tokens: int
    overlap_tokens: int
    index_factory: str
    created_at: str


class CollectionList(Result):
    """Every collection, by name."""

    collections: list[CollectionInfo]


class DocumentInfo(Result):
    """A document as it is stored."""

    id: str
    uri: str
    title: str
    content_hash: str
    passages: int
    characters: int
    tokens: int
    ingested_at: str


class DocumentList(Result):
    """Every document of a collection, by uri."""

    documents: list[DocumentInfo]


class PassageInfo(Result):
    """A passage of a document, in reading order."""

    passage_id: PassageId
    label: str
    page: int | None
    start: int
    end: int
    heading_path: list[str]
    tokens: int
    text: str


class DocumentWithPassages(DocumentInfo):
    """A document and what it was cut into."""

    passage_list: list[PassageInfo]


class DeletedDocument(DocumentInfo):
    """A document that was deleted; `purge` is there where that was asked for."""

    purge: Purge | None = None
