"""A search and what it found."""

from pydantic import Field

from rag.schemas.base import MAX_PASSAGES, CollectionName, PassageId, Question, Request, Result
from rag.schemas.metadata import Condition

__all__ = ["SearchRequest", "SearchResult", "SearchTimings", "Source"]


class SearchRequest(Request):
    """A search for passages; `k` defaults to the setting of the collection or the server.

    With `where`, the k best of those passages are found whose documents fit the condition.
    """

    query: Question
    collection: CollectionName = "default"
    k: int | None = Field(default=None, ge=1, le=MAX_PASSAGES)
    where: Condition | None = None


class Source(Result):
    """A passage that was found; `start` and `end` are its characters in the document's text.

    `n` is its rank, counted from 1; `page` counts from 1 and is null where a format has no pages.
    """

    n: int
    label: str
    document_id: str
    title: str
    uri: str
    passage_id: PassageId
    page: int | None
    start: int
    end: int
    score: float
    text: str


class SearchTimings(Result):
    """Milliseconds of a search."""

    embed: float
    search: float
    total: float


class SearchResult(Result):
    """Passages by falling score."""

    query: str
    collection: str
    results: list[Source]
    timings_ms: SearchTimings
