"""Collections, how they are made, and how questions over them are answered."""

from typing import Literal

from pydantic import Field, field_validator

from rag.prompt_template import check_question
from rag.schemas.base import MAX_PASSAGES, CollectionName, Request, Result

__all__ = ["Answering", "CollectionInfo", "CollectionList", "CollectionPatch", "NewCollection", "Splitting", "Template"]

MAX_TEMPLATE = 20_000  # characters


class Template(Request):
    """The words around a collection's passages; what is left out is the server's.

    Every passage's KV follows the template: with another one, the passages are read anew.

    Attributes:
        system: the system message.
        before: what comes between it and the first passage; may be empty.
        after: what follows the passages; holds `{question}` once.
    """

    system: str | None = Field(default=None, max_length=MAX_TEMPLATE)
    before: str | None = Field(default=None, max_length=MAX_TEMPLATE)
    after: str | None = Field(default=None, max_length=MAX_TEMPLATE)

    @field_validator("after")
    @classmethod
    def _holds_the_question(cls, after: str | None) -> str | None:
        return None if after is None else check_question(after)


class Answering(Request):
    """How questions over a collection are answered where they do not say; what is left out is up to the server.

    Attributes:
        k: passages to retrieve.
        max_tokens: length of a generated answer at most.
        extractive: quote the best sentence when the model's answer cites nothing.
        reuse: which cached KV of passages may serve.
        order: of the passages in the prompt.
        prompt: the words around the passages.
    """

    k: int | None = Field(default=None, ge=1, le=MAX_PASSAGES)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    extractive: bool | None = None
    reuse: Literal["auto", "exact", "chunk"] | None = None
    order: Literal["score", "cache"] | None = None
    prompt: Template | None = None


class Splitting(Request):
    """How a collection's documents are cut and indexed, for good; what is left out is the server's.

    Attributes:
        passage_tokens: budget of one passage's text, in tokens of the language model.
        overlap_tokens: tokens that neighbouring passages of a section share at most.
        index_factory: FAISS factory string.
        index_parameters: FAISS run-time parameters.
    """

    passage_tokens: int | None = Field(default=None, ge=16, le=1_000_000)
    overlap_tokens: int | None = Field(default=None, ge=0, le=500_000)
    index_factory: str | None = Field(default=None, min_length=1, max_length=200)
    index_parameters: str | None = Field(default=None, max_length=200)


class NewCollection(Request):
    """An empty collection to make."""

    name: CollectionName
    settings: Splitting = Splitting()
    answering: Answering = Answering()


class CollectionPatch(Request):
    """What to change of a collection: fields of `answering` that are given replace those that it has.

    Null gives a field back to the server.
    """

    answering: Answering


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
    index_parameters: str = ""
    answering: Answering = Answering()
    created_at: str


class CollectionList(Result):
    """Every collection, by name."""

    collections: list[CollectionInfo]
