"""A question, its answer with the evidence, and what the answer cost."""

from typing import Literal

from pydantic import Field

from rag.schemas.base import MAX_PASSAGES, CollectionName, PassageId, Question, Request, Result
from rag.schemas.search import Source

__all__ = ["Answer", "AnswerRequest", "Cache", "Citation", "HitTokens", "PassageCache", "Timings", "Usage"]


class AnswerRequest(Request):
    """A question; what is left out defaults to the server's settings.

    Attributes:
        question: what to answer.
        collection: where to look.
        k: passages to retrieve.
        max_tokens: length of the generated answer at most.
        temperature: 0 is greedy.
        top_k: sample among the k most likely tokens; 0 is all.
        top_p: sample among the fewest tokens whose probability reaches this sum.
        seed: makes sampling repeatable.
        extractive: quote the best sentence when the model's answer cites nothing.
        reuse: which cached KV of passages may serve: `exact`, `chunk` (in any order; refused without a certificate) or
            `auto`.
        order: of the passages in the prompt: `score`, or `cache` for what hits the cache best.
        stream: server-sent events instead of one JSON answer.
    """

    question: Question
    collection: CollectionName = "default"
    k: int | None = Field(default=None, ge=1, le=MAX_PASSAGES)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    temperature: float = Field(default=0.0, ge=0, le=100)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    extractive: bool | None = None
    reuse: Literal["auto", "exact", "chunk"] | None = None
    order: Literal["score", "cache"] | None = None
    stream: bool = False


class Citation(Result):
    """A marker in the answer: `answer[start:end] == marker`, and it stands for source number `source`."""

    marker: str
    source: int
    start: int
    end: int


class Usage(Result):
    """Tokens; `cached_tokens` are those prompt tokens whose KV was not computed for this answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class PassageCache(Result):
    """How one passage got its KV: `path`, `canonical`, `shifted` or `computed`, and from which tier."""

    passage_id: PassageId
    tokens: int
    outcome: Literal["path", "canonical", "shifted", "computed"]
    tier: Literal["device", "disk"] | None


class HitTokens(Result):
    """Prompt tokens whose KV was not computed, by the tier that it came from."""

    device: int
    disk: int


class Cache(Result):
    """The use of the cache: passages in prompt order, and hit tokens of the whole prompt."""

    passages: list[PassageCache]
    hit_tokens: HitTokens


class Timings(Result):
    """Milliseconds: `ttft` and `total` count from the question's arrival; loading models is in none of them."""

    embed: float
    search: float
    queue: float
    prefill: float
    ttft: float
    total: float


class Answer(Result):
    """An answer with its evidence. The format is stable."""

    answer: str
    citations: list[Citation]
    sources: list[Source]
    usage: Usage
    cache: Cache
    timings_ms: Timings
    model: str
    finish_reason: Literal["stop", "length", "cancelled"]
