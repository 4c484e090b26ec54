"""A question, its answer with the evidence, and what the answer cost."""

from typing import Literal

from pydantic import Field

from rag.schemas.base import MAX_PASSAGES, CollectionName, PassageId, Question, Result
from rag.schemas.metadata import Condition
from rag.schemas.sampling import Sampling, Turn
from rag.schemas.search import Source

__all__ = [
    "MAX_TURNS", "Answer", "AnswerRequest", "Cache", "Citation", "HitTokens", "PassageCache", "PromptSegment",
    "Timings", "Usage",
]  # fmt: skip

MAX_TURNS = 2000


class AnswerRequest(Sampling):
    """A question; what is left out defaults to the settings of the collection, then to those of the server.

    How tokens are chosen: see `Sampling`.

    Attributes:
        question: what to answer.
        history: what was said before, the latest last: it follows the passages, and passages are looked for by the
            question alone, or with the question before where it is very short.
        instructions: how to answer; read after the passages.
        collection: where to look.
        k: passages to retrieve.
        where: a condition on the metadata of the documents that passages are looked for in.
        max_tokens: length of the generated answer at most.
        extractive: quote the best sentence when the model's answer cites nothing; never where it has to be JSON.
        reuse: which cached KV of passages may serve: `exact`, `chunk` (in any order; refused without a certificate) or
            `auto`.
        order: of the passages in the prompt: `score`, or `cache` for what hits the cache best.
        stream: server-sent events instead of one JSON answer.
    """

    question: Question
    history: list[Turn] = Field(fail_fast=True, default=[], max_length=MAX_TURNS)
    instructions: str | None = None
    collection: CollectionName = "default"
    k: int | None = Field(default=None, ge=1, le=MAX_PASSAGES)
    where: Condition | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
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


class PromptSegment(Result):
    """How one part of the prompt got its KV; `tokens` are `cached_tokens`, `repaired_tokens` and those computed.

    Attributes:
        kind: `template`, `passage`, `text`, or `tail`: what no other question has.
        passage_id: of a passage.
        source: the number of its source, counted from 1.
        tokens: its length.
        cached_tokens: whose KV was not computed.
        repaired_tokens: computed in context at the head of a shifted passage.
        outcome: `path`, `canonical`, `shifted`, or `computed` where a token besides the repaired ones was.
        tier: where the cached KV came from; null without any.
    """

    kind: Literal["template", "passage", "text", "tail"]
    passage_id: PassageId | None
    source: int | None
    tokens: int
    cached_tokens: int
    repaired_tokens: int
    outcome: Literal["path", "canonical", "shifted", "computed"]
    tier: Literal["device", "disk"] | None


class Cache(Result):
    """The use of the cache: passages in prompt order, hit tokens of the whole prompt, and the prompt part by part."""

    passages: list[PassageCache]
    hit_tokens: HitTokens
    segments: list[PromptSegment] = Field(default_factory=list)


class Timings(Result):
    """Milliseconds: `ttft` and `total` count from the question's arrival; loading models is in none of them.

    `load` is reading KV from the disk; neither `queue` nor `prefill` contains it.
    """

    embed: float
    search: float
    queue: float
    load: float = 0.0
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
