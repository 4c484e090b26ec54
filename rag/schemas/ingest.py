"""Documents to ingest, and what became of them."""

import base64
from typing import Annotated, Literal

from pydantic import AfterValidator, EncodedBytes, EncoderProtocol, Field, StringConstraints
from pydantic import model_validator as check_model

from rag.schemas.base import Request, Result
from rag.schemas.metadata import DocumentMetadata
from rag.web_address import check_url
from retriever.errors import SourceError

__all__ = ["DocumentInput", "IngestReport", "IngestRequest", "SkippedDocument"]


MAX_URLS = 1000


class _StrictBase64(EncoderProtocol):
    """Base64 that refuses what is not of its alphabet, where pydantic's own drops it."""

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        try:
            return base64.b64decode(data, validate=True)
        except ValueError as error:
            raise ValueError(f"this is not base64: {error}") from error

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return base64.b64encode(value)

    @classmethod
    def get_json_format(cls) -> Literal["base64"]:
        return "base64"


def _checked_url(url: str) -> str:
    try:
        return check_url(url)
    except SourceError as error:
        raise ValueError(str(error)) from error


Base64 = Annotated[bytes, EncodedBytes(encoder=_StrictBase64)]
Url = Annotated[str, AfterValidator(_checked_url)]


class DocumentInput(Request):
    """A document to ingest: either `text`, or the bytes of a file as base64 in `data`.

    Attributes:
        uri: what identifies it in its collection; the same uri again replaces it.
        text: plain text or markup, as `media_type` says.
        data: a file's bytes; its `name` and content tell the format.
        name: file name of `data`.
        title: for people; taken from the document where it is left out.
        media_type: of `text` or `data`; it goes before the ending of the name.
        metadata: what is known of it; left out, a document that is there already keeps what it has.
    """

    uri: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    text: str | None = None
    data: Base64 | None = None
    name: str | None = None
    title: str | None = None
    media_type: str | None = None
    metadata: DocumentMetadata | None = None

    @check_model(mode="after")
    def _one_content(self) -> "DocumentInput":
        if (self.text is None) == (self.data is None):
            raise ValueError("give either text or data (base64)")
        return self


class IngestRequest(Request):
    """Documents to add or to replace in a collection: such as come along, and such as the server is to fetch.

    Attributes:
        documents: with their text or data.
        urls: of documents on the web, where the server allows it; a URL is its document's uri.
        metadata: of those that have none of their own.
    """

    documents: list[DocumentInput] = Field(fail_fast=True, default_factory=list)
    urls: list[Url] = Field(fail_fast=True, default_factory=list, max_length=MAX_URLS)
    metadata: DocumentMetadata | None = None

    @check_model(mode="after")
    def _some_documents(self) -> "IngestRequest":
        if not (self.documents or self.urls):
            raise ValueError("give at least one document, in documents or urls")
        return self


class SkippedDocument(Result):
    """A document that could not be read, and why."""

    uri: str
    reason: str


class IngestReport(Result):
    """What an ingestion did; every list and number counts documents, `passages` counts what was written."""

    collection: str
    added: int
    updated: int
    unchanged: int
    removed: int
    skipped: list[SkippedDocument]
    passages: int
    seconds: float
