"""Documents, and the passages that they were cut into."""

from pydantic import Field

from rag.schemas.base import PassageId, Request, Result
from rag.schemas.metadata import DocumentMetadata
from rag.schemas.passage_kv import Purge

__all__ = [
    "DeletedDocument",
    "DocumentInfo",
    "DocumentList",
    "DocumentPatch",
    "DocumentWithPassages",
    "PassageInfo",
]


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
    metadata: DocumentMetadata = Field(default_factory=dict)


class DocumentPatch(Request):
    """What to change of a document: its metadata, as a whole."""

    metadata: DocumentMetadata


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
